"""The data that lie in the report: what is packed is what was there, and what is cut is counted."""

import base64
import gzip
import json
import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_features.report.page_data import LONGEST_TEXT, fair_shares, packed, packed_within


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def values(column):
    """A column's values, as the page's scripts read them."""
    if "levels" in column:
        return [None if code is None else column["levels"][code] for code in column["codes"]]
    names = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
    return [names.get(value, value) if isinstance(value, str) else value for value in column["values"]]


FLOATS = st.lists(st.none() | st.floats(width=64), max_size=20)
INTEGERS = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=20)
TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=50), max_size=20)


@settings(deadline=None, max_examples=50)
@given(st.tuples(FLOATS, INTEGERS, TEXTS, st.lists(st.none() | st.booleans(), max_size=20)))
def test_what_is_packed_is_what_was_there(lists):
    for given_values, dtype in zip(lists, (pl.Float64, pl.Int64, pl.String, pl.Boolean), strict=True):
        table = unpacked(packed(pl.DataFrame({"a": pl.Series(given_values, dtype=dtype)})))
        (column,) = table["columns"]
        assert table["rows"] == len(given_values)
        found = values(column)
        if dtype == pl.Int64 and column["kind"] == "text":  # beyond what a script's numbers hold
            assert any(value is not None and abs(value) > 2**53 for value in given_values)
            found = [None if value is None else int(value) for value in found]
        assert [str(value) for value in found] == [str(value) for value in given_values]


def test_single_precision_is_exact_in_double():
    series = pl.Series("a", [0.1, 1e-45, 3.4e38], dtype=pl.Float32)
    found = unpacked(packed(series.to_frame()))["columns"][0]["values"]
    assert pl.Series("a", found, dtype=pl.Float64).equals(series.cast(pl.Float64))
    assert found[0] != 0.1


def test_long_text_is_stored_once_and_cut():
    long = "x" * 100_000
    text = packed(pl.DataFrame({"a": [long, "short", long] * 1000}))
    (column,) = unpacked(text)["columns"]
    assert column["levels"] == ["x" * LONGEST_TEXT + "… (100000 characters)", "short"]
    assert column["codes"] == [0, 1, 0] * 1000
    assert len(text) < 2000


@pytest.mark.parametrize("most", [0, 900, 5000, 10**7])
def test_as_many_rows_as_fit(most):
    frame = pl.DataFrame({"a": [math.sin(row) for row in range(2000)]})
    whole = packed(frame)
    text, rows = packed_within(frame, whole, most, {})
    assert unpacked(text)["columns"][0]["values"] == frame["a"].to_list()[:rows]
    assert unpacked(text)["rows"] == rows
    assert len(text) <= most or rows == 0
    assert rows == 2000 or len(packed(frame.head(int(rows * 1.1) + 20))) > most


def test_shares_are_fair():
    assert fair_shares({"a": 5, "b": 100, "c": 40, "d": 60}, 105) == {"a": 5, "b": 34, "c": 33, "d": 33}
    assert fair_shares({"a": 5, "b": 100}, 1000) == {"a": 5, "b": 100}
    assert fair_shares({"a": 5, "b": 3}, 0) == {"a": 0, "b": 0}
    assert fair_shares({}, 10) == {}
