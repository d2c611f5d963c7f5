"""The tables that rules check_norms and check_dump_norms write."""

import polars as pl

from outlier_features.files.columns import DIM, POPULATION, RULE
from outlier_features.files.tables import Column, Table

NORMS = Table(
    "norms",
    "norm of the model that runs on text, in the model's order",
    (
        Column("module", pl.String, "path of the norm in the model"),
        Column("site", pl.String, "the sites that its output is, joined by `+`; null if it is none"),
        Column("layer", pl.UInt16, "index of the block that it lies in, from 0; null outside the blocks"),
        Column("residual", pl.Boolean, "its dims are those of the residual stream: its output is a site, or it lies "
               "outside the blocks and is d_model wide"),
        Column("kind", pl.String, "`rms`: divides by the root mean square; `layer`: takes the mean off first; null if "
               "undecided"),
        Column("parameterization", pl.String, "what the input is multiplied by, decided on a probe: `w`, `1 + w`, or "
               "`none`; null if undecided"),
        Column("reason", pl.String, "why kind or parameterization is undecided, else null"),
        Column("tensor", pl.String, "the checkpoint's tensor that holds w; null if none of that name has its values"),
        Column("shape", pl.String, "shape of w; null without one"),
        Column("size", pl.UInt32, "gains; of a norm without any, the values that are normalised together", "gains"),
        Column("dtype", pl.String, "in which the checkpoint holds w"),
        Column("exactly_one", pl.Int64, "gains that are exactly 1, told by the stored w", "gains"),
        Column("all_one", pl.Boolean, "every gain is exactly 1; null if there is none, or the form is undecided"),
        *(Column(name, pl.Float64, f"{name} of the gain (w, or 1 + w) over all dims")
          for name in ("min", "max", "mean", "median")),
        Column("bias_max_abs", pl.Float64, "largest abs(bias); null without one", "activation"),
        *(Column(f"others_{name}", pl.Float64, f"{meaning} of abs(gain) over the other dims: those that no "
                 "rule that is followed up selects in either population; null if not `residual`")
          for name, meaning in (("min", "minimum"), ("p05", "5 % quantile"), ("median", "median"),
                                ("p95", "95 % quantile"), ("max", "maximum"))),
    ),
)  # fmt: skip

GAINS = Table(
    "gains",
    "population, rule, dim, module: every dim that a rule that is followed up selects, at every norm of residual dims",
    (
        POPULATION, RULE, DIM,
        Column("module", pl.String, "path of the norm in the model"),
        Column("site", pl.String, "the sites that its output is, joined by `+`; null if it is none"),
        Column("layer", pl.UInt16, "index of the block that it lies in, from 0; null outside the blocks"),
        Column("gain", pl.Float64, "the gain at the dim (w, or 1 + w), signed"),
        Column("rank", pl.UInt32, "rank of abs(gain) among all dims, 1 the largest; equal ones share it"),
        Column("size", pl.UInt32, "dims of the norm", "dims"),
        Column("ratio", pl.Float64, "abs(gain) / `others_median` of norms.parquet; null if that is null or 0"),
    ),
)  # fmt: skip
