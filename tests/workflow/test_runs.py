"""Reruns do what changed and nothing else, and the tables are those of plain transformers on the run's own tokens."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_series_equal
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM

import planted_experts
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.code_version import import_closure
from outlier_features.files.tables import read_table
from tiny_project import PERSISTENT

ROOT = Path(__file__).parents[2]
RUN = "results/tiny/text"


def test_a_second_run_has_nothing_to_do(project):
    assert project.run().nothing_to_do


def test_it_finds_what_was_planted(project):
    dims = pl.read_parquet(project.folder / RUN / "dims.parquet").filter(population="all")
    assert dims.filter("selected", rule="dettmers")["dim"].to_list() == [5]
    assert 7 in dims.filter("selected", rule="massive")["dim"]
    massive = pl.read_parquet(project.folder / RUN / "massive.parquet")
    assert set(massive.filter(dim=7)["token_text"]) == {"z"}


def test_the_planted_massive_value_is_traced_to_the_embedding(project):
    run = project.folder / RUN
    life = pl.read_parquet(run / "lifecycle.parquet").filter(target_dim=7)
    assert set(life["token_text"]) == {"z"}
    largest = pl.read_parquet(run / "massive.parquet").filter(dim=7).sort(pl.col("value").abs()).row(-1, named=True)
    after = life.filter(part="resid_post", layer=largest["layer"]).row(0, named=True)
    assert after["value"] == pytest.approx(largest["value"])
    assert (after["sequence"], after["traced_token"]) == (largest["sequence"], largest["token"])
    assert "The embeddings give dim 7 " in (run / "origin.txt").read_text()


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


def test_gains_are_those_that_were_planted(project):
    run = project.folder / RUN
    weights = load_file(project.folder / "llama/model.safetensors")
    norms = pl.read_parquet(run / "norms.parquet")
    assert norms["tensor"].to_list() == [f"{module}.weight" for module in norms["module"]]
    for row in norms.to_dicts():
        assert row["exactly_one"] == int((weights[row["tensor"]] == 1).sum()) >= 31
    gains = pl.read_parquet(run / "gains.parquet").filter(population="all", rule="dettmers", dim=5)
    assert gains["gain"].to_list() == [20.0 if site == "attn_norm" else 1.0 for site in gains["site"]]
    assert len(gains) == 9 and set(gains.filter(site="attn_norm")["rank"]) == {1}
    report = (project.folder / "results/report.html").read_text()
    words = re.sub("<[^>]*>", "", report)  # a dim is a link
    assert "Gain of dimension 5, as |gain| / median |gain|" in words and 'id="tiny/text/norm-gains"' in report


def looped_alpha(pattern, causal):
    """Mean over the queries that see each key, of a pattern (heads, T, T)."""
    length = pattern.shape[1]
    return [
        [np.mean([float(head[query, key]) for query in range(key if causal else 0, length)]) for key in range(length)]
        for head in pattern
    ]


def test_sinks_are_those_of_plain_transformers(project):
    run = project.folder / RUN
    tokens = torch.from_numpy(load_file(run / "tokens.safetensors")["tokens"]).long()
    model = AutoModelForCausalLM.from_pretrained(project.folder / "llama", attn_implementation="eager").eval()
    with torch.no_grad():
        attentions = model(tokens, output_attentions=True).attentions
    sinks = pl.read_parquet(run / "sinks.parquet")
    assert len(sinks) == 4 * 4 * 48
    alpha = np.array([[looped_alpha(one, causal=True) for one in layer] for layer in attentions])
    for row in sinks.iter_rows(named=True):
        values = alpha[row["layer"], :, row["head"], row["token"]]
        assert row["alpha"] == pytest.approx(values.mean(), rel=1e-4)
        assert row["sink_rate"] == pytest.approx((values > 0.3).mean())
        assert row["kv_head"] == row["head"] // 2
        assert row["sequences"] == 6 and row["excluded"] == (6 if row["token"] == 0 else 0)
    kept = load_file(run / "attention.safetensors")
    assert kept
    for name, pattern in kept.items():
        layer = int(name.removeprefix("pattern."))
        np.testing.assert_allclose(pattern[0], attentions[layer][0], atol=1e-5)


def test_the_surface_is_that_of_plain_transformers(project):
    run = project.folder / RUN
    tokens = torch.from_numpy(load_file(run / "tokens.safetensors")["tokens"]).long()
    model, seen = AutoModelForCausalLM.from_pretrained(project.folder / "llama").eval(), {}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out}))
    with torch.no_grad():
        model(tokens)
    x = torch.stack([seen[i] for i in range(4)])
    surface = pl.read_parquet(run / "surface.parquet")
    (where,) = surface.select("site", "layer", "sequence").unique().rows()
    assert where[0] == "resid_post" and len(surface) == 48 * 32
    assert float(x[where[1], where[2]].abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
    np.testing.assert_allclose(surface["value"].to_numpy().reshape(48, 32), x[where[1], where[2]], rtol=1e-3, atol=1e-3)
    assert surface.sort("max_abs")["token_text"][-1] == "z"
    assert 'data-table="tiny/text/surface/data"' in (project.folder / "results/report.html").read_text()


def test_kept_or_not_decides_how_the_surface_is_made(project):
    kept = project.planned(results="none").jobs()
    again = project.planned(results="none", extract__keep_activations=False).jobs()
    assert again - kept == {"detect_in_passes", "rerun_largest"} and "record_surface" in kept
    assert kept - again == {"extract_activations", "detect_outliers", "locate_outliers"}


def test_other_attention_maps_need_no_other_stage(project):
    changes = {"attention_maps__threshold": 0.5, "attention_maps__kept_layers": [1]}
    assert project.planned(**changes).jobs() == following("map_attention")


@pytest.mark.parametrize(
    "changes",
    [
        {"rules__dettmers__layer_share": 0.5, "rules__massive__ratio": 500.0},
        {"rules__dettmers__threshold": 7.0, "sensitivity__thresholds": [5.0, 6.0]},
    ],
)
def test_another_share_or_threshold_needs_no_new_detection(project, changes):
    assert project.planned(**changes).jobs() == following("filter_systematic")


def test_a_lower_floor_needs_a_new_detection(project):
    jobs = project.planned(detect__floors={"attn_norm": 3.5}).jobs()
    assert "detect_outliers" in jobs and "extract_activations" not in jobs


@pytest.mark.parametrize("changes", [{"skip": ["neurons"]}, {"neurons__examples": 5}])
def test_less_of_the_neurons_needs_no_new_pass(project, changes):
    assert project.planned(**changes).jobs() == following("rank_neurons")


@pytest.mark.parametrize("changes", [{"neurons__examples": 30}, {"neurons__high_norm": 5.0}])
def test_more_of_the_neurons_needs_a_new_pass(project, changes):
    assert "extract_activations" in project.planned(**changes).jobs()


def test_channels_that_nobody_wants_any_more_need_no_new_pass(project):
    assert project.planned(skip=["channels"]).jobs() == following("merge_channels")


def test_losses_that_nobody_wants_any_more_need_no_new_pass(project):
    assert project.planned(skip=["loss"]).jobs() == following("measure_loss")


def test_the_inputs_of_all_linear_layers_are_described(project):
    run = project.folder / "results/tiny/text"
    stats, ids = load_file(run / "channel_stats.safetensors"), load_file(run / "tokens.safetensors")["tokens"]
    assert stats["model.layers.0.mlp.down_proj.count"] == ids.size
    assert stats["model.layers.0.mlp.down_proj.count.without_first"] == ids[:, 1:].size
    # Behind the norm before attention, the planted gain is 20.
    assert stats["model.layers.2.self_attn.q_proj.mean_square"].argmax() == PERSISTENT
    assert np.array_equal(stats["model.layers.2.self_attn.q_proj.max"], stats["model.layers.2.self_attn.v_proj.max"])
    assert read_table(run / "prefix_tokens.parquet", PREFIX_TOKENS)[1]["prefix"]["threshold"] == 64


FEEDS = {
    "tokenize_corpus": ["extract_activations", "map_attention"],
    "extract_activations": [
        "detect_outliers",
        "locate_outliers",
        "measure_loss",
        "rank_neurons",
        "merge_channels",
        "record_surface",
        "check_norms",
    ],
    "detect_outliers": ["summarize_layers"],
    "locate_outliers": ["summarize_run"],
    "summarize_layers": ["filter_systematic", "map_attention", "record_surface"],
    "filter_systematic": ["analyze_emergence", "quantize_sites"],
    "analyze_emergence": [
        "check_norms",
        "record_surface",
        "trace_origin",
        "rank_experts",
        "ablate_dims",
        "quantize_sites",
        "record_examples",
        "write_mask",
        "render_gallery",
    ],
    "check_norms": ["summarize_run", "render_gallery", "export_quantization"],
    "record_surface": ["summarize_run"],
    "trace_origin": ["record_examples", "summarize_run", "render_gallery"],
    "rank_neurons": ["record_examples", "summarize_run", "render_gallery"],
    "merge_channels": ["summarize_run", "quantize_sites", "export_quantization"],
    "quantize_sites": ["summarize_run", "export_quantization"],
    "record_examples": ["summarize_run", "render_gallery"],
    "rank_experts": ["prune_experts", "summarize_run"],
    "prune_experts": ["summarize_run"],
    "map_attention": ["summarize_run"],
    "measure_loss": ["summarize_run", "render_gallery"],
    "ablate_dims": ["summarize_run", "quantize_sites", "write_mask", "render_gallery"],
    "summarize_run": ["render_report"],
    "render_report": [],
    "render_gallery": ["render_report", "list_galleries"],
    "list_galleries": [],
    "write_mask": [],
    "export_quantization": [],
}


def following(*rules: str) -> set[str]:
    """These rules and all that need what they make."""
    return {*rules}.union(*(following(*FEEDS[rule]) for rule in rules)) if rules else set()


MESSAGES = {
    "tokenize_corpus": "Tokenize text",
    "extract_activations": "Run tiny",
    "detect_outliers": "Detect outliers",
    "locate_outliers": "Locate outliers",
    "summarize_layers": "Summarize the",
    "filter_systematic": "Select systematic",
    "map_attention": "Map the",
    "analyze_emergence": "Follow the",
    "check_norms": "Check the",
    "record_surface": "Record the",
    "trace_origin": "Trace the",
    "rank_experts": "Rank the",
    "prune_experts": "Prune the",
    "rank_neurons": "Rank the",
    "merge_channels": "Merge what",
    "quantize_sites": "Round what",
    "record_examples": "Record examples",
    "ablate_dims": "Search tiny",
    "summarize_run": "Summarize tiny",
    "render_report": "Render the",
    "render_gallery": "Render the",
    "list_galleries": "List the",
    "write_mask": "Write the",
    "export_quantization": "Export the",
}


FIRST = {
    "tokens/tokenize_corpus": ["tokenize_corpus"],
    "extract/losses": ["extract_activations"],
    "model/sites": ["extract_activations"],
    "scan/scan_kernel": ["detect_outliers", "locate_outliers"],
    "scan/statistics": ["detect_outliers", "locate_outliers"],
    "locate/count_locations": ["locate_outliers"],
    "detect/summarize_layers": ["summarize_layers"],
    "rules/systematic": ["filter_systematic"],
    "dims/pairs": ["filter_systematic"],
    "attention/attention_patterns": ["map_attention"],
    "tokens/token_text": ["filter_systematic"],
    "dims/analyze_emergence": ["analyze_emergence"],
    "neurons/neurons_kernel": ["extract_activations"],
    "neurons/neuron_tables": ["rank_neurons"],
    "channels/record_channels": ["extract_activations"],
    "channels/merge_channels": ["merge_channels"],
    "norms/norms": ["extract_activations"],
    "norms/norm_tables": ["check_norms"],
    "norms/describe_gains": ["check_norms"],
    "surface/pooling": ["record_surface"],
    "origin/mlp_weights": ["trace_origin"],
    "gallery/typical_examples": ["record_examples"],
    "experts/record_experts": ["rank_experts"],
    "experts/summarize_experts": ["summarize_run"],
    "ablate/super_weights": ["ablate_dims", "prune_experts"],
    "ablate/ablation_targets": ["ablate_dims"],
    "summary/summarize_run": ["summarize_run"],
    "report/render_report": ["render_report"],
    "dims/write_mask": ["write_mask"],
    "quantize/gguf_names": ["export_quantization"],
}


@pytest.mark.parametrize("module", FIRST)
def test_an_edited_module_concerns_the_stages_that_import_it(module):
    """By the code versions: what stands first among them, and what else imports it follows those anyway."""
    importing = {rule for rule in FEEDS if f"{module}.py" in import_closure(ROOT / "scripts" / f"{rule}.py")}
    after = set().union(*(following(rule) - {rule} for rule in importing))
    assert importing - after == set(FIRST[module])


@pytest.mark.parametrize("module", ["scan/scan_kernel", "rules/systematic"])
def test_an_edited_module_reruns_the_stages_that_import_it(project, module):
    """The first of them for its new code, and what follows for its new inputs; nothing before."""
    undo = project.edit(module)
    try:
        planned = project.planned()
    finally:
        undo()
    assert planned.jobs_with_other_parameters() == {MESSAGES[rule] for rule in FIRST[module]}
    assert planned.jobs() == following(*FIRST[module])


def test_an_edit_that_concerns_no_stage_reruns_none(project):
    undo = project.edit("run/config")
    try:
        assert project.planned().nothing_to_do
    finally:
        undo()


def test_a_dense_model_has_empty_tables_of_experts(project):
    for name in ("experts", "routing", "expert_load", "expert_balance", "expert_ablation"):
        assert pl.read_parquet(project.folder / RUN / f"{name}.parquet").is_empty()
    assert project.planned(experts__sequences=3).jobs() == following("rank_experts")


def test_a_planted_super_expert_is_found(project):
    """From a model directory to the report; the maxima are those of plain transformers on the run's own tokens."""
    project.run_here(models=["tiny-moe"], results="super-expert", experts__sequences=4)
    folder = project.folder / "super-expert/tiny-moe/text"
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
    pages = pl.read_parquet(folder / "gallery_neurons.parquet").filter(layer=layer, expert=expert, neuron=0)
    writes = dict(zip(pages["writes_dims"][0], pages["writes"][0], strict=True))
    assert f"feeds dim {dim}" in pages["reasons"][0] and writes[dim] == pytest.approx(found["max_abs_input"] * -300)
    assert "expert 3 of layer 1" in (project.folder / "super-expert/report.html").read_text()


def test_documents_bert_and_a_site_that_is_absent(project):
    (project.folder / "lines.jsonl").write_text('{"text": "A short one."}\n{"text": "' + "long " * 30 + '"}\n')
    project.run_here(
        "tables",
        models=["tiny-bert"],
        corpora=["lines"],
        results="documents",
        sample={"sequences": 2, "pack": "documents", "tokens": 64},
        catalog__models__gone={"path": "nowhere"},
        catalog__corpora__lines={"files": ["lines.jsonl"]},
    )
    folder = project.folder / "documents/tiny-bert/lines"
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
    assert pl.read_parquet(folder / "loss.parquet").is_empty()
    missing = json.loads((folder / "summary.json").read_text())["missing"]
    assert set(missing) == {"loss", "ablation"} and {facts["cause"] for facts in missing.values()} == {"model"}
    assert all("a position sees later ones" in facts["reason"] for facts in missing.values())
    norms = pl.read_parquet(folder / "norms.parquet")
    assert len(norms) == 7 and norms["all_one"].all() and norms["bias_max_abs"].to_list() == [0.0] * 7
    assert set(norms["site"]) == {None, "resid_mid+mlp_norm", "resid_post"}
    # Without padding, and so each sequence alone.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        short, long = (
            model(tokens[n : n + 1, : mask[n].sum()].long(), output_attentions=True).attentions for n in range(2)
        )
    for row in pl.read_parquet(folder / "sinks.parquet").iter_rows(named=True):
        layer, head, token = row["layer"], row["head"], row["token"]
        values = [float(one[layer][0, head, :, token].mean()) for one in (short, long) if token < one[layer].shape[-1]]
        assert row["sequences"] == len(values) and row["alpha"] == pytest.approx(np.mean(values), rel=1e-4)
        assert row["kv_head"] is None
    assert pl.read_parquet(folder / "ablation.parquet").is_empty()
    assert pl.read_parquet(folder / "super_weights.parquet").is_empty()
