"""Where the attention patterns that are drawn come from: a model, a run, or a dump."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.attention.attention_dump import LayerTensor, dump_pattern, layer_weight, read_labels
from outlier_features.attention.attention_projections import HeadGroups, Projections, kv_heads_of
from outlier_features.attention.kept_patterns import AttentionMaps, cropped
from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokenize_corpus import Wrapped
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
KvHeads = Sequence[int] | None  # the KV head that each head reads, or None where each has its own


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn: of a layer, `sequences`, or if None the first `n_sequences`, and their first `positions`."""

    layer: int
    sequences: Sequence[int] | None
    n_sequences: int
    positions: int

    def choose(self, available: Sequence[int], where: object) -> list[int]:
        """The wanted ones of the sequences that are there."""
        chosen = list(available[: self.n_sequences]) if self.sequences is None else list(self.sequences)
        missing = [n for n in chosen if n not in available]
        if missing or not chosen:
            have = f"{available[0]} to {available[-1]}" if available else "none"
            raise InputError(f"{where}: found {have}, expected sequence {[*missing, 0][0]}")
        return chosen


@dataclass(frozen=True)
class Model:
    """A model to run: its directory, and as what and where."""

    location: Path
    dtype: str
    device: str

    def patterns(self, sequences: Sequence[Array], layer: int) -> tuple[list[Array], KvHeads]:
        # Not at the top: importing torch takes seconds.
        from outlier_features.attention.attention_from_model import attention_from_model

        return attention_from_model(self.location, sequences, layer, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Shown:
    """The pattern of a sequence, (heads, T, T), or (heads, T, T + 1) with a learned sink; a label of each position."""

    sequence: int
    pattern: Array
    labels: list[str]


Source = tuple[list[Shown], KvHeads]


def from_texts(model: Model, texts: Sequence[str], wanted: Wanted) -> Source:
    """Of a model that runs texts, with the special tokens that its tokenizer adds."""
    wrapped = Wrapped.load(model.location, "auto")
    names = wrapped.names()
    before, after = ([names[str(i)] for i in special] for special in (wrapped.prefix, wrapped.suffix))
    chosen, ids, labels = wanted.choose(range(len(texts)), "--text"), [], []
    for n in chosen:
        encoding = wrapped.tokenizer.encode(texts[n], add_special_tokens=False)
        ids.append(np.array([*wrapped.prefix, *encoding.ids, *wrapped.suffix], np.int64))
        labels.append([*before, *(texts[n][start:stop] for start, stop in encoding.offsets), *after])
        if not len(ids[-1]):
            raise InputError(f"--text: found no token in text {n}, expected at least one")
    return _from_model(model, chosen, ids, labels, wanted)


def from_tokens(model: Model, directory: Path, wanted: Wanted) -> Source:
    """Of a model that runs the sequences of a run, each whole and without its padding."""
    run, texts = _tokens(directory)
    chosen = wanted.choose(range(len(run.tokens)), directory)
    ids = [run.tokens[n][run.mask[n]] for n in chosen]
    labels = [[token_text(texts, run, n, t) or "" for t in range(len(one))] for n, one in zip(chosen, ids, strict=True)]
    return _from_model(model, chosen, ids, labels, wanted)


def from_run(directory: Path, wanted: Wanted) -> Source:
    """Those that rule map_attention kept."""
    path = directory / "attention.safetensors"
    maps = AttentionMaps.read(path)
    if wanted.layer not in maps.patterns:
        have = ", ".join(map(str, sorted(maps.patterns))) or "none"
        raise InputError(f"{path}: kept patterns of layer {have}, not of {wanted.layer}; give --model to run it")
    run, texts = _tokens(directory)
    shown = []
    for n in wanted.choose(maps.sequences, path):
        index = maps.sequences.index(n)
        size, pattern = maps.positions[index], maps.patterns[wanted.layer][index]
        shown.append(Shown(n, cropped(pattern, size), [token_text(texts, run, n, t) or "" for t in range(size)]))
    return shown, maps.kv_heads[wanted.layer]


def from_patterns(
    file: TensorFile,
    key: str,
    n_kv_heads: int | None,
    head_groups: HeadGroups | None,
    labels: str | None,
    wanted: Wanted,
) -> Source:
    """Those that a dump holds; `n_kv_heads` and `head_groups` only name the heads."""
    tensor = LayerTensor.find(file, key, wanted.layer, ("heads", "T", "T"))
    heads = tensor.array.shape[1]
    kv_heads = None if n_kv_heads is None else kv_heads_of(heads, n_kv_heads, head_groups)
    shown = []
    for n in wanted.choose(range(len(tensor.array)), file.path):
        pattern = dump_pattern(tensor, n)
        shown.append(Shown(n, pattern, _labels(file, labels, n, pattern.shape[1])))
    return shown, kv_heads


def from_projections(
    file: TensorFile,
    key: str,
    weights: TensorFile,
    keys: Mapping[str, str | None],
    facts: Mapping[str, Any],
    labels: str | None,
    wanted: Wanted,
) -> Source:
    """Those that follow from the input of the Q and K projections.

    keys    of the weights: `q` and `k`, and `q_bias`, `k_bias`, `q_norm`, `k_norm`, `sinks`, which may be None
    facts   the other fields of `Projections`
    """
    tensor = LayerTensor.find(file, key, wanted.layer, ("T", "H"))
    arrays: dict[str, Any] = {
        name: None if one is None else layer_weight(weights, one, wanted.layer, 2 if name in ("q", "k") else 1)
        for name, one in keys.items()
    }
    projections = Projections(**arrays, **facts)
    shown = []
    for n in wanted.choose(range(len(tensor.array)), file.path):
        x = tensor.sequence(n)
        names = _labels(file, labels, n, len(x))
        if projections.causal:
            x, names = x[: wanted.positions], names[: wanted.positions]  # later positions change nothing
        shown.append(Shown(n, projections.pattern(x), names))
    return shown, projections.kv_heads


def _from_model(
    model: Model, chosen: Sequence[int], ids: Sequence[Array], labels: Sequence[list[str]], wanted: Wanted
) -> Source:
    patterns, kv_heads = model.patterns(ids, wanted.layer)
    return [Shown(*one) for one in zip(chosen, patterns, labels, strict=True)], kv_heads


def _tokens(directory: Path) -> tuple[Tokens, list[bytes]]:
    run = Tokens.read(directory / "tokens.safetensors")
    return run, read_texts(directory / "texts.parquet", run)


def _labels(file: TensorFile, labels: str | None, n: int, length: int) -> list[str]:
    return [""] * length if labels is None else read_labels(file, labels, n, length)
