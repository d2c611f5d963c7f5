"""The search of a run's model for super weights, which are compared with published ones."""

from pathlib import Path

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights import SuperWeight, search_super_weights, searched
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.tables import write_table
from outlier_features.model.sites import Block
from outlier_features.model.verify_sites import verify_sites
from outlier_features.published import published_super_weights
from outlier_features.tokens.tokens import Tokens


def find_super_weights(
    subject: Subject,
    source: Path,
    tokens: Path,
    dims: Path,
    published: Path,
    super_weights: Path,
    *,
    length: int,
    threshold: float,
    rounds: int,
) -> None:
    """Write `super_weights`, the weights found on the first `length` tokens of the run's first sequence.

    dims        the run's dims.parquet: its provenance says how the model was run
    published   super_weights.csv

    The provenance has `not_searched`: for each reason the blocks that were left out; `published`: the model's published
    weights, once for each source.

    Raises `InputError` where the files are of another run or no block can be searched.
    """
    run = Tokens.read(tokens)
    _, provenance = run.files.table(dims, DIMS)
    listed = published_super_weights(published, run.files.model(source))
    not_searched = _not_searched(subject.blocks)
    verify_sites(subject.loaded, subject.blocks, ["mlp_act", "mlp_down"])
    first = run.head(1, length)
    ids = torch.from_numpy(first.tokens[first.mask][None].astype(np.int64)).to(subject.loaded.device)
    found = search_super_weights(subject, ids, threshold=threshold, rounds=rounds)
    facts = {
        "super_weight": {"threshold": threshold, "rounds": rounds, "tokens": length},
        "not_searched": not_searched,
        "published": listed.select("hub_id", "layer", "row", "col", "source", "certainty").to_dicts(),
    }
    write_table(super_weights, rows_of(found, subject.blocks, listed), SUPER_WEIGHTS, provenance | facts)


def _not_searched(blocks: list[Block]) -> dict[str, list[int]]:
    """For each reason the blocks that cannot be searched; raises `InputError` where that is all of them."""
    reasons: dict[str, list[int]] = {}
    for layer, block in enumerate(blocks):
        if not searched(block):
            reasons.setdefault(block.absent.get("mlp_down") or block.absent["mlp_act"], []).append(layer)
    if sum(map(len, reasons.values())) == len(blocks):
        raise InputError(f"no layer has an MLP whose last linear layer could be searched: {'; '.join(reasons)}")
    return reasons


def rows_of(found: list[SuperWeight], blocks: list[Block], listed: pl.DataFrame) -> pl.DataFrame:
    """The table's rows; `published` says whether a weight is in `listed`, null where that is empty."""
    known = set(listed.select("layer", "row", "col").rows())
    return pl.DataFrame(
        [
            {
                "round": weight.round,
                "layer": weight.layer,
                "module": blocks[weight.layer].sites["mlp_down"].path,
                "row": weight.row,
                "col": weight.col,
                "value": weight.value,
                "mlp_act": weight.mlp_act.value,
                "mlp_act_token": weight.mlp_act.position,
                "mlp_down": weight.mlp_down.value,
                "mlp_down_token": weight.mlp_down.position,
                "published": (weight.layer, weight.row, weight.col) in known if known else None,
            }
            for weight in found
        ],
        schema=SUPER_WEIGHTS.schema,
    )
