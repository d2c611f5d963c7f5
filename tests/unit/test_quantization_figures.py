"""What the report shows of quantization, against the tables it is made of, counted another way."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.errors import InputError
from outlier_features.figures.quantization_map import quantization_map
from outlier_features.figures.quantization_remedies import quantization_remedies
from outlier_features.figures.weight_outliers import MOST_DIMS, MOST_POINTS, weight_outliers
from outlier_features.files.foreign_files import write_gguf, write_yaml
from outlier_features.quantize.quantization_schema import QUANTIZATION, WEIGHT_OUTLIERS
from outlier_features.quantize.remedy_errors import kind_of
from outlier_features.report.quantization_page import FILES, linear_layers, quantization_part
from outlier_features.summary.facts import facts_in
from outlier_features.summary.quantization_facts import quantization_facts, quantization_summary
from outlier_features.summary.report_run import Run
from outlier_features.wording import percent

BLOCKS = 5
MODULES = [  # of a block: those of the residual stream have selected dims
    ("attn_norm", "self_attn.q_proj"),
    ("attn_norm", "self_attn.v_proj"),
    ("mlp_norm", "mlp.experts.0.up_proj"),
    ("mlp_norm", "mlp.experts.1.up_proj"),
    ("mlp_act", "mlp.down_proj"),
]
SETTINGS = [
    ("none", None), ("exact_dims", "2 dims of massive"), *(("exact_random", f"seed {n}") for n in range(3)),
    ("exact_positions", None), ("smooth", "alpha 0.5"), ("smooth", "alpha 0.25"), ("smooth", "alpha 0.75"),
    ("hadamard", "seed 0"), ("clip", "quantile 0.99"), ("clip", "quantile 0.999"),
]  # fmt: skip
FACTS = {"schemes": ["fp8_token", "int8_token", "mxfp4"], "remedied": ["int8_token", "mxfp4"], "absent": {}, "seeds": 3}
POPULATIONS = ["all", "without_first"]


def quantized(seed=0, *, dims=0.4, random=0.95):
    """Random errors; with the selected dims exact about `dims` of each is left, with random ones about `random`."""
    draw = np.random.default_rng(seed)
    rows = []
    for layer in range(BLOCKS):
        for site, module in MODULES:
            for scheme in FACTS["schemes"]:
                for what in ("x", "w", "xw"):
                    for population in POPULATIONS:
                        error = 10 ** draw.uniform(-3, 0)
                        for remedy, setting in SETTINGS if scheme in FACTS["remedied"] else SETTINGS[:1]:
                            if remedy in ("exact_dims", "exact_random") and site == "mlp_act":
                                continue
                            left = {"none": 1.0, "exact_dims": dims, "exact_random": random}.get(remedy, 0.8)
                            left *= draw.uniform(0.9, 1.1) if remedy != "none" else 1
                            rows.append(
                                {"layer": layer, "site": site, "module": f"model.layers.{layer}.{module}",
                                 "scheme": scheme, "remedy": remedy, "setting": setting, "quantized": what,
                                 "population": population, "sqnr_db": draw.uniform(5, 50), "output_error": error * left,
                                 "output_error_sd": error / 100, "tokens": 100, "output_tokens": 50, "bits": 8.5}
                            )  # fmt: skip
    return pl.DataFrame(rows, schema=QUANTIZATION.schema)


def of_weights(dims=(3, 9), *, more=()):
    draw = np.random.default_rng(1)
    rows = [
        {"layer": layer, "site": site, "module": f"model.layers.{layer}.{module}", "axis": axis, "dim": dim,
         "max_abs": 1.0, "ratio": 10 ** draw.uniform(-1, 1), "rank": 1,
         "selected": axis == "in" and dim in {*dims, *more},
         **({"activation_max_abs": 2.0, "activation_ratio": 10 ** draw.uniform(-1, 2), "activation_rank": 1}
            if axis == "in" else {})}
        for layer in range(BLOCKS) for site, module in MODULES for axis in ("in", "out")
        for dim in (*dims, *more, 40, 41)
        if not (site == "mlp_act" and dim in {*dims, *more})
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=WEIGHT_OUTLIERS.schema)


def pairs(table, scheme, remedy, *, population="all", what="xw", pick=min):
    """By layer, the error with a remedy (of several settings the one that `pick` takes), and that without."""
    found = {}
    for row in table.iter_rows(named=True):
        if (row["scheme"], row["quantized"], row["population"]) == (scheme, what, population):
            found.setdefault(row["module"], {}).setdefault(row["remedy"], []).append(row["output_error"])
    return {module: (pick(one[remedy]), one["none"][0]) for module, one in found.items() if remedy in one}


def summarized(table, outliers=None):
    return quantization_summary(table, of_weights() if outliers is None else outliers, FACTS)


def said(results):
    (fact,) = quantization_facts(results)
    return fact


def taken(shares):
    return f"{round(100 * (1 - np.median(shares)), 1):g} %"


def test_the_summary_is_the_tables():
    table = quantized()
    results = summarized(table)
    assert results["modules"] == BLOCKS * len(MODULES) and results["dims"] == {"residual": [3, 9]}
    for population in POPULATIONS:
        part = results["populations"][population]
        assert [row["scheme"] for row in part["schemes"]] == FACTS["schemes"]
        for row in part["schemes"]:
            errors = {name: one[0] for name, one in pairs(table, row["scheme"], "none", population=population).items()}
            assert row["error_median"] == pytest.approx(np.median([*errors.values()]))
            assert row["error_p75"] == pytest.approx(np.quantile([*errors.values()], 0.75))
            assert row["worst"]["module"] == max(errors, key=errors.get)
        for row in part["remedies"]:
            if row["remedy"] in ("exact_dims", "hadamard", "smooth_best", "clip_best"):
                remedy = row["remedy"].removesuffix("_best")
                own = pairs(table, row["scheme"], remedy, population=population)
                assert row["left_median"] == pytest.approx(np.median([left / whole for left, whole in own.values()]))
                assert row["modules"] == len(own)
        paper = table.filter(scheme="mxfp4", quantized="xw", population=population, setting="alpha 0.5")
        (row,) = (row for row in part["remedies"] if (row["scheme"], row["remedy"]) == ("mxfp4", "smooth"))
        assert row["error_median"] == pytest.approx(np.median(paper["output_error"]))


def test_the_sentence_says_whose_errors_and_names_the_control():
    table = quantized()
    text = said(summarized(table)).short
    errors = pairs(table, "int8_token", "none")
    worst = max(errors, key=errors.get)
    assert "rounded by int8_token" in text and f"the median of {BLOCKS * len(MODULES)} " in text
    assert f"({kind_of(worst)} of layer {worst.split('.')[2]})" in text
    dims = [left / whole for left, whole in pairs(table, "int8_token", "exact_dims").values()]
    assert f"Leaving dims 3 and 9 (rule massive) exact takes away {taken(dims)}" in text
    draws = []
    for n in range(3):
        own = pairs(table.filter(pl.col("remedy").is_in(["none"]) | (pl.col("setting") == f"seed {n}")),
                    "int8_token", "exact_random")  # fmt: skip
        draws.append(np.median([left / whole for left, whole in own.values()]))
    least, most = taken([max(draws)]), taken([min(draws)])
    assert f"as many random dims take {least.removesuffix(' %')} to {most} (3 draws)" in text
    assert "does not count" not in text

    def left_by(remedy):
        return np.median([left / whole for left, whole in pairs(table, "int8_token", remedy).values()])

    best = min(("smooth", "clip", "hadamard", "exact_positions"), key=left_by)
    words = {"smooth": "smoothing", "clip": "clipping", "hadamard": "Hadamard", "exact_positions": "first tokens"}
    assert f"on all of them, {words[best]}" in text


@pytest.mark.parametrize("random", [0.3, 0.399])
def test_selected_dims_that_are_no_better_than_random_ones_do_not_count(random):
    table = quantized(dims=0.5, random=random).filter(pl.col("site") != "mlp_act")
    text = said(summarized(table)).short
    assert "so that it does not count" in text
    best = text.partition("on all of them, ")[2]
    assert best and "selected dims" not in best
    assert "selected dims exact" not in linear_layers(table, "int8_token")["best_remedy"].to_list()


def test_nothing_pays_where_everything_is_left():
    table = quantized().with_columns(
        output_error=pl.when(pl.col("remedy") == "none").then(0.1).otherwise(0.2), site=pl.lit("mlp_act")
    )
    text = said(summarized(table)).short
    assert "Nothing that was tried on all of them takes any of it away" in text


def test_each_cell_of_the_map_is_the_largest_of_its_kind():
    table = quantized()
    drawing = quantization_map(table, "mxfp4", POPULATIONS)
    assert list(drawing.views) == POPULATIONS
    for population in POPULATIONS:
        figure = drawing.views[population]
        traces = [trace for trace in figure.data if trace.type == "heatmap"]
        assert len(traces) == 3 * len(FACTS["schemes"])
        menu = figure.layout.updatemenus[0]
        assert menu.buttons[menu.active].label == "scheme mxfp4"
        for button in menu.buttons:
            shown = [trace for trace, visible in zip(traces, button.args[0]["visible"], strict=True) if visible]
            for trace, what, place in zip(shown, ("xw", "x", "w"), (1, 2, 3), strict=True):
                names = figure.layout[f"yaxis{place if place > 1 else ''}"].ticktext
                own = pairs(table, button.label.removeprefix("scheme "), "none", population=population, what=what)
                for line, name in zip(trace.z, names, strict=True):
                    for layer, value in enumerate(line):
                        cell = [e for m, (e, _) in own.items() if f".{layer}." in m[:15] and kind_of(m) == name]
                        assert value == pytest.approx(math.log10(max(cell)), abs=1e-3)
    assert [*names] == ["self_attn.q_proj", "self_attn.v_proj", "mlp.experts.*.up_proj", "mlp.down_proj"]
    assert drawing.data["error"].to_list() == table.filter(remedy="none")["output_error"].to_list()


def test_marks_of_remedies_are_medians_over_layers():
    table = quantized()
    figure = quantization_remedies(table, "int8_token", POPULATIONS).views["without_first"]
    marks = [trace for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    for scheme, start in (("int8_token", 1), ("mxfp4", 3)):
        for offset, index in ((0, 0), (1, 1)):
            axis = f"y{start + offset}".removesuffix("1") if start + offset == 1 else f"y{start + offset}"
            names = [text.rpartition(" (")[0] for text in figure.layout[f"yaxis{start if start > 1 else ''}"].ticktext]
            drawn = {names[int(one.y[0])]: one.x[0] for one in marks if one.yaxis == axis}
            for remedy, name in (("exact_dims", "selected dims exact"), ("hadamard", "Hadamard rotation"),
                                 ("smooth", "smoothing, best alpha"), ("none", "no remedy")):  # fmt: skip
                own = pairs(table, scheme, remedy, population="without_first").values()
                expected = np.median([(left, left / whole)[index] for left, whole in own])
                assert drawn[name] == pytest.approx(expected), (scheme, name)
    rows = table.filter(scheme="mxfp4", quantized="xw", population="without_first")
    whole = dict(rows.filter(remedy="none").select("module", "output_error").iter_rows())
    draws = rows.filter(remedy="exact_random").select("module", "output_error").rows()
    assert drawn["as many random dims exact"] == pytest.approx(np.median([left / whole[name] for name, left in draws]))
    assert len(draws) == 3 * BLOCKS * 4
    own = pairs(table, "int8_token", "exact_dims").values()
    left = percent(np.median([one / without for one, without in own]))
    finding = quantization_remedies(table, "int8_token", POPULATIONS).finding
    assert f"under int8_token are left: {left} with selected dims exact," in finding


@pytest.mark.parametrize("more", [(), tuple(range(100, 500))])
def test_dims_of_weights_and_activations(more):
    outliers = of_weights(more=more)
    drawing = weight_outliers(outliers)
    inner = outliers.filter(axis="in")
    points = {}
    for row in inner.iter_rows(named=True):
        key = (row["site"], row["layer"], row["dim"])
        if key not in points or points[key]["ratio"] < row["ratio"]:
            points[key] = row
    assert len(drawing.data) == min(len(points), MOST_POINTS)
    for row in drawing.data.iter_rows(named=True):
        assert row["ratio"] == points[row["site"], row["layer"], row["dim"]]["ratio"]
    largest = {}
    for (site, _, dim), row in points.items():
        if row["selected"] and site != "mlp_act":
            largest[dim] = max(largest.get(dim, 0), row["activation_ratio"])
    named = sorted(largest, key=lambda dim: -largest[dim])[:MOST_DIMS]
    figure = drawing.views["all"]
    legend = [trace.name for trace in figure.data if trace.x[0] is None]
    assert legend[: len(named)] == [f"dim {dim}" for dim in named]
    assert ("other selected dims" in legend) == bool(more)
    assert f"dimension {named[0]} is " in drawing.finding
    drawn = sum(len(trace.x) for trace in figure.data if trace.x[0] is not None)
    assert drawn == len(drawing.data)


def test_the_table_of_linear_layers():
    table = quantized()
    rows = {row["module"]: row for row in linear_layers(table, "mxfp4").iter_rows(named=True)}
    assert len(rows) == BLOCKS * len(MODULES)
    tried = ("exact_dims", "exact_positions", "smooth", "hadamard", "clip")
    every = {name: pairs(table, "mxfp4", name) for name in (*tried, "exact_random")}
    for module, row in rows.items():
        for scheme in FACTS["schemes"]:
            assert row[scheme] == pairs(table, scheme, "none")[module][0]
        left = {name: own[module][0] / own[module][1] for name, own in every.items() if module in own}
        random = left.pop("exact_random", None)
        if "exact_dims" in left and left["exact_dims"] >= random:
            del left["exact_dims"]
        assert row["left"] == pytest.approx(min(left.values())) and row["left"] < 1
        assert row["left_random"] == (None if random is None else pytest.approx(random))


def test_of_a_dump_errors_are_those_of_inputs():
    unknown = [pl.lit(None, QUANTIZATION.schema[name]).alias(name) for name in ("module", "output_error")]
    same = ["layer", "site", "scheme", "remedy", "setting", "population"]
    table = quantized().filter(quantized="x").with_columns(unknown).unique(same, keep="first", maintain_order=True)
    results = quantization_summary(table, None, {**FACTS, "output_tokens": None})
    text = said(results).short
    assert "the inputs rounded by int8_token, inputs of linear layers are off by" in text
    lost = [10 ** (-row["sqnr_db"] / 20) for row in table.filter(
        scheme="int8_token", population="all", remedy="none").iter_rows(named=True)]  # fmt: skip
    row = next(r for r in results["populations"]["all"]["schemes"] if r["scheme"] == "int8_token")
    assert row["error_median"] == pytest.approx(np.median(lost)) and row["modules"] == len(lost)
    figure = quantization_map(table, "int8_token", POPULATIONS)
    assert len(figure.views["all"].data) == len(FACTS["schemes"]) and "no weights" in figure.text
    assert quantization_remedies(table, "int8_token", POPULATIONS).views
    assert len(linear_layers(table, "int8_token")) == len(lost)


def test_a_run_leads_to_the_files_that_are_there(tmp_path):
    directory = FakeRun().write(tmp_path / "tiny/text")
    run = Run.read(directory)
    report = tmp_path / "report.html"
    part = quantization_part(run, directory, report)
    assert not part["files"] and part["scheme"] == "int8_token" and len(part["contents"]) == 1
    folder = directory / "quantization"
    folder.mkdir()
    write_gguf(folder / FILES[1].name, {}, {}, run.tokens.provenance)
    write_yaml(folder / FILES[2].name, None, [], run.tokens.provenance)
    files = quantization_part(run, directory, report)["files"]
    assert [Path(tmp_path / file.path).exists() for file in files] == [True, True]
    assert [file.name for file in files] == [file.name for file in FILES[1:3]]
    assert all(f"quantization/{file.name}" in file.use for file in FILES)
    write_yaml(folder / FILES[2].name, None, [], run.tokens.provenance | {"tokens_sha256": "another"})
    with pytest.raises(InputError, match="another run"):
        quantization_part(run, directory, report)


def test_without_the_analysis_there_is_the_reason(tmp_path):
    run = Run.read(FakeRun(missing={"quantization": "skip names it"}).write(tmp_path / "tiny/text"))
    assert quantization_part(run, tmp_path / "tiny/text", tmp_path / "report.html") is None
    facts = {fact.what for fact in facts_in(run.summary)}
    assert "missing" in facts and "quantization" not in facts
