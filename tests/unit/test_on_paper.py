"""The costs on paper: sizes against numbers worked out by hand and published ones, and the page against the script."""

import importlib.util
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("on_paper", ROOT / "benchmarks/on_paper.py")
on_paper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(on_paper)
MODELS = {model.name: model for model in on_paper.MODELS}


def test_page_has_the_tables_as_they_are_computed():
    page = on_paper.PAGE.read_text(encoding="utf-8")
    assert on_paper.with_tables(page) == page, "run `make docs`"


@pytest.mark.parametrize(
    ("model", "machine", "said"),
    [("Qwen3-8B", "ONE", "one GPU of 80 GB"), ("GPT-OSS-120B", "EIGHT", "four GPUs of 80 GB")],
)
def test_the_readme_says_the_same(model, machine, said):
    run = on_paper.Run(MODELS[model], getattr(on_paper, machine))
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [one for one in lines if one.startswith(f"| {model}, bfloat16")]
    assert said in line and f"{run.memory / 1e9:.0f} GB of weights" in line and f"{run.hours:.2f} hours" in line


def test_models_are_those_of_the_published_sweep_and_of_their_size():
    totals: dict[str, float] = {}
    for name in ("moe_sweep", "qwen3_dense"):
        rows = pl.read_csv(ROOT / f"workflow/published/{name}.csv").filter(pl.col("quantity") == "total_params")
        totals |= dict(rows.select("model", "value").iter_rows())
    assert set(totals) == set(MODELS)
    for name, total in totals.items():
        assert MODELS[name].total == pytest.approx(total * 1e9, rel=0.02 if MODELS[name].has_experts else 0.06)


def test_a_dense_model_by_hand():
    model = MODELS["Qwen3-8B"]
    block = 4096 * 128 * (32 + 8 + 8 + 32) + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    table = 151936 * 4096
    assert model.total == model.active == 36 * block + 2 * table + 4096
    scores = 2 * 36 * 32 * 128 * 2048
    assert model.multiply_adds == 32768 * (36 * block + table + 4096 + scores)
    assert model.activations == 3 * 36 * 32768 * 4096 * 2
    assert model.layerwise == 2 * (2 * table + 4096 + 2 * block)


def test_experts_and_mixers_by_hand():
    mixtral, following = MODELS["Mixtral-8x7B"], MODELS["Qwen3-Next-80B"]
    assert mixtral.experts == 32 * 8 * 3 * 4096 * 14336
    assert mixtral.total - mixtral.active == mixtral.experts * 6 / 8
    looked_up = 151936 * 2048  # and one block in four has attention
    assert following.multiply_adds == 32768 * (following.active - looked_up + 2 * 2048 * 16 * 256 * 12)


@pytest.mark.parametrize(("name", "gib"), [("GPT-OSS-20B", 12.8), ("GPT-OSS-120B", 60.8)])
def test_a_checkpoint_in_mxfp4_is_as_large_as_published(name, gib):
    assert MODELS[name].checkpoint / 2**30 == pytest.approx(gib, rel=0.01)


def test_placements():
    on = {machine: {m.name: on_paper.Run(m, getattr(on_paper, machine)).placement for m in MODELS.values()}
          for machine in ("ONE", "EIGHT", "WORKSTATION")}  # fmt: skip
    assert (on["ONE"]["Qwen3-30B"], on["ONE"]["Mixtral-8x7B"]) == ("one", "layerwise")
    assert (on["EIGHT"]["Mixtral-8x7B"], on["EIGHT"]["GPT-OSS-120B"]) == ("spread, 2", "spread, 4")
    assert (on["WORKSTATION"]["Qwen3-8B"], on["WORKSTATION"]["Qwen3-14B"]) == ("one", "layerwise")


def test_an_hour_is_what_its_parts_take():
    run = on_paper.Run(MODELS["Qwen3-8B"], on_paper.ONE)
    model = run.model
    seconds = (
        6 * (model.weights / 3e9 + 6.5)
        + model.passes * model.multiply_adds * 2 / (0.2 * 312e12)
        + model.values * 8.3e-9 / 16
        + 36 * 12288 * 32768 * 2.5e-9 / 16
        + 2 * model.activations / 3e9
    )
    assert run.hours == pytest.approx(seconds / 3600)
    of_a_cpu = on_paper.Run(MODELS["Qwen3-0.6B"], on_paper.CPU)
    read, weights = 28 * (2 * 1024 + 16 * 128 + 3072), 28 * (1024 * (2 * 16 + 2 * 8) * 128 + 3 * 1024 * 3072)
    rounding = (32768 * read * 19e-9 + weights * 184e-9) / 8
    assert of_a_cpu.parts["rounding"] == pytest.approx(rounding, rel=1e-3)  # weights of norms are among them
