"""What is handed over to be measured, as the sequences of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from outlier_features.errors import InputError
from outlier_features.notebook.run import Run
from outlier_features.tokens.decoded import spans, text
from outlier_features.tokens.tokens import UNKNOWN, Tokens, tokens_digest
from outlier_features.tokens.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]
CORPUS = "in hand"


def of_run(run: Run, model: Mapping[str, Any]) -> tuple[Tokens, list[str]]:
    """The sequences of a run, for another model of the same vocabulary, and their texts."""
    return replace(run.tokens, provenance={**run.tokens.provenance, **model}), run.texts


def of_ids(ids: Any, mask: Any, special: Any, tokenizer: Any, facts: Mapping[str, Any]) -> tuple[Tokens, list[str]]:
    """Sequences of token ids, and their texts, which are empty without a tokenizer.

    ids       integers (N, T), or N lists of any length
    mask      true where a token is no padding, (N, T); None: everywhere, of lists up to their ends
    special   true at special tokens, (N, T); None: where the tokenizer calls them so

    Raises `InputError` where these do not fit each other.
    """
    ids, lengths = _token_ids(ids)
    shape = ids.shape
    found = np.arange(shape[1]) < lengths[:, None] if mask is None else _flags("mask", mask, shape)
    names = _special_names(tokenizer)
    marked = found & (np.isin(ids, [*names]) if special is None else _flags("special", special, shape))
    pieces = _pieces(ids, found, marked, tokenizer)
    tokens = ids.astype(np.int32)
    digest = tokens_digest(tokens, marked, found)
    used = {str(one): names[one] for one in {*ids[marked].tolist()} & names.keys()}
    provenance = {**_provenance(shape, facts, digest), "special_tokens": used}
    return Tokens(tokens, marked, found, spans(pieces, shape), provenance), [text(row) for row in pieces]


def of_unknown(
    shape: tuple[int, int], mask: Any, special: Any, digest: str, facts: Mapping[str, Any]
) -> tuple[Tokens, list[str]]:
    """Sequences of which only the number of positions is known; `digest`: of what stands for them."""
    found = np.ones(shape, bool) if mask is None else _flags("mask", mask, shape)
    marked = np.zeros(shape, bool) if special is None else _flags("special", special, shape) & found
    tokens, offsets = np.full(shape, UNKNOWN, np.int32), np.zeros((*shape, 2), np.int32)
    return Tokens(tokens, marked, found, offsets, _provenance(shape, facts, digest)), [""] * shape[0]


def _provenance(shape: tuple[int, ...], facts: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {
        **facts,
        "corpus": CORPUS,
        "corpus_sha256": digest,
        "sample": {"sequences": shape[0], "tokens": shape[1]},
        "special_tokens": {},
        "notes": [],
    }


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _padded(values: Any) -> tuple[Array, Array]:
    """Values of (N, T), of lists padded with 0, and the length of each row. Raises `ValueError` where they are not."""
    if isinstance(values, Sequence) and values:
        rows = [_array(row) for row in values]
        if any(row.ndim != 1 or not len(row) for row in rows):
            raise ValueError("other than rows")
        whole = np.zeros((len(rows), max(map(len, rows))), np.result_type(*rows))
        for place, row in zip(whole, rows, strict=True):
            place[: len(row)] = row
        return whole, np.array([len(row) for row in rows])
    whole = _array(values)
    if whole.ndim != 2 or not whole.size:
        raise ValueError(f"{whole.dtype} {list(whole.shape)}")
    return whole, np.full(len(whole), whole.shape[1])


def _token_ids(ids: Any) -> tuple[Array, Array]:
    """Ids (N, T), and the length of each row."""
    try:
        whole, lengths = _padded(ids)
    except ValueError as error:
        raise InputError(f"inputs: found {error}, expected token ids, a row of them for each sequence") from error
    if not np.issubdtype(whole.dtype, np.integer):
        raise InputError(f"inputs: found {whole.dtype}, expected token ids, which are integers")
    if whole.min() < 0:
        raise InputError(f"inputs: found token id {whole.min()}, expected ids from 0 on, and padding named by `mask`")
    return whole, lengths


def _flags(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    try:
        found, _ = _padded(values)
    except ValueError as error:
        raise InputError(f"{name}: found {error}, expected {list(shape)}, a value for each token") from error
    if found.shape != shape:
        raise InputError(f"{name}: found shape {list(found.shape)}, expected {list(shape)}, a value for each token")
    return found.astype(bool)


def _special_names(tokenizer: Any) -> dict[int, str]:
    if not hasattr(tokenizer, "all_special_ids"):
        return {}
    return dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _pieces(ids: Array, mask: Array, special: Array, tokenizer: Any) -> list[list[bytes]]:
    """The UTF-8 bytes of each token of each sequence, none of a special one."""
    if tokenizer is None:
        return [[] for _ in ids]
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise InputError(f"tokenizer: found {type(tokenizer).__name__}, expected a fast one")
    vocabulary = Vocabulary.of(backend)
    return [
        [b"" if marked else vocabulary.bytes_of(one) or b"" for one, marked in zip(row[own], flags[own], strict=True)]
        for row, own, flags in zip(ids, mask, special, strict=True)
    ]
