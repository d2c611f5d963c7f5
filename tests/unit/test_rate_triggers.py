"""Trigger rates against counting by hand, and the classes of tokens."""

import numpy as np
import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.files.tables import read_table
from outlier_features.origin.rate_triggers import rate_triggers, trigger_rows
from outlier_features.origin.token_classes import CLASSES, class_of
from outlier_features.origin.trigger_schema import TRIGGERS


@pytest.mark.parametrize(
    ("text", "before", "name"),
    [
        ("\n", "x", "newline"), (" \n\n", "x", "newline"), ("  ", "x", "space"), ("", "x", "other"),
        (".", "x", "punctuation"), (" (", "x", "punctuation"), ("==", "x", "punctuation"), ("12", "x", "number"),
        (" 3.5", "x", "number"), (" The", "x", "function word"), ("of", " ", "function word"),
        ("'s", "t", "function word"), ("of", "o", "piece"), (" cat", "x", "word"), ("cat", " ", "word"),
        ("cat", "", "word"), ("ing", "k", "piece"), (" x1", "x", "word"), ("\ufffd", "x", "punctuation"),
        (" Straße", "x", "word"), ("的", "了", "piece"), ("print", "(", "word"),
    ],
)  # fmt: skip
def test_classes(text, before, name):
    assert class_of(text, before) == name
    assert class_of(text, before, first=True, special=True) == "first"
    assert class_of(text, before, special=True) == "special"


def test_rates_are_those_counted_by_hand():
    rng = np.random.default_rng(0)
    classes = [[CLASSES[k] for k in rng.integers(0, 4, 30)] for _ in range(5)]
    classes[2][20:] = [None] * 10
    places = {(int(rng.integers(5)), int(rng.integers(20)), int(dim)) for dim in rng.integers(3, 6, 60)}
    rows = [
        {"sequence": n, "token": t, "dim": dim, "layer": layer, "value": -float(100 + n + t + layer), "rule": "massive"}
        for n, t, dim in places
        for layer in range(1, 3)
    ]
    found = trigger_rows(pl.DataFrame(rows, schema=MASSIVE.schema), classes)
    present = {name for sequence in classes for name in sequence if name}
    assert len(found) == 3 * len(present)
    for row in found.iter_rows(named=True):
        of_class = [(n, t) for n, own in enumerate(classes) for t, name in enumerate(own) if name == row["token_class"]]
        hit = [(n, t) for n, t in of_class if (n, t, row["dim"]) in places]
        assert (row["tokens"], row["massive"]) == (len(of_class), len(hit))
        assert row["rate"] == len(hit) / len(of_class)
        assert row["max_abs"] == (max(102 + n + t for n, t in hit) if hit else None)


def test_of_a_run(tmp_path):
    run = FakeRun(position=4).write(tmp_path / "run")
    files = [run / name for name in ("tokens.safetensors", "texts.parquet", "massive.parquet", "triggers.parquet")]
    rate_triggers(*files)
    rows, _ = read_table(files[-1], TRIGGERS)
    one = rows.filter(dim=7)
    assert dict(one.select("token_class", "tokens").rows()) == {
        "first": 2, "newline": 2, "punctuation": 2, "function word": 2, "word": 4,
    }  # fmt: skip
    assert one.filter(pl.col("massive") > 0).select("token_class", "massive", "rate").rows() == [
        ("function word", 2, 1.0)
    ]
