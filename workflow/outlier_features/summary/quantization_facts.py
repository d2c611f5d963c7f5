"""What rounding the inputs and weights of linear layers costs, and what each remedy takes away of that."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.files.quantization_columns import EXACT_DIMS, EXACT_RANDOM, NONE
from outlier_features.model.bases import RESIDUAL, basis_of
from outlier_features.populations import over_population
from outlier_features.quantize.remedy_errors import TOLD, measured, of_outputs, remedy_errors, whole
from outlier_features.summary.fact import Fact
from outlier_features.visible_text import visible
from outlier_features.wording import capital, count, listing, number, percent, rules_named, some

Part = Mapping[str, Any]
ALL = "all"
FEW = 4  # dims that are named


def quantization_summary(
    quantization: pl.DataFrame, weight_outliers: pl.DataFrame | None, facts: Part
) -> dict[str, Any]:
    """How the layers were rounded and, by population, each scheme's errors and what remedies leave of them.

    Errors are those of outputs with input and weight rounded; of a dump, which has no `weight_outliers`, those of the
    inputs. Quartiles are over linear layers. `dims` has, by basis, the selected dims that were left exact.

    facts   `quantize` of the tables' provenance
    """
    rows = whole(measured(quantization))
    errors, remedied = rows.filter(remedy=NONE), remedy_errors(rows)
    populations = quantization["population"].unique(maintain_order=True).to_list()
    return {
        **facts,
        "of_outputs": of_outputs(quantization),
        "modules": errors["module"].n_unique(),
        "dims": {} if weight_outliers is None else _selected(weight_outliers),
        "populations": {
            population: {
                "schemes": _schemes(errors.filter(population=population)),
                "remedies": _remedies(remedied.filter(population=population)),
            }
            for population in populations
        },
    }


def _selected(weight_outliers: pl.DataFrame) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for site, dim in weight_outliers.filter("selected").select("site", "dim").unique().iter_rows():
        found.setdefault(basis_of(site), set()).add(dim)
    return {basis: sorted(dims) for basis, dims in sorted(found.items())}


def _schemes(errors: pl.DataFrame) -> list[dict[str, Any]]:
    found = []
    for (scheme,), rows in errors.group_by("scheme", maintain_order=True):
        worst = rows.sort("error", descending=True, maintain_order=True).row(0, named=True)
        columns = ("module", "kind", "layer", "site", "error", "output_error_sd")
        found.append(
            {
                "scheme": scheme,
                "modules": len(rows),
                "bits": rows["bits"].mean(),
                **_quartiles(rows["error"], "error"),
                "worst": {name: worst[name] for name in columns},
            }
        )
    return found


def _remedies(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Of each scheme and remedy; of random dims `draws` has each draw's median."""
    found = []
    for (scheme, told), own in rows.group_by("scheme", "told", maintain_order=True):
        left = own.drop_nulls("left")
        settings = own["setting"].drop_nulls().unique(maintain_order=True).to_list()
        by_draw = left.group_by("setting", maintain_order=True).agg(pl.col("left").median())
        found.append(
            {
                "scheme": scheme,
                "remedy": told,
                "settings": settings,
                "modules": own["module"].n_unique(),
                **_quartiles(own["error"], "error"),
                **_quartiles(left["left"], "left"),
                "draws": by_draw["left"].to_list() if told == EXACT_RANDOM else [],
            }
        )
    return found


def _quartiles(values: pl.Series, name: str) -> dict[str, float | None]:
    ends = {"p25": 0.25, "median": 0.5, "p75": 0.75}
    return {f"{name}_{end}": values.quantile(share, "linear") for end, share in ends.items()}


def quantization_facts(results: Part) -> Iterator[Fact]:
    """The first scheme in a sentence; every scheme; and what remedies take away, dims beside as many random ones.

    results   `quantization` of summary.json
    """
    if not any(part["schemes"] for part in results["populations"].values()):
        yield Fact(what="quantization", topic="not found", short="No linear layer's output could be rounded.")
        return
    parts = [_scheme(row, results["of_outputs"]) for row in results["populations"][ALL]["schemes"]]
    for scheme in dict.fromkeys(row["scheme"] for row in results["populations"][ALL]["remedies"]):
        parts.append(_remedies_said(results["populations"][ALL]["remedies"], scheme))
    rest = results["populations"].get("without_first")
    if rest and rest["schemes"]:
        row = of_scheme(rest["schemes"], first_scheme(results))
        parts.append(f"{capital(over_population('without_first'))}, {_errors(row, results['of_outputs'])}.")
    if results.get("absent"):
        reasons = dict.fromkeys(results["absent"].values())
        named = some([visible(name) for name in results["absent"]], 4)
        parts.append(f"Left as they are: {named} ({listing(map(visible, reasons))}).")
    told = tuple(Fact(what="rounded", topic="effect", short=part, population=ALL) for part in parts)
    yield Fact(
        what="quantization",
        topic="effect",
        short=quantization_sentence(results),
        values=results,
        population=ALL,
        parts=told,
    )


def first_scheme(results: Part) -> str:
    """The scheme that the first words are about: the first that remedies were tried on; nothing without any."""
    had = [row["scheme"] for row in results["populations"].get(ALL, {}).get("schemes", [])]
    return next((name for name in (*results["remedied"], *had) if name in had), "")


def of_scheme(rows: Sequence[Part], scheme: str) -> Part:
    return next(row for row in rows if row["scheme"] == scheme)


def quantization_sentence(results: Part) -> str:
    """Over all tokens, of the first scheme: how far outputs are off, what the selected dims have to do with it beside
    as many random ones, and which remedy takes away most; nothing where no layer was rounded."""
    if not results["populations"].get(ALL, {}).get("schemes"):
        return ""
    part, scheme = results["populations"][ALL], first_scheme(results)
    row = of_scheme(part["schemes"], scheme)
    what = "inputs and weights" if results["of_outputs"] else "the inputs"
    said = f"With {what} rounded by {scheme}, {_errors(row, results['of_outputs'])}."
    remedies = {one["remedy"]: one for one in part["remedies"] if one["scheme"] == scheme}
    if EXACT_DIMS in remedies:
        said += f" {_dims(remedies, row, results['dims'])}."
    best = best_remedy(remedies, row)
    if best:
        said += f" Of what was tried on all of them, {TOLD[best['remedy']]} takes away most, {_taken(best)}."
    elif len(remedies) > 1:
        said += " Nothing that was tried on all of them takes any of it away."
    return said


def best_remedy(remedies: Mapping[str, Part], row: Part) -> Part | None:
    """Of those tried on all layers of a scheme's `row` the one that leaves least in the median layer, if that is less
    than no remedy leaves. Selected dims count where they leave less than every draw of as many random ones."""
    paying = [
        one
        for name, one in remedies.items()
        if name not in (NONE, EXACT_RANDOM)
        and one["modules"] == row["modules"]
        and one["left_median"] is not None
        and one["left_median"] < 1
        and (name != EXACT_DIMS or beats_random(remedies))
    ]
    return min(paying, key=lambda one: float(one["left_median"]), default=None)


def beats_random(remedies: Mapping[str, Part]) -> bool:
    """Whether the selected dims leave less of the error than every draw of as many random ones."""
    draws = remedies[EXACT_RANDOM]["draws"] if EXACT_RANDOM in remedies else []
    return bool(draws) and remedies[EXACT_DIMS]["left_median"] < min(draws)


def _errors(row: Part, of_output: bool) -> str:
    worst = row["worst"]
    return (
        f"{'outputs' if of_output else 'inputs'} of linear layers are off by {percent(row['error_median'])} in the "
        f"median of {row['modules']:,} and by {percent(worst['error'])} in the worst ({visible(worst['kind'])} of "
        f"layer {worst['layer']})"
    )


def _dims(remedies: Mapping[str, Part], row: Part, selected: Mapping[str, Sequence[int]]) -> str:
    dims = remedies[EXACT_DIMS]
    which = "" if dims["modules"] == row["modules"] else f" of the {dims['modules']:,} that read them"
    text = f"Leaving {_named(dims, selected)} exact takes away {_taken(dims)} of that in the median{which}"
    if EXACT_RANDOM not in remedies:
        return f"{text}; there are too few other dims to compare with"
    draws = remedies[EXACT_RANDOM]["draws"]
    than = "" if beats_random(remedies) else ", so that it does not count"
    return f"{text}, as many random dims take {_span_taken(draws)} ({count(len(draws), 'draw')}){than}"


def _named(dims: Part, selected: Mapping[str, Sequence[int]]) -> str:
    """The selected dims, by their numbers where they are few and of the residual stream."""
    (first, *more) = dims["settings"]
    if more or set(selected) != {RESIDUAL} or len(selected[RESIDUAL]) > FEW:
        return f"the selected dims ({listing(map(visible, dims['settings']))})"
    rules = visible(first.partition(" of ")[2]).split(", ")
    noun = "dim" if len(selected[RESIDUAL]) == 1 else "dims"
    return f"{noun} {listing(map(dim_mark, selected[RESIDUAL]))} ({rules_named(rules)})"


def _taken(one: Part) -> str:
    return _share(1 - one["left_median"])


def _share(value: float) -> str:
    """Of an error, to a tenth of a percent: what is less is noise of the tokens that outputs are measured on."""
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:g} %"


def _span_taken(draws: Sequence[float]) -> str:
    least, most = _share(1 - max(draws)), _share(1 - min(draws))
    return least if least == most else f"{least.removesuffix(' %')} to {most}"


def _scheme(row: Part, of_output: bool) -> str:
    return f"{row['scheme']} ({number(row['bits'])} bits): {_errors(row, of_output)}."


def _remedies_said(rows: Sequence[Part], scheme: str) -> str:
    own = [row for row in rows if row["scheme"] == scheme and row["remedy"] != NONE and row["left_median"] is not None]
    said = []
    for row in own:
        draws = f" in {count(len(row['draws']), 'draw')}" if row["draws"] else ""
        taken = _span_taken(row["draws"]) if row["draws"] else _taken(row)
        said.append(f"{TOLD[row['remedy']]} {taken}{draws} (of {row['modules']:,})")
    return f"Of the error under {scheme} is taken away in the median layer: {listing(said)}."
