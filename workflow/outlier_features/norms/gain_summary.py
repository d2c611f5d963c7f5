"""What the tables of norms and gains come to, and the sentences that say it."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_features.dim_marks import Sentence, dim_mark
from outlier_features.norms.describe_gains import all_exactly_one
from outlier_features.wording import count, number

Part = Mapping[str, Any]
NOTABLE = 2.0  # times larger or smaller than the others' median


def gain_summary(norms: pl.DataFrame, gains: pl.DataFrame) -> dict[str, Any]:
    """Counts of the norms, whether all gains are exactly 1, and for each selected dim its extremes over the blocks.

    `dims` has the dims in the order of their smallest ratio; only norms that make a site of a block are looked at.
    """
    with_gain = norms.filter(pl.col("min").is_not_null())
    placed = gains.drop_nulls(["site", "layer", "ratio"]).unique(["dim", "module"], maintain_order=True)
    return {
        "norms": len(norms),
        "with_gain": len(with_gain),
        "undecided": int(norms["parameterization"].is_null().sum()),
        "all_one": int(norms["all_one"].sum()),
        "all_exactly_one": all_exactly_one(norms.to_dicts()),
        "gains": int(with_gain["size"].sum()),
        "gains_exactly_one": int(with_gain["exactly_one"].sum()),
        "dims": [
            {"dim": dim, "smallest": _extreme(rows, descending=False), "largest": _extreme(rows, descending=True)}
            for (dim,), rows in placed.sort("ratio", "dim").group_by("dim", maintain_order=True)
        ],
    }


def _extreme(rows: pl.DataFrame, descending: bool) -> dict[str, Any]:
    """Where the ratio is smallest, or largest; of equal ones in the first layer."""
    ordered = rows.sort(["ratio", "layer", "module"], descending=[descending, False, False])
    return ordered.select("site", "layer", "gain", "ratio", "rank", "size").row(0, named=True)


def ones_sentence(norms: Part) -> str:
    """The answer to whether all gains are exactly 1."""
    all_norms = count(norms["norms"], "norm")
    if not norms["norms"]:
        return "No norm was found."
    if not norms["with_gain"] and not norms["undecided"]:
        return f"None of the {all_norms} has a gain."
    if norms["all_exactly_one"]:
        return f"All gains of the norms are exactly 1 ({norms['gains']:,} gains of {all_norms})."
    answer = "Not" if norms["all_exactly_one"] is False else "It is not known whether"
    undecided = f" The gain of {count(norms['undecided'], 'norm')} could not be told." if norms["undecided"] else ""
    return (
        f"{answer} all gains of the norms are exactly 1: {norms['gains_exactly_one']:,} of {norms['gains']:,} gains "
        f"are 1, and in {norms['all_one']:,} of {all_norms} all are.{undecided}"
    )


def is_notable(row: Part) -> bool:
    """Whether a dim's gain is anywhere far from the others' median."""
    return bool(row["smallest"]["ratio"] <= 1 / NOTABLE or row["largest"]["ratio"] >= NOTABLE)


def dim_sentence(row: Part) -> Sentence:
    """Where a dim's gain is smallest and where it is largest, against the others' median."""
    least, most = (
        f"{number(one['ratio'])} on {one['site'].replace('+', ' = ')} in layer {one['layer']} (rank {one['rank']:,} of "
        f"{one['size']:,})"
        for one in (row["smallest"], row["largest"])
    )
    return Sentence(
        f"Gain of dimension {dim_mark(row['dim'])}, as |gain| / median |gain| of the unselected dimensions: "
        f"smallest {least}, largest {most}."
    )
