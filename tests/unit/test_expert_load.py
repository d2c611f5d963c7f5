"""How routers spread positions over experts: counts against hooks on the routers, and measures against brute force."""

import math

import numpy as np
import polars as pl
import pytest

import zoo
from outlier_features.experts.expert_load import COUNTS, balance_rows, load_rows
from outlier_features.experts.record_experts import record_experts
from outlier_features.populations import population_sizes
from test_moe_layers import MOE, prepared, seen_by_hooks, some_run


def choices_by_hand(loaded, run, sequences):
    """By block, [(population's flag, experts chosen, their weights)] of each position, from hooks on the routers."""
    found = {}
    for sequence in sequences:
        ids = run.tokens[sequence][run.mask[sequence]]
        rest = (run.parts[sequence][run.mask[sequence]] == 1).tolist()
        for layer, here in seen_by_hooks(loaded, ids).items():
            _, weights, chosen = here["router"][1]
            found.setdefault(layer, []).extend(zip(rest, chosen.tolist(), weights.tolist(), strict=True))
    return found


@pytest.mark.parametrize("name", ["olmoe", "qwen3_next", "gpt_oss", "mixtral", "deepseek_v3"])
def test_loads_are_those_of_the_routers_choices(name):
    loaded, layers = prepared(name)
    run = some_run(shorter=9)
    run.special[0, 4] = True
    counts = record_experts(loaded, layers.layers, run, ranked=[0, 1], locations=[(2, 3, 5)]).counts
    positions = {population: int(size[:2].sum()) for population, size in population_sizes(run.parts).items()}
    assert positions == {"all": 14 + 9, "without_first": 14 + 9 - 3}
    load = load_rows(counts, positions)
    balance = balance_rows(load, positions)
    by_hand = choices_by_hand(loaded, run, (0, 1))
    assert set(by_hand) == set(MOE[name][0]) and len(load) == 2 * len(by_hand) * zoo.EXPERTS
    for population, size in positions.items():
        for layer, choices in by_hand.items():
            kept = [one for one in choices if population == "all" or one[0]]
            assert len(kept) == size
            weights = [
                [w for _, chosen, given in kept for e, w in zip(chosen, given, strict=True) if e == expert]
                for expert in range(zoo.EXPERTS)
            ]
            sizes, total = [*map(len, weights)], sum(map(sum, weights))
            rows = load.filter(population=population, layer=layer).sort("expert")
            assert rows["chosen"].to_list() == sizes
            assert rows["share"].to_list() == pytest.approx([n / size for n in sizes])
            assert rows["load"].to_list() == pytest.approx([n * zoo.EXPERTS / sum(sizes) for n in sizes])
            assert rows["mean_weight"].to_list() == [
                pytest.approx(np.mean(one), rel=1e-5) if one else None for one in weights
            ]
            assert rows["weight_share"].to_list() == pytest.approx([sum(one) / total for one in weights], rel=1e-5)
            row = balance.filter(population=population, layer=layer).row(0, named=True)
            shares = [n / sum(sizes) for n in sizes]
            entropy = -sum(p * math.log(p) for p in shares if p) / math.log(zoo.EXPERTS)
            assert (row["positions"], row["experts"], row["never_chosen"]) == (size, zoo.EXPERTS, sizes.count(0))
            assert row["experts_per_position"] == pytest.approx(2) and row["entropy"] == pytest.approx(entropy)
            assert row["largest_expert"] == sizes.index(max(sizes))
            assert row["largest_load"] == pytest.approx(max(shares) * zoo.EXPERTS)


@pytest.mark.parametrize(
    ("chosen", "entropy", "largest"),
    [((5, 5, 5, 5), 1.0, 1.0), ((20, 0, 0, 0), 0.0, 4.0), ((10, 10, 0, 0), 0.5, 2.0), ((7,), None, 1.0)],
)
def test_an_even_router_and_one_that_sends_all_to_one(chosen, entropy, largest):
    counts = pl.DataFrame(
        [{"layer": 3, "expert": e, "of": 1, "chosen": n, "weight": n / 2} for e, n in enumerate(chosen)], schema=COUNTS
    )
    load = load_rows(counts, {"all": 20})
    row = balance_rows(load, {"all": 20}).row(0, named=True)
    assert row["entropy"] == (None if entropy is None else pytest.approx(entropy)) and row["largest_load"] == largest
    assert load["mean_weight"].to_list() == [0.5 if n else None for n in chosen]


def test_a_population_without_positions_has_no_shares():
    """A text of one position a sequence: all of them are first."""
    counts = pl.DataFrame(
        [{"layer": 0, "expert": e, "of": 0, "chosen": 3 - e, "weight": 1.0} for e in range(2)]
        + [{"layer": 0, "expert": e, "of": 1, "chosen": 0, "weight": 0.0} for e in range(2)], schema=COUNTS,
    )  # fmt: skip
    positions = {"all": 5, "without_first": 0}
    load = load_rows(counts, positions)
    assert (
        load.filter(population="without_first").select("share", "load", "mean_weight", "weight_share").rows()
        == [(None,) * 4] * 2
    )
    row = balance_rows(load, positions).filter(population="without_first").row(0, named=True)
    assert row == {"population": "without_first", "layer": 0, "positions": 0, "experts": 2, "never_chosen": 2} | (
        dict.fromkeys(("experts_per_position", "largest_load", "largest_expert", "entropy"))
    )
