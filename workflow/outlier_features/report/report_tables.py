"""The report's tables and facts that are not figures: rows of text for its template."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.ablate.ablation_effects import ablation_sample, position_name, target_name
from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.largest import largest_of_each
from outlier_features.populations import POPULATIONS, over_population, population_title, population_titles
from outlier_features.quantized.quantization import Quantization
from outlier_features.report.page_data import described, packed
from outlier_features.rules.kinds import rules_of
from outlier_features.summary.facts import is_dump
from outlier_features.summary.hybrid import hybrid_sentence
from outlier_features.summary.in_short import largest
from outlier_features.summary.run_rules import applied_sites, main_rules
from outlier_features.tokens.token_context import MassiveSpan
from outlier_features.visible_text import visible
from outlier_features.wording import DASH, count, listing, number, percent, span

Part = Mapping[str, Any]
NAMES_IN_OVERVIEW = 4


def provenance(summary: Part) -> list[tuple[str, str]]:
    """Where the numbers come from, in words; a fact that the run does not know is a dash."""
    if is_dump(summary):
        return _of_dump(summary)
    model, corpus, run, sites = (summary[name] for name in ("model", "corpus", "run", "sites"))
    sample, ablation = corpus["sample"], summary["ablation"]
    draws = f"{ablation_sample(ablation)}, {count(ablation['seeds'], 'random draw')}" if ablation else "none"
    positions = "; ".join(f"{number(size)} ({population_title(name)})" for name, size in corpus["positions"].items())
    threads = f"{' and '.join(map(str, run['threads']))} {'thread' if run['threads'] == [1] else 'threads'}"
    facts = [
        ("Model", model["name"]),
        ("Model origin", model["origin"]),
        ("Model revision", model["revision"]),
        ("Model licence", model["licence"]),
        *([("Terms of use of the model", ", ".join(model["terms"]))] if model["terms"] else []),
        ("Architecture", f"{model['architecture']}, {count(model['blocks'], 'layer')}, "
                         f"d_model {number(model['d_model'])}, vocabulary {number(model['vocab_size'])}"
                         + (f". {said}" if (said := hybrid_sentence(model)) else "")),
        ("Parameters", number(model["parameters"])),
        ("Computed in", f"{run['dtype']} on {run['device']} ({threads}), attention {run['attention']}, "
                        f"placement {run['placement']}"),
        *([("Weights dequantized from", Quantization.of(run["quantized"]))] if run["quantized"] else []),
        ("Corpus", corpus["name"]),
        ("Corpus origin", corpus["origin"]),
        ("Corpus revision", corpus["revision"]),
        ("Corpus licence", corpus["licence"]),
        ("Corpus SHA-256", corpus["sha256"]),
        ("Sample", f"{count(corpus['sequences'], 'sequence')} × {count(sample['tokens'], 'token')} "
                   f"(pack {sample['pack']}, bos {sample['bos']})"),
        *(("Of the sample", note) for note in corpus.get("notes", [])),
        ("Positions", positions),
        ("Sites", ", ".join(sites["present"])),
        ("Sites absent", "; ".join(f"{site} ({reason})" for site, reason in sites["absent"].items()) or "none"),
        ("Rules", ", ".join(summary["rules"])),
        ("Ablations", draws),
        ("Missing", ", ".join(f"{name} ({why['cause']})" for name, why in summary["missing"].items()) or "none"),
        ("Made with", f"outlier-features {run['package_version']}, torch {run['torch']}, "
                      f"transformers {run['transformers']}"),
    ]  # fmt: skip
    return [(name, visible(str(value)) if value not in (None, "") else DASH) for name, value in facts]


def _of_dump(summary: Part) -> list[tuple[str, str]]:
    model, corpus = summary["model"], summary["corpus"]
    facts = [
        ("Dump", model["name"]),
        ("Files", model["origin"]),
        ("SHA-256 of the files' SHA-256", model["revision"]),
        ("Shape", f"{count(corpus['sequences'], 'sequence')} × {count(model['blocks'], 'layer')} × "
                  f"{count(corpus['sample']['tokens'], 'position')}, d_model {number(model['d_model'])}"),
        ("Number format", summary["run"]["dtype"]),
        ("Sites", ", ".join(summary["sites"]["present"])),
        ("Rules", ", ".join(summary["rules"])),
        ("Made with", f"outlier-features {summary['run']['package_version']}"),
    ]  # fmt: skip
    return [(name, visible(str(value))) for name, value in facts]


def selected_dims(dims: pl.DataFrame, rules: Sequence[str], most: int) -> tuple[list[dict[str, Any]], int]:
    """For each population the dims that any of `rules` selects, the largest first, a row for each rule with a hit.

    Gives at most so many dims of each population, and how many are left out.
    """
    rows, hidden = [], 0
    for population in dims["population"].unique().sort():
        here = dims.filter(pl.col("population") == population, pl.col("rule").is_in(rules))
        order = largest_of_each(here.filter("selected"), "max_abs", "dim")["dim"].to_list()
        hidden += max(0, len(order) - most)
        by_rule = {(row["dim"], row["rule"]): row for row in here.iter_rows(named=True)}
        rows += [by_rule[dim, rule] for dim in order[:most] for rule in rules if (dim, rule) in by_rule]
    return rows, hidden


def massive_rows(spans: Sequence[MassiveSpan]) -> str:
    """Massive activations in their context, packed for the page."""
    rows = [
        {
            "dim": span.dim, "before": span.before, "token_text": span.token or span.nameless, "after": span.after,
            "sequence": span.sequence, "token": span.position, "layers": span.layers, "value": span.value,
            "layer": span.layer, "median": span.median, "ratio": span.ratio,
            "populations": population_titles(span.populations), "excluded": span.excluded,
        }
        for span in spans
    ]  # fmt: skip
    words: dict[str, dict[str, Any]] = {
        "token": {"title": "position"},
        "layers": {"meaning": "blocks in which the value is a massive activation"},
        "value": {"title": "largest x", "meaning": "the value of largest abs(x) over these blocks, signed"},
        "layer": {"title": "in layer", "meaning": "the block of that value"},
        "median": {"title": "median |x|"},
        "populations": {"meaning": "the populations by whose median it is a massive activation"},
        "before": {"hidden": True},
        "after": {"hidden": True},
        "token_text": {"title": "token in its context", "kind": "context", "around": ["before", "after"], "width": 60},
    }
    meant = described(MASSIVE)
    return packed(
        pl.DataFrame(rows), {name: meant.get(name, {}) | words.get(name, {}) for name in meant | words}, tall=True
    )


def meanings(summaries: Sequence[Part]) -> list[tuple[str, list[str]]]:
    """What each rule selects, with the names of the runs where it is not the same in all."""
    runs_of: dict[str, list[str]] = {}
    for summary in summaries:
        for rule in rules_of(summary["rules"]).values():
            name = f"{summary['model']['name']}/{summary['corpus']['name']}"
            runs_of.setdefault(rule.meaning(), []).append(name)
    return [(text, names if len(names) < len(summaries) else []) for text, names in runs_of.items()]


def rule_rows(summary: Part) -> list[dict[str, Any]]:
    """A row for each rule of the run, of whatever kind, with what it selects by population."""
    rows = []
    for name, rule in rules_of(summary["rules"]).items():
        results = [part["rules"].get(name) for part in summary["populations"].values()]
        rows.append(
            {
                "rule": name,
                "looks_for": rule.noun,
                "criteria": rule.criteria(),
                "sites": next((result["sites"].replace("+", " + ") for result in results if result), DASH),
                "dims": [number(result and result["dims_selected"]) for result in results],
                "source": rule.source,
            }
        )
    return rows


def ablations(ablation: Part) -> list[list[str]]:
    """A row of text for the unchanged model and for each ablation, its random draws beside it."""
    rows = []
    for effect in ablation["effects"]:
        unchanged = effect["target"] == "baseline"
        place = "" if unchanged else position_name(effect["positions"], ablation["only_first_excluded"])
        rows.append(
            [
                "unchanged model" if unchanged else target_name(effect),
                effect["rule"] or "",
                place,
                effect["value"] or "",
                number(effect["perplexity"]),
                span(effect["sequences"]),
                number(effect["ratio"]),
                "" if unchanged else span(effect["ratios"]),
                number(effect["bits_per_byte"]),
                percent(effect["top1_probability"]),
                "" if unchanged else span([draw["perplexity"] for draw in effect["random"]]),
            ]
        )
    return rows


_NOT_THERE = {"sites": "not one of its rules", "counts": [(DASH, "") for _ in POPULATIONS]}


def overview_rules(summaries: Sequence[Part]) -> list[str]:
    """Those that the table of runs has columns for."""
    return list(dict.fromkeys(rule for summary in summaries for rule in main_rules(summary)))


def overview(summaries: Sequence[Part]) -> list[dict[str, Any]]:
    """A row for each run, to compare them."""
    rules = overview_rules(summaries)
    return [
        {
            "model": summary["model"]["name"],
            "size": _size(summary["model"]),
            "corpus": summary["corpus"]["name"],
            "sample": f"{number(summary['corpus']['sequences'])} × "
            f"{count(summary['corpus']['sample']['tokens'], 'token')}",
            "rules": [_selected_names(summary, rule) if rule in summary["rules"] else _NOT_THERE for rule in rules],
            "largest": largest(summary),
            "perplexity": number(summary["loss"] and summary["loss"]["perplexity"]),
            "bits_per_byte": number(summary["loss"] and summary["loss"]["bits_per_byte"]),
        }
        for summary in summaries
    ]


def overview_words(summaries: Sequence[Part]) -> list[str]:
    """In a sentence each: in how many runs the rules select something, and which runs lack an analysis."""
    sentences = []
    for rule in overview_rules(summaries):
        applied = [one for one in summaries if rule in one["rules"] and applied_sites(one, rule)]
        selecting = [one for one in applied if one["populations"]["all"]["rules"][rule]["dims_selected"]]
        sentences.append(
            f"Rule {rule} selects at least one dimension, {over_population('all')}, in {len(selecting)} of the "
            f"{count(len(applied), 'run')} that it was applied to."
        )
    missing = [one for one in summaries if one["missing"]]
    if missing:
        names = listing(f"{one['model']['name']} on {one['corpus']['name']}" for one in missing)
        sentences.append(f"An analysis or more is missing from {names}; the page of each says which and why.")
    return sentences


def _size(model: Part) -> str:
    parameters = "" if model["parameters"] is None else f"{number(model['parameters'])} parameters, "
    return f"{model['architecture']}, {parameters}{count(model['blocks'], 'layer')} × {number(model['d_model'])}"


def _selected_names(summary: Part, rule: str) -> dict[str, Any]:
    """How many dims a rule selects in each population, the largest by number, and the sites that it was applied to."""
    sites = " + ".join(applied_sites(summary, rule))
    counts = []
    for population in POPULATIONS:
        if population not in summary["populations"]:
            counts.append((DASH, ""))
            continue
        rows = summary["populations"][population]["rules"][rule]["dims"] if sites else []
        more = ", …" if len(rows) > NAMES_IN_OVERVIEW else ""
        names = ", ".join(str(row["dim"]) for row in rows[:NAMES_IN_OVERVIEW])
        counts.append((number(len(rows)) if sites else DASH, f"{names}{more}"))
    return {"sites": f"on {sites}" if sites else "not applied", "counts": counts}
