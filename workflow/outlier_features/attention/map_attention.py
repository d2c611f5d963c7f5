"""Rule map_attention: attention sinks of every layer and head, and the patterns of a few layers."""

import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch
import transformers
from tqdm import tqdm

from outlier_features import __version__
from outlier_features.attention.attention_patterns import Attention, LayerPatterns, find_attention, run_patterns
from outlier_features.attention.kept_patterns import AttentionMaps, largest_by_layer, layers_of_interest, require_layers
from outlier_features.attention.sink_counts import SinkCounter
from outlier_features.attention.sinks_schema import SINKS, SinkSample
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.errors import InputError
from outlier_features.files.tables import write_table
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.populations import PADDING
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]


def map_attention(
    source: Path,
    tokens: Path,
    layers: Path,
    sinks: Path,
    maps: Path,
    *,
    sequences: int,
    positions: int,
    threshold: float,
    kept_sequences: int,
    kept_layers: Sequence[int],
    **loading: Unpack[Loading],
) -> None:
    """Run the beginnings of a run's first sequences through the model with eager attention.

    source           the model's source.json
    tokens, layers   the run's tokens.safetensors and layers.parquet
    sequences        at most so many; each is cut to its first `positions` tokens and run by itself, without padding
    threshold        a key is a sink of a head in a sequence if its alpha is above this
    kept_sequences   the first so many leave their patterns
    kept_layers      the layers that leave their patterns; if empty, `kept_patterns.layers_of_interest`

    Writes the table `sinks`, and `maps` with a tensor `pattern.{layer}` float32 (n, heads, T, T), or
    (n, heads, T, T + 1) where the last column is a learned sink. One layer's
    patterns of one sequence are in memory at a time.

    Raises `InputError` where the files are of another run, or the model has no attention patterns.
    """
    run = Tokens.read(tokens)
    layer_rows = run.files.rows(layers, LAYERS)
    model_source = run.files.model(source)
    loading["attention"] = "eager"  # no other hands out its patterns
    loaded = load_model(Path(model_source["location"]), **loading)
    found = find_attention(loaded)
    if not found:
        raise InputError("no layer of this model has attention by softmax weights")
    require_layers(kept_layers, [at.layer for at in found])
    parts = run.parts[:sequences, :positions]
    inputs = [run.tokens[n, : len(part)][part != PADDING] for n, part in enumerate(parts)]
    table = _count(loaded, found, inputs, parts, threshold)
    why = dict.fromkeys(kept_layers, "attention_maps.kept_layers names it")
    why = why or layers_of_interest(table, largest_by_layer(layer_rows))
    kept = [at for at in found if at.layer in why]
    shared = {at.block for at in found if at.call > 0}  # blocks that stand for several layers
    sample = SinkSample(
        threshold=threshold,
        blocks=loaded.blocks,
        positions=parts.shape[1],
        sequences=len(parts),
        short_sequences=sum(len(ids) < parts.shape[1] for ids in inputs),
        layers_without_patterns=sorted(set(range(loaded.blocks)) - {at.layer for at in found}),
    )
    provenance = run.provenance | {
        "model_origin": model_source["origin"],
        "model_revision": model_source["revision"],
        "architecture": loaded.model_type,
        "causal": loaded.causal,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "attention": loaded.attention,
        "threads": [torch.get_num_threads()],
        **sample.kept,
        "patterns_from": sorted(
            {at.path if at.block in shared else at.path.replace(f".{at.layer}.", ".{layer}.") for at in found}
        ),
        "job": uuid.uuid4().hex,
        "package_version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    kept_maps = AttentionMaps(
        patterns=_keep(loaded, kept, inputs[:kept_sequences], parts.shape[1]),
        why={at.layer: why[at.layer] for at in kept},
        sequences=tuple(range(len(inputs[:kept_sequences]))),
        positions=tuple(len(ids) for ids in inputs[:kept_sequences]),
        kv_heads={at.layer: at.kv_heads for at in kept},
        provenance=provenance,
    )
    write_table(sinks, table, SINKS, provenance)
    kept_maps.write(maps)


def _count(
    loaded: LoadedModel, found: Sequence[Attention], inputs: Sequence[Array], parts: Array, threshold: float
) -> pl.DataFrame:
    counter = SinkCounter(parts, threshold)

    def count(patterns: LayerPatterns) -> None:
        at = patterns.attention
        counter.add(at.layer, at.kv_heads, _array(patterns.pattern), patterns.visible.cpu().numpy())

    for ids in tqdm(inputs, desc="attention sinks", unit="sequence", file=sys.stderr):
        run_patterns(loaded, found, _tensor(ids, loaded), count)
    if loaded.dtype != torch.float16:
        counter.require_seen()
    return counter.table()


def _keep(loaded: LoadedModel, kept: Sequence[Attention], inputs: Sequence[Array], length: int) -> dict[int, Array]:
    arrays = {at.layer: np.zeros((len(inputs), at.heads, length, length + at.learned_sink), np.float32) for at in kept}
    for n, ids in enumerate(inputs):

        def keep(patterns: LayerPatterns, n: int = n, size: int = len(ids)) -> None:
            place, values = arrays[patterns.attention.layer][n], _array(patterns.pattern)
            place[:, :size, :size] = values[..., :size]
            place[:, :size, length:] = values[..., size:]

        run_patterns(loaded, kept, _tensor(ids, loaded), keep)
    return arrays


def _tensor(ids: Array, loaded: LoadedModel) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(loaded.device)


def _array(value: torch.Tensor) -> Array:
    return value.float().cpu().numpy()
