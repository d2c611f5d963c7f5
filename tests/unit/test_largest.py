"""The largest of each dim, against a search through the rows one by one."""

import random

import polars as pl
import pytest

from outlier_features.largest import largest_of_each


@pytest.mark.parametrize("seed", range(5))
def test_of_equal_values_the_first_place_counts_whatever_the_order_of_the_table(seed):
    rolled = random.Random(seed)
    places = [(s, layer, t, dim) for s in range(3) for layer in range(3) for t in range(3) for dim in range(4)]
    rolled.shuffle(places)
    names = ("value", "sequence", "layer", "token", "dim")
    rows = [(float(rolled.choice([-2, -1, 1, 2])), *place) for place in places[:40]]
    best = {}
    for value, *place in rows:
        key = (-abs(value), *place)
        if place[3] not in best or key < best[place[3]][0]:
            best[place[3]] = key, (value, *place)
    found = largest_of_each(pl.DataFrame(rows, schema=names, orient="row"), "value", "dim")
    assert found.rows() == [row for _, row in sorted(best.values())]


def test_of_one_place_the_first_row_counts_and_keys_may_be_several():
    rows = [("b", 3.0, 1, 7), ("a", -3.0, 1, 7), ("c", 3.0, 0, 7), ("d", 1.0, 0, 2)]
    table = pl.DataFrame(rows, schema=["rule", "value", "layer", "dim"], orient="row")
    assert largest_of_each(table, "value", "dim")["rule"].to_list() == ["c", "d"]
    assert largest_of_each(table, "value", "layer", "dim")["rule"].to_list() == ["c", "b", "d"]
    assert largest_of_each(table.clear(), "value", "dim").is_empty()
