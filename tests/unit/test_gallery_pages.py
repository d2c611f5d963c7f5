"""Pages of the gallery: what their data say, against the activations that they are of."""

import base64
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fake_gallery import POPULATIONS, FakeGallery
from fake_run import FakeRun
from outlier_features.command.main import main
from outlier_features.errors import InputError
from outlier_features.files.artifacts import require_page, write_json
from outlier_features.gallery.deciles import deciles
from outlier_features.gallery.list_galleries import list_galleries
from outlier_features.gallery.names import Neuron
from outlier_features.gallery.packed_values import halves
from outlier_features.gallery.render_gallery import leave_out_gallery, render_gallery
from outlier_features.gallery.windows import joined_windows, window
from outlier_features.report.page_data import data_script
from outlier_features.report.render_report import render_report
from outlier_features.run.verify_artifacts import verify_artifacts
from outlier_features.wording import number

ROOT = Path(__file__).parents[2]


def read_data(folder: Path, name: str):
    """What a data script hands over."""
    text = (folder / "data" / f"{name}.js").read_text()
    found = re.fullmatch(r'beside\.take\("([^"]*)",(.*)\);\n// content_crc32 \w{8}\n', text)
    assert found and found[1] == name
    return json.loads(found[2])


def unpacked(packed) -> np.ndarray:
    halves_of = np.frombuffer(base64.b64decode(packed["halves"]), "<f2").astype(float)
    return halves_of * packed["scale"]


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal to three digits, as far as 16-bit floats have them."""
    return np.allclose(found, expected, rtol=2**-11, atol=2**-24 * np.nanmax(abs(expected)), equal_nan=True)


@pytest.fixture(scope="module", params=[0, 2], ids=["dense", "experts"])
def gallery(request, tmp_path_factory):
    """A gallery, the folder of its pages, and the directory of its run."""
    folder = tmp_path_factory.mktemp("gallery")
    fake = FakeGallery(experts=request.param)
    run = fake.write(folder / "results/tiny/text")
    source = fake.write_source(folder / "resources/models/tiny")
    render_gallery(run, folder / "results/gallery/tiny/text", source=source)
    return fake, folder / "results/gallery/tiny/text", run


@pytest.mark.parametrize("length", [1, 10, 61, 100])
def test_windows_are_what_a_look_at_each_position_gives(length):
    rng = np.random.default_rng(length)
    for position in range(length):
        seen = [n for n in range(length) if -50 <= n - position <= 10]
        assert window(position, length) == (seen[0], seen[-1] + 1)
    for _ in range(20):
        positions = rng.integers(0, length, rng.integers(1, 5)).tolist()
        seen = {n for n in range(length) for p in positions if -50 <= n - p <= 10}
        joined = joined_windows(positions, length)
        assert {n for first, end in joined for n in range(first, end)} == seen
        assert all(one[1] < other[0] for one, other in pairwise(joined))


def test_packed_values_keep_three_digits():
    values = np.array([0.0, 1e-30, 5e-3, -0.1, 123.456, -6e4, 9.9e8, np.nan, np.inf], np.float32)
    for some in (values, values[:5], values[:1], values[-2:]):
        finite = np.isfinite(some)
        found = unpacked(halves(some))
        assert np.array_equal(found[~finite], some[~finite], equal_nan=True)
        largest = abs(some[finite]).max(initial=0)
        assert np.all(abs(found[finite] - some[finite]) <= abs(some[finite]) * 2**-11 + largest * 2**-23)


def test_deciles_are_off_by_less_than_a_bin():
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal(1000), rng.exponential(5, 317), np.array([2.0]), np.array([-1.0] * 9 + [8.0])):
        width = 2.0 ** math.ceil(math.log2(max(np.ptp(values), 1e-3) / 32))
        low = math.floor(values.min() / width) * width
        counts = np.bincount(np.floor((values - low) / width).astype(int)).tolist()
        found = deciles(low, width, counts, values.min(), values.max())
        exact = np.quantile(values, np.arange(1, 10) / 10, method="inverted_cdf")
        assert np.all(abs(found - exact) <= width) and found == sorted(found)
        assert values.min() <= found[0] and found[-1] <= values.max()
    assert deciles(0.0, 1.0, [], 0.0, 0.0) == []


def test_a_script_of_data_holds_no_markup():
    text = '</script><!--<script>\u2028\u2029&"\\\ud7ff\u202e'
    script = data_script("S0", {"pieces": [text]})
    assert not set("<>&\u2028\u2029\u202e") & set(script) and script.isascii()
    assert json.loads(script.removeprefix('beside.take("S0",').removesuffix(");\n")) == {"pieces": [text]}


def test_every_neuron_of_the_tables_has_a_page(gallery):
    fake, folder, _ = gallery
    for neuron in fake.acts:
        assert (folder / f"{neuron}.html").exists() == (neuron in fake.with_page)
        assert Neuron.parse(str(neuron)) == neuron
    listed = read_data(folder, "pages")
    assert listed["rows"] == len(fake.with_page)
    for place, neuron in enumerate(fake.with_page):
        around = read_data(folder, str(neuron))["around"]
        assert around[0] == (str(fake.with_page[place - 1]) if place else None)
        assert around[1] == (str(fake.with_page[place + 1]) if place + 1 < len(fake.with_page) else None)


def test_examples_and_their_windows_are_those_of_the_activations(gallery):
    fake, folder, _ = gallery
    for neuron in fake.with_page:
        act, data = fake.acts[neuron], read_data(folder, str(neuron))
        places = data["places"]
        for population in POPULATIONS:
            for side in ("max", "min"):
                found = [
                    (places["value"][n], places["sequence"][n], places["token"][n])
                    for n in data["lists"][population][side]
                ]
                expected = fake.best(neuron, population, side)
                assert [one[1:] for one in found] == [one[1:] for one in expected]
                assert [np.float32(one[0]) for one in found] == [np.float32(one[0]) for one in expected]
        along, start, shown = unpacked(data["values"]), 0, set()
        for sequence, first, end in data["segments"]:
            assert close(along[start : start + end - first], act[sequence, first:end])
            shown |= {(sequence, position) for position in range(first, end)}
            start += end - first
        assert start == len(along)
        for sequence, token in zip(places["sequence"], places["token"], strict=True):
            assert {(sequence, n) for n in range(act.shape[1]) if -50 <= n - token <= 10} <= shown
        assert data["limit"] == pytest.approx(np.nanmax(abs(act)), rel=1e-7)
        if data["has_more"]:
            whole = read_data(folder, f"{neuron}W")
            assert all(close(unpacked(packed), act[int(name[1:])]) for name, packed in whole.items())
        assert sum(one["tokens"] for one in data["intervals"]) == (~np.isnan(act)).sum()


def test_the_table_of_all_neurons_is_that_of_the_run(gallery):
    fake, folder, run = gallery
    statistics = pl.read_parquet(run / "neuron_statistics.parquet").filter(population="all")
    for layer in range(fake.run.layers):
        data, expected = read_data(folder, f"L{layer}"), statistics.filter(layer=layer)
        for name in ("active_share", "mean", "std", "kurtosis", "min", "max"):
            found = np.frombuffer(base64.b64decode(data[name]), "<f4")
            assert np.array_equal(found, expected[name].to_numpy().astype("<f4"))
        neurons = np.frombuffer(base64.b64decode(data["neuron"]), "<u4")
        assert neurons.tolist() == expected["neuron"].to_list()
        assert data["pages"] == [n for n, one in enumerate(one for one in fake.acts if one.layer == layer)
                                 if one in fake.with_page]  # fmt: skip


def test_text_is_coloured_by_what_was_recorded(gallery):
    fake, folder, _ = gallery
    for dim in (*fake.dims, None):
        for layer in range(fake.run.layers):
            data = read_data(folder, f"{'norm' if dim is None else f'D{dim}'}L{layer}")
            assert {*data} == {f"S{n}" for n in range(fake.run.sequences)}
            for name, packed in data.items():
                assert close(unpacked(packed), fake.along(dim, layer, int(name[1:])))


def test_pieces_show_what_cannot_be_seen(tmp_path):
    """A tab, spaces, a line end, a mark that turns text around; half a character; a character that two tokens share."""
    pieces = ("a  b", " ", "\n", "\t", "\u202e", "x ", "", " c", "é", "é", "z")
    fake = FakeGallery(FakeRun(pieces=pieces, sequences=1))
    run = fake.write(tmp_path / "results/tiny/text")
    from outlier_features.gallery.gallery_run import GalleryRun
    from outlier_features.tokens.tokens import Tokens

    read = GalleryRun.read(run, fake.write_source(tmp_path / "model"))
    assert read.pieces(0) == ["a··b", "·", "⏎", "⇥", "‹U+202E›", "x·", "", " c", "é", "é", "z"]
    offsets = read.tokens.offsets.copy()
    start = int(offsets[0, 8, 0])
    offsets[0, 8], offsets[0, 9] = (start, start + 1), (start + 1, start + 2)  # bytes of one character
    halved = GalleryRun(run, Tokens(read.tokens.tokens, read.tokens.special, read.tokens.mask, offsets,
                                    read.tokens.provenance), read.texts, read.vocabulary)  # fmt: skip
    assert halved.pieces(0)[8:10] == ["‹byte C3›", "‹byte A9›"]
    offsets = offsets.copy()
    offsets[0, 8] = offsets[0, 9] = (start, start + 2)  # both say the whole
    tokens = read.tokens.tokens.copy()
    alphabet = read.vocabulary.tokenizer
    tokens[0, 8], tokens[0, 9] = (alphabet.token_to_id(one) for one in "Ã©")  # as byte-level tokenizers write C3, A9
    shared = Tokens(tokens, read.tokens.special, read.tokens.mask, offsets, read.tokens.provenance)
    assert GalleryRun(run, shared, read.texts, read.vocabulary).pieces(0)[8:10] == ["‹byte C3›", "‹byte A9›"]
    apart = read.tokens.offsets.copy()
    apart[0, 3, 0], apart[0, 7, 0] = apart[0, 3, 1], apart[0, 7, 0] + 1  # a tab and a space that no token covers
    spaced = Tokens(read.tokens.tokens, read.tokens.special, read.tokens.mask, apart, read.tokens.provenance)
    assert GalleryRun(run, spaced, read.texts, read.vocabulary).pieces(0)[3:8] == ["", "⇥‹U+202E›", "x·", "", " c"]
    unknown = GalleryRun(run, shared, read.texts, type(read.vocabulary)())
    assert unknown.pieces(0)[8:10] == ["‹part of é›"] * 2


def test_published_examples_stand_beside_the_run_s_own(tmp_path):
    """On the page of their neuron, rank by rank; on no other neuron's, and on no other model's."""
    fake = FakeGallery()
    run, source = fake.write(tmp_path / "results/tiny/text"), fake.write_source(tmp_path / "model")
    lines = [
        "hub_id,layer,neuron,rank,value,sequence,position,source",
        *(f"org/x,1,2,{k},{k}.5,9,{k},me" for k in (1, 2, 9)),
    ]
    (tmp_path / "published.csv").write_text("\n".join(lines))
    record = json.loads(source.read_text())
    for origin in ("org/x", "org/y"):
        write_json(source, {**record, "kind": "hub", "origin": origin})
        render_gallery(run, tmp_path / origin, source=source, published=tmp_path / "published.csv")
    own = pl.read_parquet(run / "neurons.parquet").filter(population="all", layer=1, neuron=2, side="max")
    beside = {rank: (value, sequence, token) for rank, value, sequence, token in own.select(
        "rank", "value", "sequence", "token").rows()}  # fmt: skip
    found = read_data(tmp_path / "org/x", "L1N2")["published"]
    assert found["source"] == "me" and [row[:4] for row in found["rows"]] == [
        [1, 1.5, 9, 1],
        [2, 2.5, 9, 2],
        [9, 9.5, 9, 9],
    ]
    assert [tuple(row[4:]) for row in found["rows"]] == [beside.get(rank, (None, None, None)) for rank in (1, 2, 9)]
    assert (
        read_data(tmp_path / "org/x", "L1N1")["published"] is read_data(tmp_path / "org/y", "L1N2")["published"] is None
    )


def test_a_gallery_is_whole_and_verify_knows_damage(gallery):
    fake, folder, _ = gallery
    results = folder.parents[2]
    assert all(verdict.found is None for verdict in verify_artifacts([results]))
    for name in ("data/L1N0.js", "data/S0T.js", "L1N0.html", "manifest.json") if not fake.experts else ():
        path = folder / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert [verdict.path for verdict in verify_artifacts([results]) if verdict.found] == [path]
        path.write_bytes(whole)


def test_a_gallery_takes_the_place_of_the_one_before(tmp_path):
    fake = FakeGallery(FakeRun(pieces=("a", "b", "c"), sequences=1, layers=2), neurons=1, bare=())
    run, folder = fake.write(tmp_path / "results/tiny/text"), tmp_path / "results/gallery/tiny/text"
    folder.mkdir(parents=True)
    (folder / "L9N9.html").write_text("of another run")
    render_gallery(run, folder)
    assert not (folder / "L9N9.html").exists() and (folder / "L1N0.html").exists()
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    render_gallery(run, folder)
    assert first == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [path.name for path in folder.parent.iterdir()] == ["text"]
    index = folder.parents[1] / "index.html"
    list_galleries([folder / "manifest.json"], index)
    require_page(index)
    assert 'href="tiny/text/index.html"' in index.read_text()


def test_the_command_prints_a_neuron_and_names_its_page(gallery, capsys):
    fake, folder, run = gallery
    neuron = fake.with_page[1]
    assert main(["neuron", str(run), str(neuron), "--no-open"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith(str(folder / f"{neuron}.html"))
    for value, _, token in fake.best(neuron, "all", "max"):
        assert number(value) in out and f"[ w{token}]" in out


def test_the_command_makes_a_page_that_the_gallery_does_not_have(gallery, capsys, tmp_path):
    fake, _, run = gallery
    neuron = next(one for one in fake.acts if one not in fake.with_page)
    command = ["neuron", str(run), str(neuron), "--no-open", "--population", "without_first"]
    assert main([*command, "--output-dir", str(tmp_path / "pages")]) == 0
    assert (tmp_path / "pages" / f"{neuron}.html").exists()
    data = read_data(tmp_path / "pages", str(neuron))
    assert data["values"] is None and data["around"] == [None, str(fake.with_page[0])]
    assert {(data["places"]["sequence"][n], data["places"]["token"][n]) for n in data["lists"]["all"]["max"]} == {
        one[1:] for one in fake.best(neuron, "all", "max")
    }
    assert read_data(tmp_path / "pages", "S0T")["pieces"] == [*fake.run.pieces]
    assert main(["dim", str(run), "9", "--no-open", "--output-dir", str(tmp_path / "pages")]) == 0
    assert (tmp_path / "pages/D9.html").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["neuron", "{run}", "L9N0"], ("L9N0", "blocks 0 to 3")),
        (["neuron", "{run}", "L0N99"], ("L0N99",)),
        (["neuron", "{run}", "1229"], ("1229", "L11N1229")),
        (["neuron", "{run}/..", "L0N0"], ("tokens.safetensors", "<results>/<model>/<corpus>")),
        (["dim", "{run}", "64"], ("64", "0 to 63")),
    ],
)
def test_mistakes_are_one_sentence(gallery, capsys, arguments, words):
    _, _, run = gallery
    assert main([*(one.format(run=run) for one in arguments), "--no-open"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and all(word in error for word in words)


def test_a_run_without_a_ranking_says_so(tmp_path, capsys):
    run = FakeRun().write(tmp_path / "tiny/text")
    (run / "neurons.parquet").unlink()
    assert main(["neuron", str(run), "L0N0", "--no-open"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "neurons.parquet" in error


def test_the_report_leads_to_the_gallery_and_its_dims(gallery, tmp_path):
    fake, folder, run = gallery
    report = folder.parents[2] / "report.html"
    made_of = {"published": ROOT / "workflow/published", "definitions": ROOT / "docs/definitions.md"}
    render_report([run], report, **made_of)
    assert 'href="gallery/' not in report.read_text()
    render_report([run], report, **made_of, galleries=[folder / "manifest.json"])
    links = set(re.findall(r'href="(gallery/[^"]*)"', report.read_text()))
    assert links == {f"gallery/tiny/text/{name}.html" for name in ("index", *(f"D{dim}" for dim in fake.dims))}
    assert all((folder.parents[2] / link).is_file() for link in links)
    other = FakeGallery(FakeRun(pieces=("a", "b", "c")), neurons=1).write(tmp_path / "tiny/text")
    render_gallery(other, tmp_path / "gallery/tiny/text")
    with pytest.raises(InputError, match="another run"):
        render_report(
            [run], tmp_path / "report.html", **made_of, galleries=[tmp_path / "gallery/tiny/text/manifest.json"]
        )


def test_a_run_without_the_analysis_has_a_gallery_that_says_why(tmp_path):
    run = FakeRun(missing={"gallery": "skip names it"}).write(tmp_path / "tiny/text")
    folder = tmp_path / "gallery/tiny/text"
    leave_out_gallery(run, folder, "The gallery cannot be had: <b>so it is</b>.")
    index = (folder / "index.html").read_text()
    assert "&lt;b&gt;so it is" in index and json.loads((folder / "manifest.json").read_text())["neurons"] == 0
    render_gallery(run, folder)
    assert "is turned off" in (folder / "index.html").read_text() and not [*folder.glob("L*.html")]
