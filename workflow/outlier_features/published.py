"""What papers and repositories published, to stand beside a run's own results: `workflow/published/*.csv`."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import polars as pl


def published_super_weights(table: Path, model_source: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of super_weights.csv that are about this model, without those of single experts.

    A model from the hub is known by its id; one in a directory by the directory's name, compared with the ids' last
    part, which is a likeness and no proof: `hub_id` says whose numbers they are.
    """
    rows = pl.read_csv(table, infer_schema_length=None).filter(pl.col("expert").is_null())
    ids, origin = pl.col("hub_id").str.to_lowercase(), str(model_source["origin"]).lower()
    if model_source["kind"] == "hub":
        return rows.filter(ids == origin)
    if model_source["kind"] == "path":
        return rows.filter(ids.str.split("/").list.last() == PurePath(origin).name)
    return rows.clear()
