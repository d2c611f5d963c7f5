"""Reruns do what changed and nothing else, and the tables are those of plain transformers on the run's own tokens."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM

import planted_experts

TABLES = ("layers", "dims", "emergence", "pairs", "sensitivity", "massive", "loss", "experts", "routing")
AFTER_FILTERING = {"filter_systematic", "analyze_emergence", "rank_experts", "summarize_run", "render_report"}
RUN = "results/tiny/text"


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}


def test_a_second_run_has_nothing_to_do(project):
    assert project.run().nothing_to_do


def test_it_finds_what_was_planted(project):
    dims = pl.read_parquet(project.folder / RUN / "dims.parquet").filter(population="all")
    assert dims.filter("selected", rule="dettmers")["dim"].to_list() == [5]
    assert 7 in dims.filter("selected", rule="massive")["dim"]
    massive = pl.read_parquet(project.folder / RUN / "massive.parquet")
    assert set(massive.filter(dim=7)["token_text"]) == {"z"}


def test_layers_and_losses_are_those_of_plain_transformers(project):
    run = project.folder / RUN
    tokens = torch.from_numpy(load_file(run / "tokens.safetensors")["tokens"]).long()
    model = AutoModelForCausalLM.from_pretrained(project.folder / "llama").eval()
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for i, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(lambda m, a, out, i=i: seen.update({("attn_norm", i): out}))
        layer.post_attention_layernorm.register_forward_hook(lambda m, a, out, i=i: seen.update({("mlp_norm", i): out}))
        layer.register_forward_hook(lambda m, a, out, i=i: seen.update({("resid_post", i): out}))
    with torch.no_grad():
        logits = model(tokens).logits
    layers = pl.read_parquet(run / "layers.parquet").filter(population="all")
    assert len(layers) == len(seen)
    for row in layers.iter_rows(named=True):
        x = seen[row["site"], row["layer"]].abs()
        ordered = x.flatten(1).sort(descending=True).values.double()
        for rank in (1, 2, 3):
            assert row[f"top{rank}"] == pytest.approx(float(ordered[:, rank - 1].mean()), rel=1e-6)
        assert row["median"] == pytest.approx(np.mean([np.median(one.double().numpy()) for one in x]), rel=1e-5)
        assert row["max"] == pytest.approx(float(x.max()), rel=1e-6)
        assert row["rms"] == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-6)
        assert row["occurrences"] == int((x >= 6).sum())
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)
    loss = pl.read_parquet(run / "loss.parquet")
    assert loss["nll"].to_list() == pytest.approx(nll.tolist(), rel=1e-5)
    assert set(loss["tokens"]) == {47}
    texts = pl.read_parquet(run / "texts.parquet")["text"]
    assert all(0 <= len(text.encode()) - size <= 3 for text, size in zip(texts, loss["bytes"], strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"rules__dettmers__layer_share": 0.5},
        {"rules__dettmers__threshold": 7.0},
        {"rules__massive__ratio": 500.0},
        {"sensitivity__thresholds": [5.0, 6.0]},
    ],
)
def test_another_share_or_threshold_needs_no_new_detection(project, changes):
    assert project.planned(**changes).jobs() == AFTER_FILTERING


def test_a_lower_floor_needs_a_new_detection(project):
    jobs = project.planned(detect__floors={"attn_norm": 3.5}).jobs()
    assert "detect_outliers" in jobs and "extract_activations" not in jobs


CHAIN = (
    "tokenize_corpus", "extract_activations", "detect_outliers", "summarize_layers", "filter_systematic",
    "analyze_emergence", "rank_experts", "summarize_run", "render_report",
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "message", "first"),
    [
        ("tokenize_corpus", "Tokenize text", "tokenize_corpus"),
        ("sites", "Run tiny", "extract_activations"),
        ("losses", "Run tiny", "extract_activations"),
        ("scan_kernel", "Detect outliers", "detect_outliers"),
        ("statistics", "Detect outliers", "detect_outliers"),
        ("summarize_layers", "Summarize the", "summarize_layers"),
        ("rules", "Select systematic", "filter_systematic"),
        ("token_text", "Select systematic", "filter_systematic"),
        ("analyze_emergence", "Follow the", "analyze_emergence"),
        ("record_experts", "Rank the", "rank_experts"),
        ("rank_experts", "Rank the", "rank_experts"),
        ("summarize_experts", "Summarize tiny", "summarize_run"),
        ("summarize_run", "Summarize tiny", "summarize_run"),
        ("render_report", "Render the", "render_report"),
    ],
)
def test_an_edited_module_reruns_the_stages_that_import_it(project, module, message, first):
    """The first of them for its new code, and what follows for its new inputs; nothing before."""
    undo = project.edit(module)
    try:
        planned = project.planned()
    finally:
        undo()
    assert planned.jobs_with_other_parameters() == {message}
    following = set(CHAIN[CHAIN.index(first) :])
    assert planned.jobs() - {"measure_loss"} == following
    assert ("measure_loss" in planned.jobs()) == ("extract_activations" in following)


def test_an_edit_that_concerns_no_stage_reruns_none(project):
    undo = project.edit("config")
    try:
        assert project.planned().nothing_to_do
    finally:
        undo()


def test_chunks_batches_and_temporary_activations_change_no_number(project):
    extract = {"chunk_sequences": 2, "batch_size": 1, "keep_activations": False}
    run = project.run("tables", results="other", extract=extract)
    assert run.status == 0, run.output
    other = project.folder / "other/tiny/text"
    assert not list(other.glob("activations/*"))
    for name, table in tables(project.folder / RUN).items():
        assert_frame_equal(tables(other)[name], table, rel_tol=1e-9)
    exact = ["population", "site", "layer", "top1", "top2", "top3", "median", "max", "occurrences", "dims_hit"]
    assert_frame_equal(tables(other)["layers"][exact], tables(project.folder / RUN)["layers"][exact], check_exact=True)


def test_a_dense_model_has_empty_tables_of_experts(project):
    for name in ("experts", "routing"):
        assert pl.read_parquet(project.folder / RUN / f"{name}.parquet").is_empty()
    assert project.planned(experts__sequences=3).jobs() == {"rank_experts", "summarize_run", "render_report"}


def test_a_planted_super_expert_is_found(project):
    """From a model directory to the report; the maxima are those of plain transformers on the run's own tokens."""
    run = project.run(models=["tiny-moe"], results="moe", experts__sequences=4)
    assert run.status == 0, run.output
    folder = project.folder / "moe/tiny-moe/text"
    experts, routing = (pl.read_parquet(folder / f"{name}.parquet") for name in ("experts", "routing"))
    layer, expert, dim = planted_experts.LAYER, planted_experts.EXPERT, planted_experts.DIM
    found = experts.filter("super_expert").row(0, named=True)
    assert experts["super_expert"].sum() == 1 and (found["layer"], found["expert"], found["dim"]) == (
        layer,
        expert,
        dim,
    )
    tokens = torch.from_numpy(load_file(folder / "tokens.safetensors")["tokens"]).long()
    model = AutoModelForCausalLM.from_pretrained(project.folder / "moe").eval()
    mlp, seen = model.model.layers[layer].mlp, {}
    mlp.register_forward_hook(lambda module, args, output: seen.update(read=args[0], written=output))
    with torch.no_grad():
        model(tokens)
        *_, chosen = mlp.gate(seen["read"])
        x, (gate, up) = seen["read"].flatten(0, 1), mlp.experts.gate_up_proj[expert].chunk(2)
        out = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ mlp.experts.down_proj[expert].T
    took = (chosen == expert).any(dim=1).reshape(tokens.shape)
    assert found["tokens_routed"] == int(took[:4].sum()) > 0
    largest = out.abs().reshape(*tokens.shape, -1)[:4][took[:4]].max()
    assert found["max_abs"] == pytest.approx(float(largest), rel=1e-4)
    massive = pl.read_parquet(folder / "massive.parquet").filter(dim=dim)
    peak = massive.sort(pl.col("value").abs(), descending=True).row(0, named=True)
    top = routing.filter(dim=dim, layer=layer).row(0, named=True)
    assert (top["sequence"], top["token"], top["expert"]) == (peak["sequence"], peak["token"], expert)
    assert peak["token_text"] == "z" and top["activation"] == peak["value"]
    written = float(seen["written"][top["sequence"], top["token"], dim])
    parts = routing.filter(dim=dim, layer=layer, sequence=top["sequence"], token=top["token"])
    assert parts["weighted"].sum() == pytest.approx(written, rel=1e-4) == top["whole"]
    assert "expert 3 of layer 1" in (project.folder / "moe/report.html").read_text()


def test_documents_bert_and_a_site_that_is_absent(project):
    (project.folder / "lines.jsonl").write_text('{"text": "A short one."}\n{"text": "' + "long " * 30 + '"}\n')
    run = project.run(
        "tables",
        models=["tiny-bert"],
        corpora=["lines"],
        results="bert",
        sample={"sequences": 2, "pack": "documents", "tokens": 64},
        catalog__models__gone={"path": "nowhere"},
        catalog__corpora__lines={"files": ["lines.jsonl"]},
    )
    assert run.status == 0, run.output
    folder = project.folder / "bert/tiny-bert/lines"
    layers = pl.read_parquet(folder / "layers.parquet")
    assert set(layers["site"]) == {"mlp_norm", "resid_post"}
    file = load_file(folder / "tokens.safetensors")
    tokens, mask = (torch.from_numpy(file[name]) for name in ("tokens", "mask"))
    assert mask.sum(1).tolist() == [14, 64] and not file["special"][0, 14:].any()
    model = AutoModel.from_pretrained(project.folder / "bert").eval()
    with torch.no_grad():
        states = model(tokens.long(), attention_mask=mask.long(), output_hidden_states=True).hidden_states
    for row in layers.filter(population="all", site="resid_post").iter_rows(named=True):
        x = [states[row["layer"] + 1][n][mask[n]].abs() for n in range(2)]
        assert row["top1"] == pytest.approx(np.mean([float(one.max()) for one in x]), rel=1e-5)
        assert row["positions"] == 78
    assert pl.read_parquet(folder / "loss.parquet")["nll"].is_null().all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"rules__dettmers__treshold": 6},
            "config: unknown key 'treshold' in rules.dettmers, did you mean 'threshold'",
        ),
        ({"models": ["tinny"]}, "config: models names 'tinny', expected a name defined in catalog.models"),
        ({"catalog__models__tiny": {"path": "none"}}, "config: catalog.models.tiny.path: none is not a directory"),
        ({"catalog__corpora__text": {"files": ["none.txt"]}}, "config: catalog.corpora.text.files: none.txt is not a"),
        ({"sample__sequences": 5000, "results": "short"}, "corpus 'text' yields"),
        ({"extract__device": "cuda", "results": "gpu"}, "device: found 'cuda', but torch sees no such device"),
    ],
)
def test_a_mistake_is_one_line(project, changes, sentence):
    run = project.run("tables", **changes)
    assert run.status != 0
    lines = [line for line in run.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {sentence}")
    assert "Traceback" not in run.output
