"""What figures of the comparison draw: the rows of the table `models`, and what was published, as points."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from outlier_features.compare.compare_models import published_kind
from outlier_features.compare.published_numbers import SYSTEMATIC
from outlier_features.figures.run_points import DENSE, MIXTURE, Point
from outlier_features.model.bases import RESIDUAL
from outlier_features.populations import over_population
from outlier_features.rules.kinds import of_kind
from outlier_features.rules.systematic import Systematic
from outlier_features.summary.run_rules import applied_sites, run_rules
from outlier_features.wording import count, listing, number, percent

_SWEEPS, _INT8 = ("moe_sweep", "qwen3_dense"), ("dettmers2022",)


@dataclass(frozen=True)
class Compared:
    """The runs of a comparison.

    models       rows of the table `models`; of a model with revisions, those of the last one
    training     rows of the table `models` of each revision with a step that no other one stands for
    layers       by run, as `model/corpus`, its table `layers`
    sinks        by run, its table `sinks`, of those that have attention patterns
    systematic   the rules with shares on the residual stream that were applied to a run
    like_published   those of them by the criteria of the published numbers
    numbers      what was published, columns of `published_numbers`
    """

    models: pl.DataFrame
    training: pl.DataFrame
    layers: Mapping[str, pl.DataFrame]
    sinks: Mapping[str, pl.DataFrame]
    systematic: Sequence[str]
    like_published: Sequence[str]
    numbers: pl.DataFrame

    @classmethod
    def of(
        cls,
        models: pl.DataFrame,
        summaries: Sequence[Mapping[str, Any]],
        layers: Mapping[str, pl.DataFrame],
        sinks: Mapping[str, pl.DataFrame],
        numbers: pl.DataFrame,
    ) -> "Compared":
        """`summaries`: of the runs, which say what their rules are."""
        rules: dict[str, Systematic] = {}
        for summary in summaries:
            systematic = of_kind(run_rules(summary), Systematic)
            rules |= {name: rule for name, rule in systematic.items() if applied_sites(summary, name)}
        residual = [name for name, rule in rules.items() if rule.basis == RESIDUAL]
        like_published = [name for name in residual if published_kind(rules[name]) == SYSTEMATIC]
        training = models.filter(pl.col("step").is_not_null(), pl.col("same_weights_as").is_null())
        return cls(_of_last_revisions(models), training, layers, sinks, residual, like_published, numbers)

    @property
    def populations(self) -> list[str]:
        return self.models["population"].unique(maintain_order=True).to_list()

    def sites_of(self, rules: Sequence[str]) -> str:
        sites = self.models.filter(pl.col("rule").is_in(rules))["sites"].unique(maintain_order=True)
        return "; ".join(one.replace("+", " + ") for one in sites) or "none"

    @cached_property
    def _names(self) -> dict[str, str]:
        """By run what it is called: the model, with the corpus where there are several."""
        runs = self.models["run"].unique(maintain_order=True)
        return {run: run if self._several_corpora else run.rpartition("/")[0] for run in runs}

    @property
    def _several_corpora(self) -> bool:
        return self.models["corpus"].n_unique() > 1

    def trained_name(self, model: str, corpus: str) -> str:
        """What all revisions of a model on a corpus together are called."""
        return f"{model}/{corpus}" if self._several_corpora else model

    @property
    def of_revisions(self) -> str:
        """A sentence on which revisions are left out of `models`."""
        several = self.models["revision"].is_not_null().any()
        return " Of a model's revisions one is drawn: main, or the one of the latest step." if several else ""

    def blocks(self, run: str) -> int:
        return int(self.models.filter(run=run)["blocks"][0])

    def name(self, run: str) -> str:
        return self._names[run]

    def points(self, rule: str, population: str, kind: str | None, across: str, up: str, *, sweep: bool) -> list[Point]:
        """Of each run, and in population `all` of each published model, of a kind or of any, that has both numbers.

        sweep   published numbers are those of sweeps, else those of LLM.int8()
        """
        rows = self.models.filter(pl.col(across) > 0, pl.col(up).is_not_null(), rule=rule, population=population)
        own = [
            Point(
                self.name(row["run"]), kind_of(row), row[across], row[up], row.get(f"{up}_low"), row.get(f"{up}_high")
            )
            for row in rows.iter_rows(named=True)
        ]
        others = []
        if population == "all" and rule in self.like_published:
            others = self._published(across, up, _SWEEPS if sweep else _INT8)
        return [point for point in (*own, *others) if kind in (None, point.kind)]

    def _published(self, across: str, up: str, files: Sequence[str]) -> list[Point]:
        """Those of models that have a run here bear no name of their own."""
        run_here = {origin.lower() for origin in self.models["origin"].drop_nulls()}
        points = []
        for (file, model), rows in self.numbers.filter(pl.col("file").is_in(files)).group_by(
            "file", "model", maintain_order=True
        ):
            values: dict[str, Any] = dict(rows.select("column", "value").iter_rows())
            kind = MIXTURE if file == "moe_sweep" else DENSE
            if kind == DENSE and "parameters" in values:
                values.setdefault("active_parameters", values["parameters"])
            hub_id = rows["hub_id"].drop_nulls().to_list()
            if across in values and up in values:
                named = not hub_id or hub_id[0].lower() not in run_here
                points.append(Point(str(model), kind, values[across], values[up], published=True, named=named))
        return points

    def lacking(self, column: str, rules: Sequence[str]) -> str:
        """The runs, with the rules, that have no number in a column in any population; empty where there is none."""
        rows = self.models.filter(pl.col("rule").is_in(rules))
        null = rows.group_by("run", "rule", maintain_order=True).agg(pl.col(column).is_null().all())
        runs: dict[str, list[str]] = {}
        for run, rule in null.filter(pl.col(column)).select("run", "rule").iter_rows():
            runs.setdefault(run, []).append(rule)
        return listing(f"{self.name(run)} (rule {listing(its)})" for run, its in runs.items())

    def left_out(self, *columns: str) -> str:
        """Sentences about runs that are not drawn since a number is not known, and about kinds that are not."""
        runs = self.models.unique("run", keep="first", maintain_order=True)
        lacking = sum(any(row[name] is None for name in columns) for row in runs.iter_rows(named=True))
        unknown = runs["routed_experts"].null_count()
        said = f" Not drawn: {count(lacking, 'run')} without such a number." if lacking else ""
        if unknown:
            verb = "is" if unknown == 1 else "are"
            said += (
                f" Among the dense models {verb} {count(unknown, 'run')} whose experts, if any, were not looked into."
            )
        return said + self.of_revisions


_COUNTED = {
    "layer_share": ("layer share", percent), "position_share": ("position share", percent),
    "magnitude": ("median magnitude", number), "dims": ("number of dims", number),
}  # fmt: skip


def range_of_runs(
    compared: Compared, columns: Sequence[str], rule: str, across: tuple[str, str, Callable[[float], str]] | None = None
) -> str:
    """From which run to which numbers of a rule reach, in the first population.

    across   the column that they are drawn over, what it is called and its words; of the runs that have it
    """
    population = compared.populations[0]
    rows = compared.models.filter(rule=rule, population=population)
    over = f", against {across[1]}" if across else ""
    if across:
        rows = rows.filter(pl.col(across[0]) > 0)

    def named(row: Mapping[str, Any]) -> str:
        return compared.name(row["run"]) + (f", {across[2](row[across[0]])}" if across else "")

    said = []
    for column in columns:
        known = rows.filter(pl.col(column).is_not_null()).sort(column)
        if known.is_empty():
            continue
        noun, words = next(value for key, value in _COUNTED.items() if key in column)
        least, most = known.row(0, named=True), known.row(-1, named=True)
        if len(known) == 1:
            said.append(f"{noun} {words(most[column])} ({named(most)})")
        else:
            low, high = words(least[column]), words(most[column])
            said.append(f"{noun} from {low} ({named(least)}) to {high} ({named(most)})")
    return f"By rule {rule} {over_population(population)}{over}: {'; '.join(said)}." if said else ""


def _of_last_revisions(models: pl.DataFrame) -> pl.DataFrame:
    """`models` with one revision of each model: main, else the one of the latest step, else the last that is named."""
    runs = models.unique("run", keep="first", maintain_order=True).filter(pl.col("revision").is_not_null())
    last = runs.sort((pl.col("revision") == "main"), pl.col("step").fill_null(-1), maintain_order=True).unique(
        ["model", "corpus"], keep="last"
    )  # fmt: skip
    return models.filter(pl.col("revision").is_null() | pl.col("run").is_in(last["run"].implode()))


def kind_of(row: Mapping[str, Any]) -> str:
    return MIXTURE if row["routed_experts"] else DENSE
