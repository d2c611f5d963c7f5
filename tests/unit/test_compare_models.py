"""Runs beside one another: numbers against loops over pairs, intervals against samples that are drawn one by one."""

import csv
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fake_run import RULES, FakeRun
from outlier_features.command.main import main
from outlier_features.compare.compare_models import compare_models
from outlier_features.compare.failures import read_failures, write_failures
from outlier_features.compare.models_schema import MODELS
from outlier_features.compare.published_numbers import numbers_of_model, published_numbers
from outlier_features.compare.rule_numbers import rule_numbers
from outlier_features.dims.dims_schema import PAIRS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.files.tables import public_tables, read_table, write_table
from outlier_features.resampling import DRAWS, SEED, Resampling
from outlier_features.rules.kinds import hit_rules

PUBLISHED = Path(__file__).parents[2] / "workflow/published"
SEQUENCES = 7


def random_pairs(seed, sequences=SEQUENCES, dims=9):
    """Some pairs that pass and some that do not; the last sequence has none."""
    random = np.random.default_rng(seed)
    rows = []
    for sequence in range(sequences - 1):
        for dim in random.choice(dims, dims - 3, replace=False):
            blocks, sites, union = random.integers(1, 9) / 8, random.integers(1, 9) / 16, random.random() / 4
            rows.append({
                "population": "all", "rule": "dettmers", "sites": "attn_norm", "sequence": sequence, "dim": dim,
                "blocks": blocks, "sites_share": sites, "union": union, "pooled": 0.0, "affected": 0.0,
                "occurrences": int(random.integers(1, 90)), "locations": 1, "positive": 1, "first_layer": 0,
                "last_layer": 1, "max_abs": 6 + random.random(), "passes": blocks >= 0.25 and union >= 0.06,
            })  # fmt: skip
    return pl.DataFrame(rows, schema=PAIRS.schema)


def by_hand(pairs, largest_dim):
    """The numbers of a sample of sequences, in which one may stand several times."""
    passing = [row for row in pairs if row["passes"]]
    swept = [row for row in pairs if row["sites_share"] >= 0.25 and row["union"] >= 0.06]
    of_dim = defaultdict(list)
    for row in pairs:
        of_dim[row["dim"]].append(row)
    selected = sorted({row["dim"] for row in passing})
    found = {"dims": len(selected), "pairs": len(passing), "sweep_pairs": len(swept)}
    for share, reading in (("layer_share", "blocks"), ("position_share", "union")):
        means = [np.mean([row[reading] for row in of_dim[dim]]) for dim in selected]
        found[f"{share}_mean"], found[f"{share}_median"] = mean_and_median(means)
    for share, reading in (("layer_share", "sites_share"), ("position_share", "union")):
        values = [row[reading] for row in swept]
        found[f"sweep_{share}_mean"], found[f"sweep_{share}_median"] = mean_and_median(values)
    found["magnitude_median"] = mean_and_median([row["max_abs"] for row in passing if row["dim"] == largest_dim])[1]
    return found


def mean_and_median(values):
    return (float(np.mean(values)), float(np.median(values))) if len(values) else (math.nan, math.nan)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_and_intervals_are_those_of_samples_drawn_one_by_one(seed):
    frame = random_pairs(seed)
    found = rule_numbers(frame, hit_rules({"dettmers": RULES["dettmers"]})["dettmers"], Resampling(SEQUENCES))
    rows = frame.to_dicts()
    hits = defaultdict(int)
    for row in rows:
        if any(other["passes"] and other["dim"] == row["dim"] for other in rows):
            hits[row["dim"]] += row["occurrences"]
    largest_dim = max(hits, key=lambda dim: (hits[dim], -dim))
    expected = by_hand(rows, largest_dim)
    drawn = np.random.default_rng(SEED).integers(0, SEQUENCES, (DRAWS, SEQUENCES))
    samples = [
        by_hand([row for sequence in draw for row in rows if row["sequence"] == sequence], largest_dim)
        for draw in drawn
    ]
    assert set(found) == {"layer_reading", "position_reading"} | {
        f"{name}{end}" for name in expected for end in ("", "_low", "_high")
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12)
        low, high = np.nanpercentile([sample[name] for sample in samples], [2.5, 97.5])
        assert found[f"{name}_low"] == pytest.approx(low, rel=1e-9), name
        assert found[f"{name}_high"] == pytest.approx(high, rel=1e-9), name


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    """Of 400 samples of 40 sequences from one population, 95 % of the intervals of a mean hold the population's."""
    random, held = np.random.default_rng(5), 0
    draws = Resampling(40)
    for _ in range(400):
        values = random.exponential(1.0, 40)
        low, high = draws.interval(draws.ratios(values, np.ones(40)))
        held += low <= 1 <= high
    assert 0.88 < held / 400 < 0.98  # skewed, so a little less than 95 %


def test_one_sequence_has_no_interval():
    draws = Resampling(1)
    assert draws.interval(draws.sums(np.ones(1))) == (None, None)
    assert Resampling(3).interval(np.full(DRAWS, np.nan)) == (None, None)


@pytest.fixture
def table(tmp_path):
    def make(*runs):
        folders = [run.write(tmp_path / str(n) / run.model / "text") for n, run in enumerate(runs)]
        compare_models(folders, PUBLISHED, tmp_path / "models.parquet")
        return read_table(tmp_path / "models.parquet", MODELS)

    return make


def only(frame, **where):
    return frame.row(by_predicate=pl.all_horizontal(pl.col(key) == value for key, value in where.items()), named=True)


def test_a_row_for_each_run_rule_and_population(table):
    encoder = FakeRun(model="encoder", sites=("mlp_norm",), missing={"loss": InputError("it has none")})
    frame, provenance = table(FakeRun(), encoder)
    assert frame.select("run", "rule", "sites", "population").rows() == [
        ("tiny/text", "dettmers", "attn_norm+mlp_norm", "all"),
        ("tiny/text", "massive", "resid_post", "all"),
        ("tiny/text", "dettmers", "attn_norm+mlp_norm", "without_first"),
        ("tiny/text", "massive", "resid_post", "without_first"),
        ("encoder/text", "dettmers", "mlp_norm", "all"),
        ("encoder/text", "dettmers", "mlp_norm", "without_first"),
    ]
    assert (provenance["draws"], provenance["seed"], provenance["level"]) == (DRAWS, SEED, 0.95)
    row = only(frame, run="tiny/text", rule="dettmers", population="all")
    assert (row["parameters"], row["active_parameters"], row["routed_experts"]) == (1234567, 1234567, 0)
    assert (row["blocks"], row["d_model"], row["dtype"], row["sequences"], row["positions"]) == (
        4,
        64,
        "float32",
        2,
        12,
    )
    assert row["perplexity"] == pytest.approx(math.exp(2)) and row["perplexity_low"] == pytest.approx(math.exp(2))
    assert row["bits_per_byte"] == pytest.approx(10 / math.log(2) / 20)
    assert (row["dims"], row["pairs"], row["sweep_pairs"]) == (1, 2, 2 * 2)
    assert (row["layer_share_mean"], row["position_share_median"]) == (0.5, 0.9)
    assert (row["super_weights"], row["sink_rate"]) == (1, (0 + 3 * (1 + 0.5)) / 8)
    headless = only(frame, run="encoder/text", population="all")
    assert headless["perplexity"] is headless["bits_per_byte"] is headless["bits_per_byte_high"] is None


def test_active_parameters_are_the_run_s_own_or_unknown(table):
    frame, _ = table(
        FakeRun(model="moe", experts=3),
        FakeRun(model="unknown", experts=3, missing={"experts": "`skip` names experts"}),
    )
    found = {
        row[0]: row[1:] for row in frame.select("model", "active_parameters", "routed_experts", "super_experts").rows()
    }
    assert found["moe"] == (1234567 - 3000, 9, 1)
    assert found["unknown"] == (None, None, None)


def test_the_largest_value_and_where(table):
    """Of a rule that lists its hits from its list; of another where the tables of layers and positions have it once."""
    frame, _ = table(FakeRun())
    row = only(frame, rule="massive", population="all")
    assert (row["largest"], row["largest_layer"], row["largest_dim"], row["largest_token_text"]) == (2009, 2, 7, "The")
    row = only(frame, rule="dettmers", population="all")
    assert (row["largest"], row["largest_dim"], row["largest_sequence"]) == (15.0, 5, 0)
    assert row["largest_layer"] is row["largest_token"] is None
    assert only(frame, rule="massive", population="without_first")["largest"] is None


def test_a_value_of_the_tables_is_placed(tmp_path):
    run = FakeRun(sites=("attn_norm", "mlp_norm")).write(tmp_path / "tiny/text")

    def change(name, rows, **values):
        frame, facts = read_table(run / f"{name}.parquet", public_tables()[name])
        changed = frame.with_columns(
            pl.when(rows).then(pl.lit(value)).otherwise(pl.col(key)).alias(key) for key, value in values.items()
        )
        write_table(run / f"{name}.parquet", changed, public_tables()[name], facts)

    change("pairs", (pl.col("dim") == 5) & (pl.col("sequence") == 1), max_abs=77.0)
    change("layers", (pl.col("site") == "mlp_norm") & (pl.col("layer") == 3), max=77.0)
    change("positions", (pl.col("site") == "mlp_norm") & (pl.col("token") == 2), max_abs=77.0)
    compare_models([run], PUBLISHED, tmp_path / "models.parquet")
    row = only(read_table(tmp_path / "models.parquet", MODELS)[0], population="all")
    assert [row[f"largest_{key}"] for key in ("site", "layer", "dim", "sequence", "token", "token_text")] == [
        "mlp_norm", 3, 5, 1, 2, " sat",
    ]  # fmt: skip


class ZeroCostsMost(FakeRun):
    def perplexity(self, variant, sequence):
        return 10.0 * (50 if variant == 1 else 3**variant) + sequence


@pytest.mark.parametrize(("run", "value", "most"), [(FakeRun(), "mean", 2), (ZeroCostsMost(), "zero", 1)])
def test_what_ablation_costs(table, run, value, most):
    """Of the ablations of all of a rule's dims the one that costs most; nats are over both sequences' tokens."""
    frame, _ = table(run)
    row = only(frame, rule="massive", population="all")

    def nats(variant):
        return [math.log(run.perplexity(variant, s) / run.perplexity(0, s)) for s in range(2)]

    assert row["ablation_nats"] == pytest.approx(np.mean(nats(most)))
    assert (row["ablation_nats_low"], row["ablation_nats_high"]) == pytest.approx((min(nats(most)), max(nats(most))))
    assert f"to {value} at the first position" in row["ablation"]
    # Random dims are set to zero only.
    random = np.mean([nats(4), nats(5)]) if value == "zero" else None
    assert row["ablation_random_nats"] == (random and pytest.approx(random))
    assert row["super_weights_nats"] == pytest.approx(np.mean(nats(3)))
    assert only(frame, rule="dettmers", population="all")["ablation"] is None


def rows_of(name, **where):
    with (PUBLISHED / f"{name}.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in where.items())]


def test_what_was_published_stands_beside_with_the_difference(tmp_path):
    hub_id = "Qwen/Qwen3-0.6B"
    run = FakeRun(origin=hub_id).write(tmp_path / "tiny/text")
    summary = read_json(run / "summary.json")
    summary["model"]["kind"] = "hub"
    (run / "summary.json").write_text(json.dumps(summary))
    compare_models([run], PUBLISHED, tmp_path / "models.parquet")
    frame = read_table(tmp_path / "models.parquet", MODELS)[0]
    row = only(frame, rule="dettmers", population="all")
    quantities = {
        "sequence_dim_pairs": ("sweep_pairs", 1), "mean_layer_pct": ("sweep_layer_share_mean", 100),
        "median_seq_pct": ("sweep_position_share_median", 100), "perplexity": ("perplexity", 1),
    }  # fmt: skip
    for quantity, (name, factor) in quantities.items():
        (printed,) = rows_of("qwen3_dense", hub_id=hub_id, quantity=quantity)
        assert factor * row[f"published_{name}"] == pytest.approx(float(printed["value"]))
        assert row[f"{name}_difference"] == pytest.approx(row[name] - float(printed["value"]) / factor)
        assert printed["source"] in row["published_source"]
    assert row["published_model"] == hub_id and "sweep_pairs: (sequence, dim) pairs" in row["published_counts"]
    others = frame.filter(~((pl.col("rule") == "dettmers") & (pl.col("population") == "all")))
    assert others["published_sweep_pairs"].null_count() == len(others)


def test_published_numbers_are_those_of_the_files():
    numbers = published_numbers(PUBLISHED)
    (printed,) = rows_of("dettmers2022", model="GPT2 762M", quantity="outlier_dims")
    mine = numbers_of_model(numbers, "hub", "openai-community/gpt2-large", False)
    assert only(mine, kind="systematic", column="dims")["value"] == float(printed["value"])
    llama = "meta-llama/Llama-2-7b-hf"
    for bos, condition in ((True, "bos"), (False, "no_bos")):
        printed = rows_of(
            "massive_activations", hub_id=llama, quantity="max_abs", condition=condition,
            statistic="mean over sequences of per-sequence max",
        )  # fmt: skip
        mine = numbers_of_model(numbers, "path", "/models/Llama-2-7b-hf", bos)
        assert only(mine, column="mean_largest")["value"] == max(float(row["value"]) for row in printed)
    assert numbers_of_model(numbers, "pypi", llama, True).is_empty()


def test_another_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no summary\.json"):
        compare_models([tmp_path], PUBLISHED, tmp_path / "models.parquet")


def test_tables_of_another_run_are_refused(tmp_path):
    one = FakeRun().write(tmp_path / "one/text")
    other = FakeRun(pieces=("Another", " text")).write(tmp_path / "other/text")
    (one / "loss.parquet").write_bytes((other / "loss.parquet").read_bytes())
    with pytest.raises(InputError, match="belongs to another run"):
        compare_models([one], PUBLISHED, tmp_path / "models.parquet")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two runs, the second of more parameters, and what compares them."""
    folder = tmp_path_factory.mktemp("results")
    runs = [
        run.write(folder / run.model / "text")
        for run in (FakeRun(model="large", outliers=(5, 6)), FakeRun(model="small", outliers=(), hits=(1,)))
    ]
    (folder / "comparison").mkdir()
    compare_models(runs, PUBLISHED, folder / "comparison/models.parquet")
    return folder


def printed(capsys, *arguments):
    assert main(["compare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_command_prints_every_run(results, capsys):
    text = printed(capsys, "--results", results)
    runs, *rules = text.split("Rule ")
    assert [line.split("│")[1].strip() for line in runs.splitlines() if "│" in line] == ["large/text", "small/text"]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in rules[0].splitlines() if "│" in line]
    assert rules[0].startswith("dettmers, population all")
    assert [row[2:6] for row in cells] == [
        ["2", "4", "50 % (50 % to 50 %)", "90 % (90 % to 90 %)"],
        ["0", "0", "–", "–"],
    ]
    assert "●" not in text


def test_the_command_draws_shares_from_0_to_100_percent(results, capsys):
    text = printed(capsys, "--results", results, "--rule", "dettmers", "--plot")
    bars = [line for line in text.splitlines() if "●" in line and line.endswith("%")]
    shares = [float(line.rsplit("|", 1)[1].rstrip(" %")) / 100 for line in bars]
    axes = [line[line.index("|") : line.rindex("|") + 1] for line in bars]
    assert [line.split(",")[0] for line in bars] == ["large/text"] * 4 and shares == [0.5, 0.9, 0.5, 0.9]
    assert len({len(axis) for axis in axes}) == 1  # whatever is drawn, 100 % is at one place
    for axis, share in zip(axes, shares, strict=True):
        assert axis.index("●") == round(share * (len(axis) - 1))


def test_the_command_gives_programs_the_whole_table(results, capsys):
    frame = read_table(results / "comparison/models.parquet", MODELS)[0]
    assert json.loads(printed(capsys, "--results", results, "--format", "json")) == frame.to_dicts()
    rows = list(csv.DictReader(printed(capsys, "--results", results, "--format", "csv").splitlines()))
    assert [row["layer_share_mean"] for row in rows] == [
        "" if value is None else str(value) for value in frame["layer_share_mean"]
    ]


def test_the_command_says_what_failed_and_why(results, tmp_path, capsys):
    assert read_failures(results / "comparison").is_empty()
    shutil.copytree(results, tmp_path / "results")
    why = {"rule": "fetch_model", "reason": "hub: access to 'a/b' was refused", "log": "logs/fetch_model/b.log"}
    write_failures({"b/text": why}, tmp_path / "results/comparison/failures.parquet")
    row = {"run": "b/text", "model": "b", "corpus": "text", **why}
    assert read_failures(tmp_path / "results/comparison").to_dicts() == [row]
    text = printed(capsys, "--results", tmp_path / "results")
    assert all(one in text[text.index("Failed") :] for one in ("b/text", *why.values()))
    assert main(["compare", "--results", str(tmp_path / "results"), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert out == printed(capsys, "--results", results, "--format", "csv") and why["reason"] in err


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["--rule", "mine"], 1, "has no rule mine, expected one of dettmers, massive"),
        (["a"], 2, "found 1 RUN, expected two, or none"),
        (["--plot", "--format", "csv"], 2, "argument --plot"),
    ],
)
def test_mistakes_in_a_sentence(results, capsys, arguments, status, error):
    try:
        found = main(["compare", "--results", str(results), *arguments])
    except SystemExit as end:
        found = end.code
    assert found == status and error in capsys.readouterr().err


def test_a_directory_without_a_comparison(tmp_path, capsys):
    assert main(["compare", "--results", str(tmp_path)]) == 1
    assert "models.parquet: is not there, expected the table that rule compare_models writes" in capsys.readouterr().err
