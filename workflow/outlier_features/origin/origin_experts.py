"""What the ladder says of an MLP that has no neurons of its own, since it hands each token to some of its experts."""

from collections.abc import Sequence
from typing import Any

from outlier_features.wording import listing


def where_the_ladder_stops(layer: int, rows: Sequence[dict[str, Any]]) -> str | None:
    """A sentence on the checkpoints that the MLP of `layer` lacks, or None; `rows` are its rows of origin.parquet."""
    absent = {row["checkpoint"]: row["absent"] for row in rows if row["absent"]}
    if not absent:
        return None
    left = listing(row["checkpoint"] for row in rows if not row["absent"]) or "nothing"
    verb, reasons = "is" if len(absent) == 1 else "are", "; ".join(dict.fromkeys(absent.values()))
    return f"In layer {layer} {listing(absent)} {verb} absent ({reasons}), so the ladder has {left} alone."
