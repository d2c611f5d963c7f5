"""The text of single tokens, from a run's texts and offsets."""

from pathlib import Path

from outlier_features.tokens.texts_schema import TEXTS
from outlier_features.tokens.tokens import Tokens


def read_texts(texts: Path, run: Tokens) -> list[bytes]:
    """The UTF-8 text of each sequence of a run."""
    return [text.encode() for text in run.files.rows(texts, TEXTS)["text"]]


def token_text(texts: list[bytes], run: Tokens, sequence: int, position: int) -> str | None:
    """The text that a token covers, with U+FFFD where it is only part of a character; a special token's name.

    None in a dump without labels.
    """
    if run.token_id(sequence, position) is None and not texts[sequence]:
        return None
    name = run.provenance.get("special_tokens", {}).get(str(run.tokens[sequence, position]))
    if run.special[sequence, position] and name is not None:
        return str(name)
    first, last = run.offsets[sequence, position]
    return texts[sequence][first:last].decode(errors="replace")
