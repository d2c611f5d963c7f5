"""The text of single tokens, from a run's texts and offsets."""

from pathlib import Path

import pyarrow as pa

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import PROVENANCE, Provenance, require_equal
from outlier_features.files.sealed_parquet import metadata_of, open_parquet
from outlier_features.tokens.tokens import Tokens


def read_texts(texts: Path, run: Tokens) -> list[bytes]:
    """The UTF-8 text of each sequence of a run."""
    try:
        with open_parquet(texts) as file:
            provenance = Provenance(texts, metadata_of(file)[PROVENANCE])
            column = file.read(columns=["text"]).column("text").to_pylist()
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedFile(texts, f"expected the Parquet table of texts, found {error}") from error
    require_equal(run.provenance, provenance, ("tokens_sha256",), texts)
    return [text.encode() for text in column]


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
