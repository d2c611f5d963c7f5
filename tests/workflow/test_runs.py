"""Reruns do what changed and nothing else, and the tables are those of plain transformers on the run's own tokens."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal, assert_series_equal
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM

TABLES = (
    "layers", "dims", "emergence", "pairs", "sensitivity", "massive", "loss", "super_weights", "ablation",
    "ablation_sequences",
)  # fmt: skip
AFTER_FILTERING = {"filter_systematic", "analyze_emergence", "ablate_dims", "summarize_run", "render_report"}
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


def test_ablations_are_those_of_plain_transformers(project):
    """The planted value at the letter z is worth something; the unchanged model's loss is the run's own."""
    run = project.folder / RUN
    ablation = pl.read_parquet(run / "ablation.parquet")
    by_sequence = pl.read_parquet(run / "ablation_sequences.parquet")
    assert_series_equal(by_sequence.filter(variant=0)["nll"], pl.read_parquet(run / "loss.parquet")["nll"].head(2))
    assert pl.read_parquet(run / "super_weights.parquet").is_empty()
    massive = pl.read_parquet(run / "dims.parquet").filter("selected", population="all", rule="massive")
    one = massive.sort("max_abs", descending=True).row(0, named=True)
    assert one["dim"] == 7
    found = ablation.filter(rule="massive", dims="7", positions="rest", value="zero").row(0, named=True)
    assert found["layers"] == str(one["step_up"])
    model = AutoModelForCausalLM.from_pretrained(project.folder / "llama").eval()
    tokens = torch.from_numpy(load_file(run / "tokens.safetensors")["tokens"]).long()[:2]

    def hook(module, args, output):
        changed = output.clone()
        changed[:, 1:, 7] = 0
        return changed

    model.model.layers[one["step_up"]].register_forward_hook(hook)
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1].transpose(1, 2)
    nll = torch.nn.functional.cross_entropy(logits, tokens[:, 1:]).item()
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["nll"] != pytest.approx(ablation["nll"][0], rel=1e-3)


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


READERS = {  # of each rule's outputs
    "tokenize_corpus": {"extract_activations"},
    "extract_activations": {"detect_outliers", "measure_loss"},
    "detect_outliers": {"summarize_layers", "filter_systematic"},
    "summarize_layers": {"filter_systematic"},
    "filter_systematic": {"analyze_emergence"},
    "analyze_emergence": {"ablate_dims"},
    "measure_loss": {"find_super_weights"},
    "find_super_weights": {"ablate_dims"},
    "ablate_dims": {"summarize_run"},
    "summarize_run": {"render_report"},
    "render_report": set(),
}


def following(rule: str) -> set[str]:
    """The rule and all that come after it."""
    return {rule}.union(*map(following, READERS[rule]))


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
        ("find_super_weights", "Search tiny", "find_super_weights"),
        ("super_weights", "Search tiny", "find_super_weights"),
        ("ablation_targets", "Ablate outlier", "ablate_dims"),
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
    assert planned.jobs() == following(first)


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
    assert pl.read_parquet(folder / "ablation.parquet").is_empty()
    assert pl.read_parquet(folder / "super_weights.parquet").is_empty()


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
