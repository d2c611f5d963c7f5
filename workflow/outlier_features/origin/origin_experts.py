"""What the ladder says of an MLP that has no neurons of its own, as one of experts, and of a block without an MLP."""

from collections.abc import Sequence
from typing import Any

from outlier_features.wording import listing


def where_the_ladder_stops(layer: int, rows: Sequence[dict[str, Any]]) -> str | None:
    """A sentence on the checkpoints that the MLP of `layer` lacks, or None; `rows` are its rows of origin.parquet."""
    absent = {row["checkpoint"]: row["absent"] for row in rows if row["absent"]}
    if not absent:
        return None
    left = [row["checkpoint"] for row in rows if not row["absent"]]
    verb, reasons = "is" if len(absent) == 1 else "are", "; ".join(dict.fromkeys(absent.values()))
    has = f"the ladder has {listing(left)} alone" if left else "there is no ladder"
    return f"In layer {layer} {listing(absent)} {verb} absent ({reasons}), so {has}."
