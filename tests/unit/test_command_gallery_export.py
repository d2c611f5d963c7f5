"""Neurons as JSON lines, against the activations that a run's tables were made from."""

import gzip
import json
import math

import numpy as np
import pytest

from fake_gallery import FakeGallery
from outlier_features.command.main import main
from outlier_features.gallery.names import Neuron


def lines_of(directory, *options, name="out.jsonl", gallery):
    run = gallery.write(directory / "results" / "tiny" / "text")
    gallery.write_source(directory / "resources" / "models" / "tiny")
    output = directory / name
    arguments = [str(run), "--output", str(output), "--resources", str(directory / "resources"), *options]
    assert main(["gallery-export", *arguments]) == 0
    data = gzip.decompress(output.read_bytes()) if name.endswith(".gz") else output.read_bytes()
    return [json.loads(line) for line in data.decode().splitlines()]


def same(found, expected):
    return len(found) == len(expected) and all(
        (one is None and math.isnan(other)) or np.float32(one) == other
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(("experts", "population"), [(0, "all"), (2, "without_high_norm")])
def test_a_line_has_a_neurons_examples_with_all_tokens_and_values(tmp_path, experts, population):
    gallery = FakeGallery(experts=experts)
    lines = lines_of(tmp_path, "--population", population, gallery=gallery)
    assert [line["name"] for line in lines] == [str(neuron) for neuron in gallery.with_page]
    for line in lines:
        neuron = Neuron(line["layer"], line["expert"], line["index"])
        act = gallery.acts[neuron]
        assert line["maxActApprox"] == pytest.approx(np.nanmax(act)) and line["n_tokens"] == (~np.isnan(act)).sum()
        for side in ("max", "min"):
            examples = [one for one in line["activations"] if one["group"] == side]
            found = [(one["values"][one["qualifyingTokenIndex"]], one["dataIndex"]) for one in examples]
            expected = [(value, sequence) for value, sequence, _ in gallery.best(neuron, population, side)]
            assert found == [(pytest.approx(value), sequence) for value, sequence in expected]
        assert any(one["group"] == "interval" for one in line["activations"])
        for one in line["activations"]:
            along = act[one["dataIndex"]]
            assert one["tokens"] == [f" w{n}" for n in range(90)] and same(one["values"], along)
            assert one["maxValueTokenIndex"] == np.nanargmax(along) and one["minValue"] == pytest.approx(
                np.nanmin(along)
            )
            if one["group"] == "interval":
                value = one["values"][one["qualifyingTokenIndex"]]
                assert one["binMin"] <= np.float32(value) <= one["binMax"] and 0 < one["binContains"] <= 1
            else:
                assert one["binContains"] == -1


def test_a_zipped_file_has_the_same_lines(tmp_path):
    plain = lines_of(tmp_path / "plain", gallery=FakeGallery())
    assert lines_of(tmp_path / "zipped", name="out.jsonl.gz", gallery=FakeGallery()) == plain


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["gallery-export", str(tmp_path), "--output", str(tmp_path / "x.jsonl")]) == 1
    assert "expected a run's directory" in capsys.readouterr().err and not (tmp_path / "x.jsonl").exists()
