"""The tokens of a sequence as pages show them, one by one."""

import re

from outlier_features.tokens.tokens import Tokens
from outlier_features.tokens.vocabulary import Vocabulary
from outlier_features.visible_text import visible

# Spaces that cannot be told by what stands around them: beside another, at the end, or alone.
_HIDDEN_SPACES = re.compile(r" {2,}| +$")


def pieces_of(texts: list[bytes], run: Tokens, sequence: int, vocabulary: Vocabulary) -> list[str]:
    """What each token of a sequence, padding left out, is shown as.

    Of a special token its name; of one that is part of a character its bytes, as in `‹byte E2›`, or `‹part of é›` where
    the offsets do not part it and the vocabulary is not known. Nothing for a token without text. Text between two
    tokens that neither covers, as the spaces of a WordPiece tokenizer, stands before the second.
    """
    length = int(run.mask[sequence].sum())
    spans = run.offsets[sequence, :length].tolist()
    ids = run.tokens[sequence, :length].tolist()
    names = run.provenance.get("special_tokens", {})
    pieces: list[str] = []
    reached = 0
    for place, (first, end) in enumerate(spans):
        if run.special[sequence, place] and str(ids[place]) in names:
            pieces.append(visible(names[str(ids[place])]))
            continue
        covered, between = texts[sequence][first:end], ""
        if covered:
            between, reached = shown_bytes(texts[sequence][reached:first]), max(reached, end)
        # Offsets count characters: tokens that are parts of one all cover it.
        if any(first < spans[other][1] and spans[other][0] < end for other in (place - 1, place + 1)
               if 0 <= other < length):  # fmt: skip
            known = vocabulary.bytes_of(ids[place])
            piece = shown_bytes(known) if known is not None else f"‹part of {shown_bytes(covered)}›"
        else:
            piece = shown_bytes(covered)
        pieces.append((" " if between == "·" else between) + piece)
    return pieces


def shown_bytes(text: bytes) -> str:
    """Text as it can be shown: spaces that would not be seen are dots, and bytes that are no character have numbers."""
    characters = text.decode(errors="surrogateescape")
    shown = "".join(_byte(one) if "\udc80" <= one <= "\udcff" else visible(one) for one in characters)
    return _HIDDEN_SPACES.sub(lambda found: "·" * len(found[0]), shown)


def _byte(character: str) -> str:
    return f"‹byte {ord(character) - 0xDC00:02X}›"
