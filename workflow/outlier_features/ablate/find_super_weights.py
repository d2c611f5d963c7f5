"""Rule find_super_weights: search a model for super weights, and compare them with published ones."""

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.super_weights import SuperWeight, search_super_weights, searched
from outlier_features.errors import InputError
from outlier_features.files.artifacts import require_equal
from outlier_features.files.model_source import source_of
from outlier_features.files.tables import LOSS, SUPER_WEIGHTS, read_table, write_table
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.sites import Block, find_sites
from outlier_features.model.verify_sites import verify_sites
from outlier_features.published import published_super_weights
from outlier_features.tokens.tokens import Tokens


def find_super_weights(
    source: Path,
    tokens: Path,
    loss: Path,
    published: Path,
    super_weights: Path,
    *,
    sequences: int,
    length: int,
    threshold: float,
    rounds: int,
    **loading: Unpack[Loading],
) -> None:
    """Write `super_weights`, the weights found on the first `length` tokens of the run's first sequence.

    loss        the run's loss.parquet: its provenance says how the model was run
    published   super_weights.csv
    sequences   0: do not search

    The provenance has `unsearched`: why nothing at all was searched, or null; `not_searched`: for each reason the
    blocks that were left out; `published`: the model's published weights, once for each source.
    """
    corpus = Tokens.read(tokens)
    _, provenance = read_table(loss, LOSS)
    require_equal(corpus.provenance, provenance, ("tokens_sha256", "model", "corpus"), loss)
    model_source = source_of(source)
    listed = published_super_weights(published, model_source)
    facts: dict[str, Any] = {
        "super_weight": {"threshold": threshold, "rounds": rounds, "tokens": length},
        "unsearched": None,
        "not_searched": {},
        "published": listed.select("hub_id", "layer", "row", "col", "source", "certainty").to_dicts(),
    }
    found: list[SuperWeight] = []
    blocks: list[Block] = []
    if not sequences:
        facts["unsearched"] = "ablate.sequences is 0"
    else:
        loaded = load_model(Path(model_source["location"]), **loading)
        blocks = find_sites(loaded)
        facts |= _obstacles(loaded, blocks)
        if not facts["unsearched"]:
            first = corpus.head(1, length)
            ids = torch.from_numpy(first.tokens[first.mask][None].astype(np.int64)).to(loaded.device)
            found = search_super_weights(loaded, blocks, ids, threshold=threshold, rounds=rounds)
    write_table(super_weights, rows_of(found, blocks, listed), SUPER_WEIGHTS, provenance | facts)


def _obstacles(loaded: LoadedModel, blocks: list[Block]) -> dict[str, Any]:
    """What cannot be searched, and why; a site that is not what it should be is no reason to stop the run."""
    reasons: dict[str, list[int]] = {}
    for layer, block in enumerate(blocks):
        if not searched(block):
            reasons.setdefault(block.absent.get("mlp_down") or block.absent["mlp_act"], []).append(layer)
    whole: str | None = next((reason for reason, layers in reasons.items() if len(layers) == len(blocks)), None)
    try:
        verify_sites(loaded, blocks, ["mlp_act", "mlp_down"])
    except InputError as error:
        whole = str(error)
    return {"unsearched": whole, "not_searched": reasons}


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
                "mlp_act_token": weight.mlp_act.token,
                "mlp_down": weight.mlp_down.value,
                "mlp_down_token": weight.mlp_down.token,
                "published": (weight.layer, weight.row, weight.col) in known if known else None,
            }
            for weight in found
        ],
        schema=SUPER_WEIGHTS.schema,
    )
