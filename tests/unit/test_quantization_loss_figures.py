"""What the report shows of a quantized model's loss, against the table it is made of."""

import math

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.figures.quantization_loss import quantization_loss_figures
from outlier_features.figures.run_figures import run_figures
from outlier_features.quantize.loss_schema import PREFIX_TRIAL, QUANTIZATION_LOSS, QUANTIZATION_SIGNALS
from outlier_features.report.quantization_page import quantization_part
from outlier_features.summary.quantization_loss_facts import (
    loss_sentence,
    quantization_loss_facts,
    quantization_loss_summary,
)
from outlier_features.summary.report_run import Run

FACTS = {"sequences": 4, "tokens": 128, "remedied": ["int8_token"], "loss_scheme": "int8_token", "budget": 0.01}
NLL = 3.0
ALONE = [  # scheme, remedy, setting, what, change of the loss, its interval
    ("fp8_token", "none", None, "all", 0.01, (0.005, 0.02)),
    ("int8_token", "none", None, "all", 0.5, (0.4, 0.6)),
    ("int8_token", "exact_dims", "attn_norm: 2 dims of massive", "all", 0.1, (0.05, 0.2)),
    ("int8_token", "exact_random", "seed 0", "all", 0.49, (0.4, 0.6)),
    ("int8_token", "exact_random", "seed 1", "all", 0.505, (0.4, 0.6)),
    ("int8_token", "hadamard", "seed 0", "all", 0.05, (0.01, 0.1)),
    ("int8_token", "clip", "quantile 0.99", "all", 3.0, (2.0, 4.0)),
    ("int8_token", "none", None, "site:mlp_norm", 0.2, (0.1, 0.3)),
    ("int8_token", "none", None, "kept:kl:1", 0.2, (0.1, 0.3)),
    ("int8_token", "none", None, "kept:kl:2", 0.004, (0.001, 0.01)),
    ("int8_token", "none", None, "kept:random:1", 0.45, (0.4, 0.5)),
    ("int8_token", "none", None, "kept:random:2", 0.3, (0.2, 0.4)),
]
SIGNALS = [
    {"order": "kl", "inputs": 4, "spearman": 0.5, "spearman_kl": 1.0, "kept": 2},
    {"order": "kurtosis", "inputs": 4, "spearman": 0.1, "spearman_kl": -0.4},
    {"order": "output_error", "inputs": 4, "spearman": 0.2, "spearman_kl": 0.8, "kept": 4},
    {"order": "random", "inputs": 4, "spearman": 0.3, "spearman_kl": 0.0, "kept": 8},
]
TRIAL = [
    {"prefix": 0, "perplexity": 20.5, "massive": 4},
    {"prefix": 0, "scheme": "int8_token", "quantized": "xw", "exact": False, "perplexity": 33.25, "massive": 5},
    {"prefix": 2, "perplexity": 20.75, "massive": 1},
    {"prefix": 2, "scheme": "int8_token", "quantized": "xw", "exact": True, "perplexity": 21.5, "massive": 1},
]


def table(rows=ALONE):
    base = {"variant": 0, "modules": 0, "tokens": 508, "nll": NLL, "perplexity": math.exp(NLL), "nll_change": 0.0}
    made = [
        {"variant": n, "scheme": scheme, "remedy": remedy, "setting": setting, "quantized": "xw", "what": what,
         "modules": 7, "tokens": 508, "nll": NLL + change, "perplexity": math.exp(NLL + change), "nll_change": change,
         "low": ends[0], "high": ends[1], "kl": change / 2}
        for n, (scheme, remedy, setting, what, change, ends) in enumerate(rows, 1)
    ]  # fmt: skip
    of_inputs = {**made[1], "variant": 99, "quantized": "x", "perplexity": 1e6}
    return pl.DataFrame([base, *made, of_inputs], schema=QUANTIZATION_LOSS.schema)


def summarized(losses):
    signals, prefix = (pl.DataFrame(rows, schema=one.schema, strict=False) for rows, one in
                       ((SIGNALS, QUANTIZATION_SIGNALS), (TRIAL, PREFIX_TRIAL)))  # fmt: skip
    return quantization_loss_summary(losses, signals, prefix, FACTS), signals


def test_the_sentence_names_the_rise_its_control_and_the_best():
    results, _ = summarized(table())
    text = loss_sentence(results)
    assert "rounded by int8_token, input and weight, perplexity goes from 20.09 to 33.12 (+64.9 %; " in text
    assert "95 % interval over sequences 0.4 to 0.6" in text and "the first 128 tokens of 4 sequences" in text
    assert "exact takes away 80 %, as many random dims take -1 to 2 % (2 draws)." in text
    assert "divergence from the unchanged predictions, 0.25 nats per token, leaving the selected dims" in text
    assert text.endswith("Hadamard rotation takes away most, 90 %.")
    (fact,) = quantization_loss_facts(results)
    said = [part.short for part in fact.parts]
    assert len([line for line in said if line.startswith(("fp8_token", "int8_token"))]) == 7
    assert "output_error 0.80" in said[-2] and "kurtosis -0.40" in said[-2]
    assert "prefix of 2 tokens, 1 of the text's tokens" in said[-1] and "without it 4." in said[-1]
    assert "unchanged 20.75 and int8_token with the prefix exact 21.5; without it: unchanged 20.5 and" in said[-1]


def test_dims_that_are_no_better_than_random_ones_do_not_count():
    rows = [(*row[:4], 0.49 if row[1] == "exact_random" else row[4], row[5]) for row in ALONE]
    rows = [(*row[:4], 0.495, row[5]) if row[1] == "exact_dims" else row for row in rows if row[1] != "hadamard"]
    text = loss_sentence(summarized(table(rows))[0])
    assert "so that it does not count" in text and text.endswith("Nothing that was tried takes any of it away.")


def test_a_rise_within_its_interval_is_chance():
    rows = [("int8_token", "none", None, "all", 0.002, (-0.01, 0.01)), *ALONE[2:4]]
    text = loss_sentence(summarized(table(rows))[0])
    assert text.endswith("no more than chance.") and "takes away" not in text


def test_figures_show_the_table():
    losses = table()
    results, signals = summarized(losses)
    loss, kept, ranks = quantization_loss_figures(losses, signals, results)
    figure = loss.views["all"]
    names = figure.layout.yaxis.ticktext
    drawn = [(names[int(one.y[0])], one.x[0]) for one in figure.data if one.x[0] is not None]
    whole = [(row, change) for *row, what, change, _ in ALONE if what == "all"]
    assert sorted(x for _, x in drawn) == pytest.approx(sorted(math.exp(NLL + change) for _, change in whole))
    assert dict(drawn)["int8_token, selected dims exact"] == pytest.approx(math.exp(NLL + 0.1))
    (row,) = (one for one in figure.data if one.error_x.array and one.x[0] == pytest.approx(math.exp(NLL + 0.5)))
    assert row.x[0] + row.error_x.array[0] == pytest.approx(math.exp(NLL + 0.6))
    assert row.x[0] - row.error_x.arrayminus[0] == pytest.approx(math.exp(NLL + 0.4))
    lines = {trace.name: trace for trace in kept.views["all"].data}
    for order, changes in (("kl", (0.5, 0.2, 0.004)), ("random", (0.5, 0.45, 0.3))):
        assert [*lines[order].y] == pytest.approx([math.exp(NLL + change) for change in changes])
        assert [*lines[order].customdata] == [0, 1, 2]
    assert "2 inputs must be kept in the order of kl, 8 in a random one" in kept.finding
    bars = {trace.name: trace for trace in ranks.views["all"].data}
    assert [*ranks.views["all"].layout.yaxis.ticktext] == ["output_error", "kurtosis"]
    assert [*bars["with kl"].x] == [0.8, -0.4]


def test_losses_that_are_not_finite_are_said_and_not_drawn():
    losses = table().with_columns(
        pl.when(pl.col("variant") == 2).then(None).otherwise(pl.col(name)).alias(name)
        for name in ("perplexity", "nll", "nll_change", "low", "high")
    )
    results, signals = summarized(losses)
    assert "to a number that is not finite" in loss_sentence(results)
    loss, kept, _ = quantization_loss_figures(losses, signals, results)
    assert "int8_token" not in loss.views["all"].layout.yaxis.ticktext
    assert [*kept.views["all"].data[0].customdata] == [1, 2]
    nothing, signals = summarized(losses.filter(variant=0))
    assert all(not one.views for one in quantization_loss_figures(losses.filter(variant=0), signals.clear(), nothing))


def test_a_run_with_losses_begins_its_chapter_with_perplexity(tmp_path):
    directory = FakeRun(losses=True).write(tmp_path / "tiny/text")
    run = Run.read(directory)
    part = quantization_part(run, directory, tmp_path / "report.html")
    assert "perplexity goes from 7.389 to 12.18" in part["sentence"]
    names = [drawing.name for drawing in run_figures(run) if drawing.chapter == "quantization"]
    assert names[:3] == ["quantization-loss", "quantization-kept", "quantization-signals"]
