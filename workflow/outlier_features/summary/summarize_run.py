"""Rule summarize_run: what was found, in one JSON file; the report's first page says it in words."""

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.ablate.ablation_effects import ablation_effects
from outlier_features.ablate.ablation_schema import ABLATION, ABLATION_SEQUENCES
from outlier_features.ablate.expert_ablation_schema import EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES
from outlier_features.ablate.knock_out_schema import KNOCK_OUT_DIMS, KNOCK_OUTS
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.dims.dims_schema import DIMS, MASSIVE, PAIRS
from outlier_features.errors import InputError
from outlier_features.experts.experts_schema import EXPERT_BALANCE, EXPERTS, ROUTING, Ranking
from outlier_features.experts.summarize_experts import experts_summary
from outlier_features.extract.loss_schema import LOSS
from outlier_features.files.artifacts import Provenance, read_json, write_json
from outlier_features.files.missing import ANALYSES, MISSING, missing_sentence
from outlier_features.files.model_source import record_of
from outlier_features.files.run_files import RunFiles
from outlier_features.files.tables import Table, provenance_of, public_tables
from outlier_features.largest import largest_of_each
from outlier_features.model.bases import RESIDUAL
from outlier_features.norms.gain_summary import gain_summary
from outlier_features.norms.norms_schema import GAINS, NORMS
from outlier_features.populations import population_sizes, populations_of
from outlier_features.quantize.loss_schema import PREFIX_TRIAL, QUANTIZATION_LOSS, QUANTIZATION_SIGNALS
from outlier_features.quantize.quantization_schema import QUANTIZATION, WEIGHT_OUTLIERS
from outlier_features.rules.kinds import applied_sites, hit_rules
from outlier_features.summary.knock_out_facts import knock_outs_summary
from outlier_features.summary.quantization_facts import quantization_summary
from outlier_features.summary.quantization_loss_facts import quantization_loss_summary
from outlier_features.tokens.tokens import Tokens

SUMMARY_KEYS = ("model", "corpus", "run", "sites", "rules", "tables", "missing", "populations")
RUN_FACTS = ("dtype", "device", "attention", "package_version", "torch", "transformers")
PASS_FACTS = ("threads", "placement", "quantized")  # of a pass of a model, which a dump does not know
LOCATION_KEYS = ("rule", "model", "corpus", "tokens_sha256", "populations")
# Of a selected dim, as they stand in dims.parquet.
DIM_COLUMNS = ("dim", "kind", "sequences_passing", "sequences", "blocks_mean", "sites_share_mean", "union_mean",
               "first_layer", "last_layer", "step_up", "step_down", "max_abs", "one_sided")  # fmt: skip
TOP = 5  # dims of rule `location`


def summarize_run(
    tokens: Path,
    model_source: Path,
    corpus_source: Path | None,
    tables: Mapping[str, Path],
    summary: Path,
    *,
    strict: bool = False,
) -> None:
    """Write `summary`: model, corpus, sites, and for each population and rule its counts, dims and extremes.

    corpus_source   None for a dump
    tables          the run's tables by name; a run of a dump lacks those that need the model

    `missing` has the analyses that could not be had or were left out, and why (`missing.Missing`); the parts of the
    summary that are theirs are null. Raises `InputError` where files belong to different runs, and with `strict` where
    an analysis could not be had.
    """
    run = Tokens.read(tokens)
    pair_rows, provenance = run.files.table(tables["pairs"], PAIRS)

    def checked(table: Table) -> tuple[pl.DataFrame, Provenance]:
        return run.files.table(tables[table.name], table)

    def rows(table: Table) -> pl.DataFrame:
        return run.files.rows(tables[table.name], table)

    missing = _missing(tables, run.files)
    if strict:
        _require_none(missing, provenance)
    had = [name for name in tables if name not in missing]
    layer_rows, dim_rows, massive_rows = rows(LAYERS), rows(DIMS), rows(MASSIVE)
    experts = ablation = pruning = knocked = quantization = quantized_model = None
    if "experts" in had:
        expert_rows, facts = checked(EXPERTS)
        experts = experts_summary(expert_rows, rows(ROUTING), rows(EXPERT_BALANCE), massive_rows, Ranking.of(facts))
    if "ablation" in had:
        ablation_rows, facts = checked(ABLATION)
        ablation = {**facts["ablate"], "effects": ablation_effects(ablation_rows, rows(ABLATION_SEQUENCES))}
    if "expert_ablation" in had:
        pruning_rows, facts = checked(EXPERT_ABLATION)
        effects = ablation_effects(pruning_rows, rows(EXPERT_ABLATION_SEQUENCES))
        pruning = {**facts["pruning"], "effects": effects}
    if "knock_outs" in had:
        knocked_rows, facts = checked(KNOCK_OUTS)
        knocked = knock_outs_summary(knocked_rows, rows(KNOCK_OUT_DIMS), facts["knock_out"])
    if "quantization" in had:
        rounded, facts = checked(QUANTIZATION)
        outliers = rows(WEIGHT_OUTLIERS) if "weight_outliers" in tables else None
        quantization = quantization_summary(rounded, outliers, facts["quantize"])
    if "quantization_loss" in had and "quantization_losses" not in missing:
        losses, facts = checked(QUANTIZATION_LOSS)
        quantized_model = quantization_loss_summary(
            losses, rows(QUANTIZATION_SIGNALS), rows(PREFIX_TRIAL), facts["quantize_model"]
        )
    located = read_json(tables["locations"], *LOCATION_KEYS) if "locations" in tables else None
    if located:
        run.files.require(located, tables["locations"])
    model = record_of(model_source, "origin", "revision", "location")
    corpus = record_of(corpus_source, "origin", "revision", "documents") if corpus_source else {}
    run.files.require({"model_revision": model["revision"]}, model_source)
    if corpus_source:
        run.files.require({"corpus_sha256": corpus["sha256"]}, corpus_source)
    write_json(
        summary,
        {
            "model": {
                "name": provenance["model"],
                **{key: model.get(key) for key in ("kind", "origin", "revision", "licence")},
                "terms": model.get("terms", []),
                **{key: provenance[key] for key in ("architecture", "parameters", "blocks", "d_model", "vocab_size")},
                "attention_blocks": provenance.get("attention_blocks"),
            },
            "corpus": {
                "name": provenance["corpus"],
                **{key: corpus.get(key) for key in ("origin", "revision", "licence")},
                "sha256": provenance["corpus_sha256"],
                "sample": provenance["sample"],
                "sequences": provenance["sequences"],
                "notes": provenance.get("notes", []),
                "positions": {name: int(size.sum()) for name, size in population_sizes(run.parts).items()},
            },
            "run": {
                **{key: provenance[key] for key in RUN_FACTS},
                **{key: provenance.get(key) for key in PASS_FACTS},
            },
            "sites": {"present": provenance["sites"], "absent": provenance["absent"],
                      "dense": provenance["dense"], "without_scale": provenance.get("without_scale", {}),
                      "gains_left_out": provenance.get("gains_left_out", {})},
            "rules": provenance["rules"],
            "tables": sorted(tables),
            "missing": missing,
            "location": located and location_summary(located),
            "loss": loss_summary(rows(LOSS)) if "loss" in had else None,
            "norms": gain_summary(rows(NORMS), rows(GAINS)) if "norms" in had else None,
            "experts": experts,
            "super_weights": super_weights_summary(*checked(SUPER_WEIGHTS)) if "super_weights" in had else None,
            "ablation": ablation,
            "expert_ablation": pruning,
            "knock_outs": knocked,
            "quantization": quantization,
            "quantization_losses": quantized_model,
            "populations": {
                population: {
                    "largest": _largest(layer_rows.filter(population=population)),
                    "rules": {
                        rule: rule_summary(
                            dim_rows.filter(population=population, rule=rule),
                            pair_rows.filter(population=population, rule=rule),
                            sites,
                        )
                        | (_listed(massive_rows.filter(rule=rule), population) if lists else {})
                        for rule, (sites, lists) in _applied(provenance).items()
                    },
                    "overlaps": overlaps(dim_rows.filter(population=population), provenance),
                }
                for population in populations_of(run.parts)
            },
        },
    )  # fmt: skip


def _missing(tables: Mapping[str, Path], run: RunFiles) -> dict[str, dict[str, Any]]:
    """By analysis, the `cause`, `reason` and `log` that its `tables` have in their provenance."""
    found: dict[str, dict[str, Any]] = {}
    for table in public_tables().values():
        if table.name in tables:
            provenance = provenance_of(tables[table.name], table)
            run.require(provenance, tables[table.name])
            if MISSING in provenance:
                facts = dict(provenance[MISSING])
                found.setdefault(facts.pop("analysis"), facts | {"tables": []})["tables"].append(table.name)
    return {analysis: found[analysis] for analysis in ANALYSES if analysis in found}


def _require_none(missing: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> None:
    wanted = [analysis for analysis, facts in missing.items() if facts["cause"] != "off"]
    if wanted:
        sentences = " ".join(missing_sentence(analysis, missing[analysis]) for analysis in wanted)
        raise InputError(
            f"strict: {run['model']} on {run['corpus']}: {sentences.rstrip('.')}",
            f"expected all analyses that `skip: [{', '.join(wanted)}]` does not leave out",
        )


def facts_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of its run, as provenance names it."""
    return {
        "model": summary["model"]["name"],
        "model_revision": summary["model"]["revision"],
        "corpus": summary["corpus"]["name"],
        "corpus_sha256": summary["corpus"]["sha256"],
        "sample": summary["corpus"]["sample"],
        "dtype": summary["run"]["dtype"],
        "sites": summary["sites"]["present"],
        "rules": summary["rules"],
    }


def _applied(run: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """The rules that could be applied, with the sites they were applied to and whether they list their hits."""
    rules = hit_rules(run["rules"])
    found = {name: applied_sites(rule, run) for name, rule in rules.items()}
    return {name: ("+".join(sites), rules[name].lists_hits) for name, sites in found.items() if sites}


def loss_summary(loss: pl.DataFrame) -> dict[str, Any] | None:
    """Perplexity exp(mean nll) and bits per UTF-8 byte; None where no token has one before it."""
    if not loss["tokens"].sum():
        return None
    nll, tokens, size = (float(loss[name].sum()) for name in ("nll", "tokens", "bytes"))
    return {
        "tokens": int(tokens),
        "bytes": int(size),
        "nats_per_token": nll / tokens,
        "perplexity": math.exp(nll / tokens),
        "bits_per_byte": nll / math.log(2) / size if size else None,
    }


def super_weights_summary(found: pl.DataFrame, provenance: dict[str, Any]) -> dict[str, Any]:
    """The weights in the order in which they were found, the rule's numbers, and what was published for the model."""
    search = ("not_searched", "published")
    return {**provenance["super_weight"], **{key: provenance[key] for key in search}, "found": found.to_dicts()}


def rule_summary(dims: pl.DataFrame, pairs: pl.DataFrame, sites: str) -> dict[str, Any]:
    """Counts of a rule in a population, none of them bare, and its selected dims, the largest first."""
    selected = dims.filter("selected").sort(["max_abs", "dim"], descending=[True, False])
    passing = pairs.filter("passes")
    return {
        "sites": sites,
        "dims_with_hit": len(dims),
        "dims_selected": len(selected),
        "dims_selected_majority": int(dims["selected_majority"].sum()),
        "pairs_with_hit": len(pairs),
        "pairs_passing": len(passing),
        "locations": int(pairs["locations"].sum()),
        "occurrences": int(pairs["occurrences"].sum()),
        "dims": selected.select(DIM_COLUMNS).to_dicts(),
    }


def location_summary(document: dict[str, Any]) -> dict[str, Any]:
    """The criteria of rule `location` and, per population and site, its counts and the dims with the most."""
    names = ("occurrences", "locations", "location_rate")
    return {
        **{key: document[key] for key in ("rule", "threshold", "inclusive", "layer_share")},
        "populations": {
            population: {
                site: {**{name: found[name] for name in names}, "dims": len(found["dims"]), "top": found["dims"][:TOP]}
                for site, found in part["sites"].items()
            }
            for population, part in document["populations"].items()
        },
    }


def _largest(layers: pl.DataFrame) -> list[dict[str, Any]]:
    """Per site the layer with the largest abs(x)."""
    best = largest_of_each(layers.drop_nulls("max"), "max", "site")
    return best.sort("site").select("site", "layer", "max", "median").to_dicts()


def _listed(massive: pl.DataFrame, population: str) -> dict[str, Any]:
    return {"massive_activations": _massive(massive, population)}


def _massive(massive: pl.DataFrame, population: str) -> dict[str, Any]:
    """Counts of a population's massive activations, and the largest of each dim, by the population's own median."""
    columns = ("dim", "value", "layer", "sequence", "token", "token_text", "median", "ratio", "excluded")
    massive = massive.filter(f"massive_{population}")
    if population == "without_first":
        massive = massive.with_columns(median="median_without_first", ratio="ratio_without_first")
    by_token = (
        massive.group_by("token").agg(activations=pl.len()).sort(["activations", "token"], descending=[True, False])
    )
    largest = largest_of_each(massive, "value", "dim")
    return {
        "activations": len(massive),
        "layers": sorted(set(massive["layer"].to_list())),
        "positions": len(massive.select("sequence", "token").unique()),
        "at_excluded_positions": int(massive["excluded"].sum()),
        "tokens": by_token["token"].len(),
        "by_token": by_token.head(10).to_dicts(),
        "dims": largest.select(columns).to_dicts(),
    }


def overlaps(dims: pl.DataFrame, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every two rules of the residual stream that could be applied, how the dims that they select overlap.

    `jaccard`, |A and B| / |A or B|, is None where neither selects any.
    """
    rules = [name for name in _applied(run) if hit_rules(run["rules"])[name].basis == RESIDUAL]
    selected = {name: set(dims.filter("selected", rule=name)["dim"]) for name in rules}
    return [
        {
            "rules": [one, other],
            "common": sorted(selected[one] & selected[other]),
            "union": len(selected[one] | selected[other]),
            "jaccard": len(selected[one] & selected[other]) / len(selected[one] | selected[other])
            if selected[one] | selected[other]
            else None,
        }
        for one, other in combinations(rules, 2)
    ]
