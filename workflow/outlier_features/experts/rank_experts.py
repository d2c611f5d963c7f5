"""Rule rank_experts: what each expert of a mixture-of-experts model writes, and which experts make massive activations.

Super experts: Su et al. 2025, "Unveiling Super Experts in Mixture-of-Experts Large Language Models", arXiv 2507.23279;
what their code does otherwise (flags `*_code`) is that of `ZunhaiSu/Super-Experts-Profilling@573aead:eval_utils.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl

from outlier_features import __version__
from outlier_features.dims.dims_schema import DIMS, MASSIVE
from outlier_features.errors import InputError
from outlier_features.experts.experts_schema import EXPERT_BALANCE, EXPERT_LOAD, EXPERTS, ROUTING, Ranking
from outlier_features.files.artifacts import read_json, require_equal
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.largest import largest_of_each
from outlier_features.model.loading import Loading
from outlier_features.populations import population_sizes
from outlier_features.rules.kinds import listing_rules
from outlier_features.tokens.tokens import Tokens

FIRST_LAYERS = 0.75  # of the blocks: the third condition in the paper's code
FORMING_SHARE = 0.1  # of a massive activation, that a layer's mlp_out must give it to take part in forming it
MAX_TARGETS = 32
FLAGS = (
    "above_percentile", "above_tenth", "forms_massive", "first_three_quarters", "super_expert",
    "above_percentile_code", "above_tenth_code", "first_three_quarters_code", "super_expert_code",
)  # fmt: skip


def rank_experts(
    source: Path,
    tokens: Path,
    massive: Path,
    dims: Path,
    published: Path,
    experts: Path,
    routing: Path,
    expert_load: Path,
    expert_balance: Path,
    *,
    sequences: int,
    percentile: float,
    share: float,
    **loading: Unpack[Loading],
) -> None:
    """Write `experts`, the maxima of every expert over the run's first `sequences`; `routing`, the experts' parts of
    the largest massive activation of each dim; and how the routers spread the positions of these sequences,
    `expert_load` by expert and `expert_balance` by layer. All are empty where the model has no experts; their
    provenance has `Ranking`.

    source      the model's source.json
    published   CSV of super experts that were published, by the model's hub id
    percentile  of the routed experts' maxima, and `share` of the largest of them, that a super expert is above

    Raises `InputError` where the files belong to different runs, the model cannot be used, what its experts write
    cannot be recorded, or the parts of an activation do not sum to it.
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    massive_rows = run.files.rows(massive, MASSIVE)
    model = run.files.model(source)
    require_equal({"dtype": loading["dtype"]}, provenance, ("dtype",), dims)
    ranked = range(min(sequences, len(run.tokens)))
    listing = pl.col("rule").is_in(listing_rules(provenance["rules"]))
    targets = massive_targets(massive_rows.filter(listing), dim_rows.filter(listing))
    recorded = None
    if names_experts(Path(model["location"])):
        # Not at the top: a model without experts is done before torch would be imported.
        from outlier_features.experts.record_experts import record_model

        recorded = record_model(
            Path(model["location"]),
            run,
            ranked=ranked,
            locations=[target.location for target in targets],
            **loading,
        )
    if recorded and recorded.absent:
        raise InputError(recorded.absent)
    active = recorded.active_parameters if recorded else provenance["parameters"]
    ranking = Ranking(recorded is not None, len(ranked), len(targets), active)
    provenance |= {**ranking.kept, "package_version": __version__}
    if recorded is None:
        ranks, parts = pl.DataFrame(schema=EXPERTS.schema), pl.DataFrame(schema=ROUTING.schema)
        load, balance = pl.DataFrame(schema=EXPERT_LOAD.schema), pl.DataFrame(schema=EXPERT_BALANCE.schema)
    else:
        # Not at the top, as above.
        from outlier_features.experts.expert_load import balance_rows, load_rows

        positions = {name: int(size[ranked].sum()) for name, size in population_sizes(run.parts).items()}
        load = load_rows(recorded.counts, positions)
        balance = balance_rows(load, positions)
        parts = routing_of(recorded.parts, targets)
        forming = set(parts.filter("forms_massive")["layer"])
        ranks = with_flags(recorded.maxima, forming, provenance["blocks"], percentile, share)
        ranks = with_published(ranks, pl.read_csv(published, infer_schema_length=None), model["origin"])
    write_table(experts, ranks, EXPERTS, provenance)
    write_table(routing, parts, ROUTING, provenance)
    write_table(expert_load, load, EXPERT_LOAD, provenance)
    write_table(expert_balance, balance, EXPERT_BALANCE, provenance)


def names_experts(location: Path) -> bool:
    """Whether a model's config or the names of its weights speak of experts; only then is it loaded and looked into."""
    if _counts_experts(read_json(location / "config.json")):
        return True
    return any("expert" in name for path in location.glob("*.safetensors") for name in TensorFile(path).entries)


def _counts_experts(config: Any) -> bool:
    """Whether a key about experts, at any depth, has a number above 1 (num_experts, n_routed_experts, ...)."""
    if not isinstance(config, Mapping):
        return False
    return any(
        _counts_experts(value) or ("expert" in key and isinstance(value, int) and value > 1)
        for key, value in config.items()
    )


@dataclass(frozen=True)
class LargestActivation:
    """The largest massive activation of a dim, and the block where the dim steps up."""

    sequence: int
    position: int
    dim: int
    layer: int
    value: float
    step_up: int | None

    @property
    def location(self) -> tuple[int, int, int]:
        return self.sequence, self.position, self.dim


def massive_targets(massive: pl.DataFrame, dims: pl.DataFrame) -> list[LargestActivation]:
    """For each dim with a massive activation its largest, in order of magnitude; at most `MAX_TARGETS`.

    massive, dims   rows of the rules that list massive activations
    """
    largest = largest_of_each(massive, "value", "dim")
    steps = {
        (population, dim): step
        for population, dim, step in dims.filter("selected").select("population", "dim", "step_up").iter_rows()
    }
    return [
        LargestActivation(
            row["sequence"],
            row["token"],
            row["dim"],
            row["layer"],
            row["value"],
            steps.get(("all" if row["massive_all"] else "without_first", row["dim"])),
        )
        for row in largest.head(MAX_TARGETS).iter_rows(named=True)
    ]


def routing_of(parts: pl.DataFrame, targets: list[LargestActivation]) -> pl.DataFrame:
    """The parts of the layers that form each target's activation, and of the layer where its dim steps up.

    parts   columns `record_experts.PARTS`

    A layer forms an activation if, up to the layer where it is largest, its `mlp_out` there has its sign and at least
    `FORMING_SHARE` of its magnitude.
    """
    rows = [
        {"sequence": t.sequence, "token": t.position, "dim": t.dim, "largest": t.layer, "activation": t.value,
         "step_up": t.step_up}
        for t in targets
    ]  # fmt: skip
    schema = {"sequence": pl.UInt32, "token": pl.UInt32, "dim": pl.UInt32, "largest": pl.UInt16,
              "activation": pl.Float64, "step_up": pl.UInt16}  # fmt: skip
    joined = parts.join(pl.DataFrame(rows, schema=schema), on=["sequence", "token", "dim"], how="inner")
    return (
        joined.with_columns(
            forms_massive=(pl.col("mlp_out") / pl.col("activation") >= FORMING_SHARE)
            & (pl.col("layer") <= pl.col("largest")),
            steps_up=(pl.col("layer") == pl.col("step_up")).fill_null(False),
            share=pl.col("weighted") / pl.col("whole"),
        )
        .filter(pl.col("forms_massive") | pl.col("steps_up"))
        .sort(
            [pl.col("activation").abs(), "dim", "layer", pl.col("weighted").abs(), "expert"],
            descending=[True, False, False, True, False],
        )
        .pipe(ROUTING.cast)
    )


def with_flags(
    maxima: pl.DataFrame, forming: set[int], blocks: int, percentile: float = 99.5, share: float = 0.1
) -> pl.DataFrame:
    """The maxima of all experts with the conditions of `super_expert`, as the paper states them and as its code does.

    maxima    columns `record_experts.MAXIMA`
    forming   layers that form massive activations
    blocks    of the model, dense ones included

    As the paper states them, percentile and maximum are those of the routed experts that any token chose; a shared
    expert is compared with the same two numbers. As its code has them (`*_code`), they are those of all experts, the
    shared ones too, of the first three quarters of the blocks, where an expert that no token chose counts as 0. Such an
    expert has no flags.
    """
    first = round(FIRST_LAYERS * blocks)  # half to even, as in their code
    known = maxima.filter(pl.col("part") == "expert")["max_abs"].drop_nulls().to_numpy()
    early = maxima.filter(pl.col("layer") < first)["max_abs"].fill_null(0).to_numpy()
    bound, largest = (np.percentile(known, percentile), known.max()) if len(known) else (np.inf, np.inf)
    bound_code, largest_code = (np.percentile(early, percentile), early.max()) if len(early) else (np.inf, np.inf)
    chosen = pl.col("max_abs").is_not_null()
    conditions = {
        "above_percentile": pl.col("max_abs") > bound,
        "above_tenth": pl.col("max_abs") > share * largest,
        "forms_massive": pl.col("layer").is_in(list(forming)),
        "first_three_quarters": pl.col("layer") < FIRST_LAYERS * blocks,
        "above_percentile_code": pl.col("max_abs") > bound_code,
        "above_tenth_code": pl.col("max_abs") > largest_code // 10,
        "first_three_quarters_code": pl.col("layer") < first,
    }
    flagged = maxima.with_columns(**{name: pl.when(chosen).then(holds) for name, holds in conditions.items()})
    return flagged.with_columns(
        super_expert=pl.col("above_percentile") & pl.col("above_tenth") & pl.col("forms_massive"),
        super_expert_code=pl.col("above_percentile_code")
        & pl.col("above_tenth_code")
        & pl.col("first_three_quarters_code"),
    )


def with_published(experts: pl.DataFrame, published: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Whether each expert was published as a super expert of this model; null if the model was not, or if the
    publication does not say from which number its layers count.

    origin   the model's hub id, if it came from the hub
    """
    rows = published.filter(pl.col("quantity") == "super_expert", pl.col("hub_id") == origin)
    if rows.is_empty() or rows["layer_base"].null_count():
        return experts.with_columns(published=pl.lit(None, pl.Boolean))
    named = rows.select(
        layer=(pl.col("layer") - pl.col("layer_base")).cast(pl.UInt16),
        part=pl.when(pl.col("expert_kind") == "shared").then(pl.lit("shared")).otherwise(pl.lit("expert")),
        expert=pl.col("expert").cast(pl.UInt16),
        published=pl.lit(True),
    )
    joined = experts.join(named, on=["layer", "part", "expert"], how="left", nulls_equal=True, maintain_order="left")
    return joined.with_columns(pl.col("published").fill_null(False))
