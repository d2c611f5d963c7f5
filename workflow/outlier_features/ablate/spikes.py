"""Both sides of each MLP's last linear layer in one pass: the largest value that it reads, and that it writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.knock_out_schema import SPIKES
from outlier_features.ablate.super_weights import down_projection, searched, spike_of
from outlier_features.model.interventions import weight_at
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block, hooked
from outlier_features.tokens.tokens import Tokens


def spikes_of(
    loaded: LoadedModel, blocks: Sequence[Block], sample: Tokens, found: pl.DataFrame, rule: Mapping[str, Any]
) -> pl.DataFrame:
    """The rows of `SPIKES` from one sequence; `found` by the search for super weights with the numbers of `rule`."""
    ids = torch.from_numpy(sample.tokens[sample.mask][None].astype(np.int64)).to(loaded.device)
    spikes = {}

    def keep(key: tuple[int, str], x: torch.Tensor) -> None:
        spikes[key] = spike_of(key, x)

    layers = [layer for layer, block in enumerate(blocks) if searched(block)]
    sites = [((layer, name), blocks[layer].sites[name]) for layer in layers for name in ("mlp_act", "mlp_down")]
    with torch.inference_mode(), hooked(sites, keep):
        loaded.base(ids)
    known = set(found.select("layer", "row", "col").rows())
    rows = []
    for layer in layers:
        act, down = spikes[layer, "mlp_act"], spikes[layer, "mlp_down"]
        rows.append({
            "layer": layer, "mlp_act": act.value, "mlp_act_token": act.position, "col": act.dim,
            "mlp_down": down.value, "mlp_down_token": down.position, "row": down.dim,
            "weight": weight_at(down_projection(list(blocks), layer), down.dim, act.dim),
            "spikes": min(abs(act.value), abs(down.value)) > rule["threshold"],
            "found": (layer, down.dim, act.dim) in known,
        })  # fmt: skip
    return pl.DataFrame(rows, schema=SPIKES.schema)
