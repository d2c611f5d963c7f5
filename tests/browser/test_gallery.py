"""The gallery in a browser, opened from disk without a network: text in the colours of its values, page after page."""

import re

import numpy as np
import polars as pl
import pytest

from fake_gallery import POPULATIONS, FakeGallery
from fake_run import FakeRun
from outlier_features.files.tables import write_table
from outlier_features.gallery.gallery_pages import GalleryPages
from outlier_features.gallery.render_gallery import render_gallery
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS
from reading import MARK, SCRIPT, Reader

HOSTILE = (f"\u202e{SCRIPT}", " שלום", "\t\x07", "<b>'", "\u2028&amp;", '`${1}"', "*/alert(1)//", "x" * 100_000, "\n")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Galleries of a dense model, of one with experts, of long and of hostile text, and what they hold."""
    folder = tmp_path_factory.mktemp("results")
    made = {
        "tiny": FakeGallery(),
        "moe": FakeGallery(experts=2, neurons=2),
        "long": FakeGallery(FakeRun(pieces=tuple(f" w{n}" for n in range(400)), layers=2), neurons=1, examples=1),
        "hostile": FakeGallery(FakeRun(model="hostile", pieces=HOSTILE, sequences=2, position=7), neurons=2, bare=()),
    }
    for name, fake in made.items():
        run = fake.write(folder / name / "text")
        render_gallery(run, folder / f"gallery/{name}/text", source=fake.write_source(folder / "models" / name))
    return {name: (fake, folder / f"gallery/{name}/text") for name, fake in made.items()}


class Visitor(Reader):
    """A reader without a network, who waits for what a page loads."""

    def __init__(self, browser, file, **options):
        super().__init__(browser, file, offline=True, **options)
        self.folder = file.parent
        self.settle()

    def go(self, place):
        """Open a page of the folder: `L1N2.html#population=all`."""
        name, _, choice = place.partition("#")
        self.page.goto("about:blank")
        self.page.goto((self.folder / name).as_uri() + (f"#{choice}" if choice else ""))
        self.settle()

    def settle(self):
        self.page.wait_for_function(
            "() => document.readyState === 'complete'"
            " && document.querySelector('#content > *, #table output, .notice') !== null"
        )
        self.page.wait_for_timeout(60)

    def tokens(self, box):
        """Of a text, each token's words and its colour: above 0, below 0 or none, and how strong."""
        return [
            (text, _signed(style))
            for text, style in box.locator(".token").evaluate_all(
                "all => all.map((one) => [one.textContent,"
                " getComputedStyle(one).backgroundColor + ' ' + one.className])"
            )
        ]

    def done(self):
        assert self.complaints == []
        assert all(url.startswith(("file:", "about:")) for url in self.requests)
        assert all(url.startswith(("about:", self.folder.parents[1].as_uri())) for url in self.requests)
        self.context.close()


def _signed(style):
    """The strength of a colour as drawn, by its opacity, with the sign that its class says."""
    alpha = 0.0 if "rgba(0, 0, 0, 0)" in style else None
    if alpha is None:
        found = re.search(r"/ ([\d.]+(?:e-?\d+)?)\)|rgba\(\d+, \d+, \d+, ([\d.]+)\)", style)
        alpha = float(found[1] or found[2]) if found else 1.0
    return alpha * (1 if " above" in style else -1 if " below" in style else 0)


@pytest.fixture
def visit(browser, folders):
    """A visitor of one of the galleries; at the end nothing was asked of a network, and nothing complained of."""
    visitors = []

    def opened(name, page="index.html", **options):
        visitors.append(Visitor(browser, folders[name][1] / page, **options))
        return visitors[-1]

    yield opened
    for one in visitors:
        one.done()


def near(found, expected):
    """Colours equal values, to a part in two hundred."""
    assert np.allclose(found, np.nan_to_num(expected), atol=0.005), max(abs(found - np.nan_to_num(expected)))


@pytest.mark.parametrize("name", ["tiny", "moe"])
def test_examples_have_the_colours_of_their_values(visit, folders, name):
    fake, _ = folders[name]
    neuron = fake.with_page[1]
    act = fake.acts[neuron]
    limit = np.nanmax(abs(act))
    reader = visit(name, f"{neuron}.html")
    for population in POPULATIONS:
        reader.page.locator(f'input[name="population"][value="{population}"]').check()
        for side in ("max", "min"):
            reader.page.locator(f'input[name="side"][value="{side}"]').check()
            reader.page.wait_for_timeout(60)
            examples = reader.page.locator(".examples").first.locator("> li")
            expected = fake.best(neuron, population, side)
            assert examples.count() == len(expected)
            for place, (_, sequence, position) in enumerate(expected):
                first, end = max(0, position - 50), min(act.shape[1], position + 11)
                found = reader.tokens(examples.nth(place))
                assert [text for text, _ in found] == [*fake.run.pieces[first:end]]
                near(np.array([colour for _, colour in found]), act[sequence, first:end] / limit)
                assert examples.nth(place).locator(".marked").all_inner_texts() == [fake.run.pieces[position]]
                assert f"sequence {sequence}, position {position}" in examples.nth(place).inner_text()


def test_a_choice_stays_in_the_address_and_holds_when_it_is_opened(visit, folders):
    fake, _ = folders["tiny"]
    neuron = fake.with_page[2]
    reader = visit("tiny", f"{neuron}.html")
    reader.page.locator('input[name="population"][value="without_first"]').check()
    reader.page.locator('input[name="side"][value="min"]').check()
    address = reader.page.url.partition("#")[2]
    assert sorted(address.split("&")) == ["population=without_first", "side=min"]
    reader.go(f"{neuron}.html#{address}")
    assert reader.page.locator('input[value="without_first"]').is_checked()
    best = fake.best(neuron, "without_first", "min")[0]
    assert f"sequence {best[1]}, position {best[2]} " in reader.page.locator(".examples > li").first.inner_text() + " "


def test_the_whole_text_is_there_on_demand(visit, folders):
    fake, _ = folders["long"]
    neuron = fake.with_page[0]
    act = fake.acts[neuron]
    reader = visit("long", f"{neuron}.html")
    example = reader.page.locator(".examples > li").first
    button = example.get_by_role("button", name="Whole text")
    _, sequence, _ = fake.best(neuron, "all", "max")[0]
    before = {url for url in reader.requests if "data/" in url}
    button.press("Enter")
    reader.page.wait_for_timeout(80)
    found = reader.tokens(example)
    assert [text for text, _ in found] == [*fake.run.pieces]
    near(np.array([colour for _, colour in found]), act[sequence] / abs(act).max())
    assert {url for url in reader.requests if "data/" in url} - before == {
        (reader.folder / f"data/{neuron}W.js").as_uri()
    }
    reader.page.locator('input[name="colours"][value="root"]').check()
    reader.page.wait_for_timeout(60)
    first = reader.tokens(reader.page.locator(".examples > li").first)
    expected = act[sequence][: len(first)] / abs(act).max()
    near(np.array([colour for _, colour in first]), np.sign(expected) * np.sqrt(abs(expected)))


def test_typical_examples_open_by_their_interval(visit, folders):
    fake, _ = folders["tiny"]
    neuron = fake.with_page[1]
    act = fake.acts[neuron]
    reader = visit("tiny", f"{neuron}.html")
    parts = reader.page.locator("details:has-text('position')")
    assert parts.count() == 10
    ends = np.linspace(act.min(), act.max(), 11)
    for place in (0, 3, 9):
        inside = (act >= ends[place]) & ((act <= ends[place + 1]) if place == 9 else (act < ends[place + 1]))
        assert f": {inside.sum():,} position" in parts.nth(place).locator("summary").inner_text()
        parts.nth(place).locator("summary").press("Enter")
        reader.page.wait_for_timeout(60)
        assert parts.nth(place).locator(".examples > li").count() == min(5, inside.sum())


def test_one_goes_from_neuron_to_neuron_by_link_and_by_key(visit, folders):
    fake, _ = folders["tiny"]
    names = [str(one) for one in fake.with_page]
    reader = visit("tiny")

    def here():
        reader.page.wait_for_function("() => document.body?.dataset.kind === 'neuron'")
        reader.settle()
        return reader.page.url.rpartition("/")[2].partition(".html")[0]

    reader.page.get_by_role("link", name="First neuron").click()
    assert here() == names[0]
    reader.page.keyboard.press("ArrowLeft")  # nothing before it
    assert here() == names[0]
    for name in names[1:4]:
        with reader.page.expect_navigation():
            reader.page.keyboard.press("ArrowRight")
        assert here() == name
    with reader.page.expect_navigation():
        reader.page.keyboard.press("ArrowLeft")
    assert here() == names[2]
    with reader.page.expect_navigation():
        reader.page.get_by_role("link", name="Next").press("Enter")
    assert here() == names[3]
    seen = set()
    for _ in range(8):
        with reader.page.expect_navigation():
            reader.page.get_by_role("button", name="Random").press("Enter")
        seen.add(here())
    assert seen <= {*names} and len(seen) > 1
    text = reader.page.locator(".text").first
    text.focus()
    here_before = here()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        text.press(key)
    assert here() == here_before and "position" in reader.page.locator(".told").first.inner_text()


def test_every_link_leads_to_a_page(visit, folders):
    for name, (fake, folder) in folders.items():
        reader = visit(name)
        for page in ("index", str(fake.with_page[0]), "D7", "S1"):
            reader.go(f"{page}.html")
            for link in reader.page.locator("a[href]").evaluate_all(
                "all => all.map((one) => one.getAttribute('href'))"
            ):
                target = link.partition("#")[0]
                assert not target or target == "../../index.html" or (folder / target).is_file(), link


def test_a_dim_s_page_colours_text_in_any_layer(visit, folders):
    fake, _ = folders["tiny"]
    reader = visit("tiny", "D7.html")
    for layer in range(fake.run.layers):
        reader.page.locator(f'input[name="layer"][value="{layer}"]').check()
        reader.page.locator('input[name="colours"][value="linear"]').check()
        reader.page.wait_for_timeout(80)
        found = reader.tokens(reader.page.locator(".reading"))
        assert [text for text, _ in found] == [*fake.run.pieces]
        near(np.array([colour for _, colour in found]), fake.along(7, layer, 0) / 300)
    text = reader.page.locator("main").inner_text()
    assert "The MLP of layer 1 writes" in text and "blocks.3.mlp_norm" in text
    assert reader.page.locator("svg .point").count() == fake.run.layers
    rows = reader.page.get_by_role("table", name="Neurons at the traced token").locator("tbody tr")
    assert rows.first.inner_text().split("\t")[0] == "L1N3"


def test_a_sequence_is_coloured_by_a_dim_or_the_norm_and_loads_what_is_looked_at(visit, folders):
    fake, _ = folders["tiny"]
    reader = visit("tiny", "S1.html")
    loaded = [url.rpartition("/")[2] for url in reader.requests if "/data/" in url]
    assert sorted(loaded) == sorted(["S1.js", "S1T.js", f"D{fake.dims[0]}L0.js"])
    reader.go("S1.html#of=norm&layer=2&colours=linear")
    found = reader.tokens(reader.page.locator(".reading"))
    near(np.array([colour for _, colour in found]), fake.along(None, 2, 1) / 300)
    reader.page.locator('[name="of"][value="D5"]').check()
    reader.page.wait_for_timeout(80)
    found = reader.tokens(reader.page.locator(".reading"))
    near(np.array([colour for _, colour in found]), fake.along(5, 2, 1) / 300)
    reader.page.locator('[name="of"][value="loss"]').check()
    reader.page.wait_for_timeout(80)
    found = reader.tokens(reader.page.locator(".reading"))
    near(np.array([colour for _, colour in found]), fake.loss(1) / np.nanmax(fake.loss(1)))


def test_hostile_text_is_shown_and_not_run(visit, folders):
    fake, _ = folders["hostile"]
    reader = visit("hostile", width=400)
    for page in ("index", str(fake.with_page[0]), "D7", "S1"):
        reader.go(f"{page}.html")
        assert reader.page.evaluate("document.documentElement.dataset.hostile") is None
        assert reader.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, page
    box = reader.page.locator(".reading")
    shown = [text for text, _ in reader.tokens(box)]
    assert shown[0].startswith(f"‹U+202E›{SCRIPT}"[:79] + "…") and shown[2] == "⇥␇" and shown[8] == "⏎"
    assert shown[7].startswith("x" * 79 + "…") and len(shown[7]) < 120
    box.get_by_role("button", name="100,000 characters").press("Enter")
    assert [text for text, _ in reader.tokens(box)][7] == "x" * 100_000
    assert reader.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert MARK not in reader.page.evaluate("[...document.scripts].map((one) => one.textContent).join('')")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_pages_fit_in_both_themes_and_text_can_be_read(visit, folders, width, theme):
    fake, _ = folders["moe"]
    reader = visit("moe", width=width, color_scheme=theme)
    for page in ("index", str(fake.with_page[0]), "D7", "S0"):
        reader.go(f"{page}.html")
        assert reader.page.evaluate("document.documentElement.dataset.theme") == theme
        assert reader.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, page
    reader.go(f"{fake.with_page[0]}.html")
    # The strongest colours, over the page's own.
    for sign in ("above", "below"):
        ratio = reader.page.evaluate(CONTRAST, sign)
        assert ratio >= 4.5, (theme, sign, ratio)
    reader.page.locator("#theme").press("Enter")
    assert reader.page.evaluate("document.documentElement.dataset.theme") != theme


CONTRAST = """sign => {
  const probe = document.createElement("span");
  probe.className = `token ${sign}`;
  probe.style.setProperty("--strength", "100");
  document.querySelector(".text").append(probe);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const { color, backgroundColor } = getComputedStyle(probe);
  const [one, other] = [light(color), light(backgroundColor)].sort((a, b) => b - a);
  probe.remove();
  return (one + 0.05) / (other + 0.05);
}"""


def test_a_hundred_thousand_neurons_are_sorted_and_searched(browser, tmp_path):
    """Names are found whole, by their block or by their number; empty cells stand last."""
    layers, neurons = 25, 4000
    fake = FakeGallery(FakeRun(layers=1, sequences=1, pieces=("a", "b", "c")), neurons=1, bare=())
    run = fake.write(tmp_path / "tiny/text")
    rng = np.random.default_rng(3)
    rows = layers * neurons
    kurtosis = rng.exponential(50, rows)
    frame = pl.DataFrame({
        "population": ["all"] * rows, "layer": np.repeat(np.arange(layers), neurons),
        "expert": [None] * rows, "neuron": np.tile(np.arange(neurons), layers), "tokens": [3] * rows,
        "active_share": rng.random(rows), "mean": rng.standard_normal(rows), "std": rng.random(rows),
        "kurtosis": [None if n % 1000 == 7 else one for n, one in enumerate(kurtosis)],
        "min": rng.random(rows) - 2, "max": rng.random(rows) + 2, "histogram_low": [0.0] * rows,
        "histogram_width": [1.0] * rows, "histogram": [[3]] * rows,
    })  # fmt: skip
    write_table(run / "neuron_statistics.parquet", frame, NEURON_STATISTICS, fake.run.provenance)
    render_gallery(run, tmp_path / "gallery/tiny/text")
    reader = Visitor(browser, tmp_path / "gallery/tiny/text/index.html")
    box = reader.page.locator("#table")
    assert box.locator("output").inner_text() == "100,000 rows"

    def names():
        return box.locator("tbody tr:not(.spacer) td:first-child").all_inner_texts()

    expected = frame.with_columns(
        name=pl.format("L{}N{}", "layer", "neuron"), kurtosis=pl.col("kurtosis").cast(pl.Float32)
    )
    for descending in (True, False):
        box.get_by_role("columnheader", name="kurtosis").get_by_role("button").press("Enter")
        order = expected.sort("kurtosis", descending=descending, nulls_last=True, maintain_order=True)
        shown = names()
        assert len(shown) > 10 and shown == order["name"].head(len(shown)).to_list()
    search = box.get_by_role("searchbox")
    for query, count, first in (
        ("L11N1229", 1, "L11N1229"),
        ("1229", 25, None),
        ("L24", 4000, None),
        ("l3n77", 11, None),
    ):
        search.fill(query)
        reader.page.wait_for_function(
            "text => document.querySelector('#table output').textContent === text", arg=f"{count:,} of 100,000 rows"
        )
        assert first is None or names() == [first]
    search.fill("")
    reader.page.wait_for_function("() => document.querySelector('#table output').textContent === '100,000 rows'")
    box.get_by_role("combobox").select_option("yes")
    assert box.locator("output").inner_text() == "1 of 100,000 rows" and names() == ["L0N0"]
    box.get_by_role("link", name="L0N0").press("Enter")
    reader.page.wait_for_function("() => document.body?.dataset.name === 'L0N0'")
    reader.go("index.html#L7")
    assert box.locator("output").inner_text() == "4,000 rows" and names()[0] == "L7N0"
    reader.done()


def test_data_that_are_missing_are_named(browser, tmp_path):
    pages = GalleryPages(tmp_path)
    pages.write("L0N0.html", "shell.html.j2", kind="neuron", name="L0N0", title="Neuron L0N0")
    reader = Visitor(browser, tmp_path / "L0N0.html")
    assert "data/L0N0.js" in reader.page.locator(".notice").inner_text()
    reader.context.close()
