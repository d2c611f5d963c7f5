"""What the tokens of a vocabulary are, byte by byte, as far as its tokenizer says it."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from outlier_features.tokens.tokenize_corpus import load_tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """Without a tokenizer nothing is known of any token."""

    tokenizer: Tokenizer | None = None
    byte_level: bool = False

    @classmethod
    def read(cls, directory: Path) -> "Vocabulary":
        """The vocabulary of the model in a directory. Raises `InputError` where there is none."""
        return cls.of(load_tokenizer(directory))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        parts = json.loads(tokenizer.to_str())
        made_of = json.dumps([parts["decoder"], parts["pre_tokenizer"]])
        return cls(tokenizer, '"ByteLevel"' in made_of)

    def bytes_of(self, token: int) -> bytes | None:
        """The UTF-8 bytes that a token stands for, which may be part of a character; None if it is not known."""
        name = self.tokenizer.id_to_token(token) if self.tokenizer else None
        if name is None:
            return None
        if self.byte_level:
            known = _byte_of_character()
            if all(character in known for character in name):
                return bytes(known[character] for character in name)
            return name.encode()
        if found := _BYTE.fullmatch(name):
            return bytes([int(found[1], 16)])
        return name.replace(_SPACE, " ").encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """How byte-level tokenizers, from GPT-2 on, write a byte as a character: printable ones as they are."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
