"""The attention patterns that a run keeps: those of a few layers, where an attention sink begins and is strongest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.errors import ConfigError, DamagedFile
from outlier_features.files.missing import require_had
from outlier_features.files.tensorfile import TensorFile, write_tensors

Array = np.ndarray[Any, Any]
_KEY = "pattern"


@dataclass(frozen=True)
class AttentionMaps:
    """What `attention.safetensors` holds.

    patterns    by layer, float32 (n, heads, T, T), or (n, heads, T, T + 1) with a learned sink; zero where a sequence
                has no position
    why         by layer, why it was kept
    sequences   indices of the n sequences in the corpus, and how many positions each has
    kv_heads    by layer, the KV head that each head reads, or None where each has its own
    """

    patterns: Mapping[int, Array]
    why: Mapping[int, str]
    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    kv_heads: Mapping[int, Sequence[int] | None]
    provenance: Mapping[str, Any]

    def write(self, path: str | Path) -> None:
        layers = [{"layer": layer, "why": why, "kv_heads": self.kv_heads[layer]} for layer, why in self.why.items()]
        maps = {"layers": layers, "sequences": self.sequences, "positions": self.positions}
        patterns = {f"{_KEY}.{layer}": pattern for layer, pattern in self.patterns.items()}
        write_tensors(path, patterns, {**self.provenance, "maps": maps})

    @classmethod
    def read(cls, path: str | Path) -> "AttentionMaps":
        """What `write` left."""
        file = TensorFile(path)
        require_had(file.provenance)
        try:
            maps = file.provenance["maps"]
            layers = {int(layer["layer"]): layer for layer in maps["layers"]}
            sequences, positions = tuple(maps["sequences"]), tuple(maps["positions"])
            why = {layer: str(facts["why"]) for layer, facts in layers.items()}
            kv_heads = {layer: facts["kv_heads"] for layer, facts in layers.items()}
        except (KeyError, TypeError, ValueError, DamagedFile) as error:
            found = error.found if isinstance(error, DamagedFile) else repr(error)
            raise DamagedFile(path, f"expected the attention patterns of a run, found that {found}") from error
        patterns = {layer: file.array(f"{_KEY}.{layer}") for layer in layers}
        return cls(patterns, why, sequences, positions, kv_heads, file.provenance)


def cropped(pattern: Array, size: int) -> Array:
    """The first `size` queries and keys of a pattern (heads, T, K), and its learned sink."""
    length = pattern.shape[1]
    return np.concatenate([pattern[:, :size, :size], pattern[:, :size, length:]], axis=-1)


def largest_by_layer(layers: pl.DataFrame) -> dict[int, float]:
    """Largest abs(x) on resid_post in each layer, from the table of layers; empty where the run lacks that site."""
    rows = layers.filter(population="all", site="resid_post").drop_nulls("max").sort("layer")
    return dict(rows.select("layer", "max").iter_rows())


def layers_of_interest(sinks: pl.DataFrame, magnitudes: Mapping[int, float]) -> dict[int, str]:
    """Layers whose patterns show most of a sink, each with the reason.

    sinks        the table of sinks
    magnitudes   by layer, the largest abs(x) on resid_post

    They are the layer that writes the first residual value of half the largest (the step up of massive activations),
    the next one with attention, which is the first to read it, and the one where the first position is a sink most
    often.
    """
    why: dict[int, list[str]] = {}
    have = set(sinks["layer"].to_list())
    if magnitudes:
        half = max(magnitudes.values()) / 2
        up = next(layer for layer, value in sorted(magnitudes.items()) if value >= half)
        why[up] = ["its MLP or attention writes the first |x| on resid_post of half the largest"]
        after = min((layer for layer in have if layer > up), default=up + 1)
        why[after] = ["its attention is the first to read that |x|"]
    rates = first_key_by_layer(sinks).sort(["sink_rate", "alpha", "layer"], descending=[True, True, False])
    if len(rates):
        why.setdefault(rates["layer"][0], []).append("position 0 has its highest sink rate here")
    return {layer: "; ".join(reasons) for layer, reasons in sorted(why.items()) if layer in have}


def first_key_by_layer(sinks: pl.DataFrame) -> pl.DataFrame:
    """layer, sink_rate and alpha of the key at position 0, mean over heads."""
    return sinks.filter(token=0).group_by("layer").agg(pl.col("sink_rate", "alpha").mean()).sort("layer")


def require_layers(wanted: Sequence[int], have: Sequence[int]) -> None:
    """Raise `ConfigError` where a configured layer has no patterns."""
    missing = sorted(set(wanted) - set(have))
    if missing:
        raise ConfigError(
            f"attention_maps.kept_layers: found {missing[0]}, expected layers with attention patterns, which this "
            f"model has in {', '.join(map(str, have)) or 'none'}"
        )
