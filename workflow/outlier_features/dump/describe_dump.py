"""Rule describe_dump: what stands for the tokens and texts of a run whose activations come from a dump."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.dump.dumps import CORPUS, INTEGERS, Dump
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.files.model_source import source_of
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.bases import RESIDUAL_BASIS
from outlier_features.tokens.decoded import spans, text
from outlier_features.tokens.tokens import UNKNOWN, Tokens
from outlier_features.tokens.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]
Labels = list[list[str]]


def describe_dump(
    model: str,
    model_source: Path,
    tokens: Path,
    texts: Path,
    *,
    source: Mapping[str, Any],
    first_token: str,
    labels: str | None,
    tokenizer: Path | None = None,
) -> None:
    """Write `tokens` and `texts` as `tokenize_corpus` does, with the facts of the dump as provenance.

    source        what says where the activations lie, as in the catalog entry
    first_token   special: position 0 is left out of population `without_first`; ordinary: there is only `all`
    labels        a key of integers, one for each position, in every file, or a JSON file: a list of T texts, or N lists
                  of a text for each position
    tokenizer     the directory of a tokenizer, whose text of the integers is shown in their place

    Tokens are -1 (unknown), or the labels where these are integers; positions after the end of a sequence are padding.
    Raises `InputError`.
    """
    dump, recorded = Dump.open(source), source_of(model_source)
    keys: dict[str, str] = dict(source["keys"])
    shape = (len(dump.lengths), dump.tokens)
    ids, names = _labels(dump, labels)
    if tokenizer is None:
        offsets, shown = _in_a_row(names or [[]] * shape[0], shape[1])
    else:
        offsets, shown = _decoded(ids, dump.lengths, tokenizer)
    arrays = {
        "tokens": ids,
        "special": np.zeros(shape, bool),
        "mask": np.arange(shape[1]) < dump.lengths[:, None],
        "offsets": offsets,
    }
    arrays["special"][:, 0] = first_token == "special"
    provenance = {
        "model": model,
        "model_origin": recorded["origin"],
        "model_revision": recorded["revision"],
        "corpus": CORPUS,
        "corpus_sha256": recorded["revision"],
        "sample": {"sequences": shape[0], "tokens": shape[1]},
        "first_token": first_token,
        "special_tokens": {},
        "architecture": "activation dump",
        **dict.fromkeys(("parameters", "vocab_size", "device", "attention", "torch", "transformers")),
        "blocks": dump.blocks,
        "layers_saved": dump.layers_saved,
        "d_model": _width(dump, keys),
        "causal_head": False,
        "dtype": dump.dtype,
        "sequences": shape[0],
        "sites": list(keys),
        "keys": dict(keys),
        "absent": {},
    }
    Tokens(**arrays, provenance=provenance).write(tokens, texts, shown)


def _width(dump: Dump, keys: Mapping[str, str]) -> int | None:
    """d_model, which all sites on the basis of the residual stream must share."""
    widths = {site: dump.sites[site].dims for site in keys if site in RESIDUAL_BASIS}
    for site, width in widths.items():
        first = next(iter(widths))
        if width != widths[first]:
            raise InputError(
                f"{dump.files[0]}: {keys[site]} ({site}) has {width} dims, expected {widths[first]} as "
                f"{keys[first]} ({first}) has, since both are on the basis of the residual stream"
            )
    return next(iter(widths.values()), None)


def _in_a_row(labels: Labels, tokens: int) -> tuple[Array, list[str]]:
    """UTF-8 bytes int32 (N, T, 2) of each label, and of each sequence its labels; a space stands after each."""
    pieces = [[f"{label} " for label in row] + [""] * (tokens - len(row)) for row in labels]
    return np.stack([_offsets(row) for row in pieces]), ["".join(row) for row in pieces]


def _offsets(pieces: list[str]) -> Array:
    """UTF-8 bytes (T, 2) of each label; the space after it belongs to none."""
    ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    spans = np.stack([ends[:-1], np.maximum(ends[1:] - 1, ends[:-1])], axis=1)
    return spans.astype(np.int32)


def _decoded(ids: Array, lengths: Array, tokenizer: Path) -> tuple[Array, list[str]]:
    """The same of tokens, whose text has nothing between."""
    vocabulary = Vocabulary.read(tokenizer)
    pieces = []
    for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
        found = [vocabulary.bytes_of(token) for token in row[:length]]
        if None in found:
            raise InputError(
                f"{tokenizer}: has no token {row[found.index(None)]}, expected the tokenizer of the dump's model"
            )
        pieces.append([piece for piece in found if piece is not None])
    return spans(pieces, (ids.shape[0], ids.shape[1])), [text(row) for row in pieces]


def _labels(dump: Dump, labels: str | None) -> tuple[Array, Labels]:
    """Token ids int32 (N, T), unknown ones -1, and what is shown for each position that is not padding."""
    ids = np.full((len(dump.lengths), dump.tokens), UNKNOWN, np.int32)
    if labels is None:
        return ids, []
    if labels.endswith(".json"):
        return ids, _from_json(Path(labels), dump.lengths)
    for file, first, last in _runs(dump):
        for n, row in zip(range(first, last), _from_key(file, labels, dump.lengths[first:last]), strict=True):
            ids[n, : len(row)] = row
    return ids, [[str(i) for i in row[:length]] for row, length in zip(ids.tolist(), dump.lengths, strict=True)]


def _runs(dump: Dump) -> Iterator[tuple[TensorFile, int, int]]:
    """The files in which sequences lie, each with the first of them and one past the last."""
    site = next(iter(dump.sites.values()))
    files = [site.file_of(n) for n in range(len(dump.lengths))]
    first = 0
    for n in range(1, len(files) + 1):
        if n == len(files) or files[n] is not files[first]:
            yield files[first], first, n
            first = n


def _from_key(file: TensorFile, key: str, lengths: Array) -> list[Array]:
    """For each sequence its integers, of a tensor without padding, or of one with padding at the ends."""
    entry = file.entry(key)
    found, shape = int(np.prod(entry.shape, dtype=object)), (len(lengths), int(lengths.max()))
    padded = entry.shape[:1] == shape[:1] and found % shape[0] == 0 and found // shape[0] >= shape[1]
    if lengths.min() == shape[1] and found != shape[0] * shape[1]:
        padded = False
    if entry.dtype not in INTEGERS or not (padded or found == int(lengths.sum())):
        wanted = f"{shape[1]} for each of {shape[0]} sequences"
        if lengths.min() < shape[1]:
            wanted = f"{int(lengths.sum())} in all for {shape[0]} sequences"
        raise InputError(
            f"{file.path}: labels {key} is {entry.dtype} {list(entry.shape)}, expected integers with {wanted}"
        )
    ids = file.array(key).reshape(-1)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > np.iinfo(np.int32).max):
        raise InputError(f"{file.path}: labels {key} has values outside 0..2147483647")
    if found == int(lengths.sum()):
        return np.split(ids, np.cumsum(lengths)[:-1])
    return [row[:length] for row, length in zip(ids.reshape(shape[0], -1), lengths, strict=True)]


def _from_json(path: Path, lengths: Array) -> Labels:
    found, tokens = read_json(path), int(lengths.max())
    if isinstance(found, list) and all(isinstance(name, str) for name in found) and len(found) == tokens:
        found = [found[:length] for length in lengths.tolist()]
    fits = isinstance(found, list) and len(found) == len(lengths) and all(
        isinstance(row, list) and len(row) in (length, tokens) and all(isinstance(name, str) for name in row)
        for row, length in zip(found, lengths.tolist(), strict=True)
    )  # fmt: skip
    if not fits:
        raise InputError(f"{path}: expected a list of {tokens} texts as labels, or {len(lengths)} such lists")
    return [row[:length] for row, length in zip(found, lengths.tolist(), strict=True)]
