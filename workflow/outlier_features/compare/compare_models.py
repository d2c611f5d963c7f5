"""Rule compare_models: every run beside the others and beside what was published, a row for each rule and population.

Numbers of dims are compared, never which dims: those of one model mean nothing in another.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.ablate.ablation_effects import position_name
from outlier_features.ablate.ablation_schema import ABLATION_SEQUENCES
from outlier_features.attention.sinks_schema import SINKS
from outlier_features.compare.models_schema import MODELS, PUBLISHED
from outlier_features.compare.published_numbers import (
    MASSIVE,
    SYSTEMATIC,
    WHOLE,
    numbers_of_model,
    published_numbers,
)
from outlier_features.compare.revisions import Revision, revisions_of, same_weights
from outlier_features.compare.rule_numbers import rule_numbers
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.dims import dims_schema
from outlier_features.dims.dims_schema import PAIRS, POSITIONS
from outlier_features.errors import InputError
from outlier_features.extract.loss_schema import LOSS
from outlier_features.files.artifacts import read_json
from outlier_features.files.tables import Table, write_table
from outlier_features.largest import largest_of_each
from outlier_features.model.bases import NORM_OUTPUTS, RESID_POST
from outlier_features.model_name import is_trained
from outlier_features.progress import item_bar
from outlier_features.resampling import DRAWS, LEVEL, SEED, Resampling
from outlier_features.rules.kinds import hit_rules
from outlier_features.rules.massive import Massive
from outlier_features.rules.rule import HitRule
from outlier_features.rules.systematic import Systematic
from outlier_features.stage_log import say
from outlier_features.summary.run_rules import applied_sites
from outlier_features.summary.summarize_run import SUMMARY_KEYS, facts_of, loss_summary
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens
from outlier_features.wording import listing

Row = dict[str, Any]


def compare_models(
    runs: Sequence[Path], published: Path, models: Path, sources: Mapping[str, Path] | None = None
) -> None:
    """Write `models`, a row for each run, rule, sites and population.

    runs        directories `<results>/<model>/<corpus>`
    published   directory of what papers and repositories printed, as CSV
    sources     by name of each model that is a revision, the record of its fetch

    Intervals are of `resampling`. Raises `InputError` where `runs` are no runs, or files belong to different ones.
    """
    numbers = published_numbers(published)
    revisions = revisions_of((run.parent.name for run in runs), sources or {})
    rows = [
        row
        for run in item_bar(runs, "compare", "run")
        for row in _ComparedRun(run, revisions.get(run.parent.name)).rows(numbers)
    ]
    for sentence in same_weights((one.model, one.revision, one.same_weights_as) for one in revisions.values()):
        say(sentence)
    provenance = {
        "runs": [f"{run.parent.name}/{run.name}" for run in runs],
        "draws": DRAWS,
        "seed": SEED,
        "level": LEVEL,
    }
    write_table(models, pl.DataFrame(rows, MODELS.schema), MODELS, provenance)


class _ComparedRun:
    """A run's tables, checked to belong together, and the rows that they make."""

    def __init__(self, directory: Path, revision: Revision | None):
        self._revision = revision
        if not (directory / "summary.json").is_file():
            raise InputError(
                f"{directory}: has no summary.json, expected the directory <results>/<model>/<corpus> of a run"
            )
        self._directory = directory
        self._tokens = Tokens.read(directory / "tokens.safetensors")
        self._summary = read_json(directory / "summary.json", *SUMMARY_KEYS)
        self._tokens.files.require(facts_of(self._summary), directory / "summary.json")
        self._texts = read_texts(directory / "texts.parquet", self._tokens)
        self._layers, self._pairs, self._positions, self._massive = (
            self._table(table) for table in (LAYERS, PAIRS, POSITIONS, dims_schema.MASSIVE)
        )
        self._draws = Resampling(len(self._tokens.tokens))

    def rows(self, numbers: pl.DataFrame) -> Iterator[Row]:
        """Of every rule that could be applied, beside the published `numbers` of the model."""
        summary = self._summary
        model = summary["model"]
        bos = bool(self._tokens.special[:, 0].all())
        known = numbers_of_model(numbers, model["kind"], model["origin"] or "", bos)
        if self._revision and not is_trained(self._revision.revision):
            known = known.clear()
        whole = self._of_run()
        for population, positions in summary["corpus"]["positions"].items():
            here = {"population": population, "positions": positions, **self._over_median(population)}
            for name, rule in hit_rules(summary["rules"]).items():
                if sites := applied_sites(summary, name):
                    row = whole | here | {"rule": name, "sites": "+".join(sites)}
                    row |= self._of_rule(rule, sites, population)
                    if population == "all":
                        row |= self._ablation(name)
                    yield row | _beside(row, known, published_kind(rule) if population == "all" else None)
            for site, found in self._located(population).items():
                yield whole | here | {"rule": summary["location"]["rule"], "sites": site, "dims": found["dims"]}

    def _table(self, table: Table) -> pl.DataFrame:
        return self._tokens.files.rows(self._directory / f"{table.name}.parquet", table)

    def _has(self, analysis: str, table: Table) -> bool:
        return table.name in self._summary["tables"] and analysis not in self._summary["missing"]

    def _located(self, population: str) -> Mapping[str, Any]:
        located: Mapping[str, Any] = self._summary["location"] or {"populations": {}}
        found: Mapping[str, Any] = located["populations"].get(population, {})
        return found

    def _of_run(self) -> Row:
        summary = self._summary
        model, corpus, experts = summary["model"], summary["corpus"], summary["experts"]
        looked_into = "experts" not in summary["missing"] and "experts" in summary["tables"]
        return {
            "run": f"{model['name']}/{corpus['name']}",
            **(vars(self._revision) if self._revision else {"model": model["name"]}),
            "corpus": corpus["name"],
            **{key: model[key] for key in ("origin", "architecture", "parameters", "blocks", "d_model")},
            "active_parameters": (experts["active_parameters"] if experts else model["parameters"])
            if looked_into
            else None,
            "routed_experts": (experts["routed"] if experts else 0) if looked_into else None,
            "super_experts": (len(experts["super_experts"]) if experts else 0) if looked_into else None,
            "dtype": summary["run"]["dtype"],
            "sequences": corpus["sequences"],
            **self._loss(),
            "sink_rate": self._sink_rate(),
            **self._super_weights(),
        }

    def _loss(self) -> Row:
        if not self._has("loss", LOSS):
            return {}
        loss = self._table(LOSS)
        found = loss_summary(loss)
        if found is None:
            return {}
        nll, tokens, size = (loss[name].to_numpy() for name in ("nll", "tokens", "bytes"))
        per_token, per_byte = self._draws.ratios(nll, tokens), self._draws.ratios(nll, size) / np.log(2)
        return {
            **_valued("perplexity", found["perplexity"], self._draws.interval(np.exp(per_token))),
            **_valued("bits_per_byte", found["bits_per_byte"], self._draws.interval(per_byte)),
        }

    def _over_median(self, population: str) -> Row:
        rows = largest_over_median(self._layers, population)
        if rows.is_empty():
            return {}
        layer, value = max(rows.select("layer", "ratio").iter_rows(), key=lambda row: row[1])
        return {"largest_over_median": value, "largest_over_median_layer": layer}

    def _sink_rate(self) -> float | None:
        if not self._has("attention_maps", SINKS):
            return None
        rate = self._table(SINKS).filter(token=0)["sink_rate"].mean()
        return None if rate is None else float(rate)  # type: ignore[arg-type]

    def _of_rule(self, rule: HitRule, sites: Sequence[str], population: str) -> Row:
        pairs = self._pairs.filter(rule=rule.name, population=population)
        layers = self._layers.filter(pl.col("site").is_in(sites), population=population)
        return {
            **rule_numbers(pairs, rule, self._draws),
            "mean_largest": layers["top1"].max(),
            **self._largest(rule, pairs, layers, population),
        }

    def _largest(self, rule: HitRule, pairs: pl.DataFrame, layers: pl.DataFrame, population: str) -> Row:
        """The largest hit, and where it is: from the list of a rule that lists its hits, else where the tables of
        layers and of positions have that very value once."""
        if pairs.is_empty():
            return {}
        if rule.lists_hits:
            listed = self._massive.filter(pl.col(f"massive_{population}"), rule=rule.name)
            at = largest_of_each(listed, "value", "rule").row(0, named=True)
            return {
                "largest": abs(at["value"]),
                **{f"largest_{key}": at[key] for key in ("site", "layer", "dim", "sequence", "token", "token_text")},
            }
        at = largest_of_each(pairs, "max_abs", "rule").row(0, named=True)
        value, dim, sequence = at["max_abs"], at["dim"], at["sequence"]
        found = {"largest": value, "largest_dim": dim, "largest_sequence": sequence}
        places = layers.filter(max=value).select("site", "layer").rows()
        if len(places) != 1:
            return found
        site, layer = places[0]
        tokens = self._positions.filter(population=population, site=site, max_abs=value)["token"].unique().to_list()
        found |= {"largest_site": site, "largest_layer": layer}
        if len(tokens) == 1:
            text = token_text(self._texts, self._tokens, sequence, tokens[0])
            found |= {"largest_token": tokens[0], "largest_token_text": text}
        return found

    def _ablation(self, rule: str) -> Row:
        """The ablation of all the rule's dims that costs most."""
        ablation = self._summary["ablation"]
        mine = [
            one for one in (ablation or {"effects": []})["effects"] if (one["target"], one["rule"]) == ("dims", rule)
        ]
        if not mine:
            return {}
        every = max(one["number"] for one in mine)
        costs = [one for one in mine if one["number"] == every]
        most = max(costs, key=lambda one: float("inf") if one["nll"] is None else one["nll"])
        place = position_name(most["positions"], ablation["only_first_excluded"])
        random = [draw["nll"] for draw in most["random"]]
        base = ablation["effects"][0]["nll"]
        return {
            "ablation": f"{listing(most['site'].split('+'))} to {most['value']} at {place}",
            **self._cost("ablation_nats", most),
            "ablation_random_nats": float(np.mean(random)) - base if random and None not in random else None,
        }

    def _super_weights(self) -> Row:
        found, ablation = self._summary["super_weights"], self._summary["ablation"]
        row: Row = {"super_weights": None if found is None else len(found["found"])}
        weights = [one for one in (ablation or {"effects": []})["effects"] if one["target"] == "weight"]
        return row | (self._cost("super_weights_nats", max(weights, key=lambda one: one["number"])) if weights else {})

    def _cost(self, name: str, effect: Mapping[str, Any]) -> Row:
        """By how many nats a token the loss is above the unchanged model's, over the ablations' sample."""
        rows = self._table(ABLATION_SEQUENCES).sort("variant", "sequence")
        changed, base = rows.filter(variant=effect["variant"]), rows.filter(variant=0)
        if changed["nll"].null_count() or base["nll"].null_count():
            return {}
        more, tokens = (changed["nll"] - base["nll"]).to_numpy(), base["tokens"].to_numpy()
        draws = Resampling(len(tokens))
        return _valued(name, float(more.sum() / tokens.sum()), draws.interval(draws.ratios(more, tokens)))


def largest_over_median(layers: pl.DataFrame, population: str) -> pl.DataFrame:
    """Rows of the table `layers` at resid_post, with `ratio`: largest abs(x) of a sequence over the median, both
    averaged over the sequences. A block whose median is 0 has no row."""
    rows = layers.filter(pl.col("median") > 0, site=RESID_POST, population=population)
    return rows.with_columns(ratio=pl.col("top1") / pl.col("median")).sort("layer")


def published_kind(rule: HitRule) -> str:
    """Which published numbers a rule's may stand beside: those by the same criteria."""
    if isinstance(rule, Systematic):
        same = (rule.scale, rule.threshold, rule.layer_share, rule.position_share) == (None, 6.0, 0.25, 0.06)
        return SYSTEMATIC if same and {*rule.sites} <= {*NORM_OUTPUTS} else WHOLE
    if isinstance(rule, Massive):
        return MASSIVE if (rule.site, rule.threshold, rule.ratio) == ("resid_post", 100.0, 1000.0) else WHOLE
    return WHOLE


def _beside(row: Row, known: pl.DataFrame, kind: str | None) -> Row:
    """The published numbers of a row of population `all`, and by how much the row's are above them."""
    if kind is None:
        return {}
    chosen = known.filter(pl.col("kind").is_in([WHOLE, kind]), pl.col("column").is_in([*PUBLISHED]))
    if chosen.is_empty():
        return {}
    found: Row = {"published_model": chosen["hub_id"][0]}
    for name, value in chosen.select("column", "value").rows():
        own = row.get(name)
        found |= {f"published_{name}": value, f"{name}_difference": None if own is None else own - value}
    counts = chosen.select("column", "counts").rows()
    sources = chosen.group_by("source", "certainty", maintain_order=True).agg("column").rows()
    return found | {
        "published_counts": "; ".join(f"{name}: {what}" for name, what in counts if what),
        "published_source": "; ".join(f"{', '.join(names)}: {where} ({sure})" for where, sure, names in sources),
    }


def _valued(name: str, value: float | None, interval: tuple[float | None, float | None]) -> Row:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}
