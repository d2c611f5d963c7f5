"""What quantizers read of a run, read back as they do, against the inputs that its statistics were made from."""

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers.quantizers.quantizers_utils import should_convert_module

from exported_run import DOWN, FILES, LLAMA, Exported, provenance_of_run, quantization_table
from fake_channels import SEQUENCES, TOKENS, FakeChannels, Layer, llama_layers, norm_rows
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.command.main import main
from outlier_features.files.artifacts import read_json
from outlier_features.files.foreign_files import foreign_provenance
from outlier_features.files.missing import optional
from outlier_features.files.tables import Column, Table, public_tables, write_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.quantize.export_quantization import export_quantization
from outlier_features.quantize.llmcompressor_recipe import PRESETS, recipe
from outlier_features.quantize.measured_layers import MeasuredLayers
from outlier_features.quantize.quantization_schema import MODULE
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.run.verify_artifacts import verify_artifacts


@pytest.fixture
def llama(tmp_path):
    return Exported(tmp_path)


def test_smoothquants_scales_are_the_largest_of_each_channel(llama, tmp_path):
    scales = load_file(llama.paths["scales"])
    assert scales.keys() == {one.name for one in llama.channels.layers}
    for name, found in scales.items():
        (x,) = llama.channels.read_by(name)
        assert found.dtype == torch.float32 and np.array_equal(found, np.abs(x.astype(np.float32)).max(0))


def test_on_request_they_are_what_torch_loads(llama, tmp_path, capsys):
    assert main(["quantization", str(llama.run), "--pt", str(tmp_path / "tiny.pt")]) == 0
    found, scales = torch.load(tmp_path / "tiny.pt"), load_file(llama.paths["scales"])
    assert found.keys() == scales.keys() and all(torch.equal(found[name], scales[name]) for name in scales)
    assert main(["quantization", str(llama.run)]) == 0
    listed = capsys.readouterr().out
    assert all(str(path) in listed for path in llama.paths.values())


def test_the_command_says_why_there_are_none(tmp_path, capsys):
    assert main(["quantization", str(tmp_path)]) == 1
    assert "expected the directory of a run" in capsys.readouterr().err


def test_the_importance_matrix_has_sums_of_squares_by_llama_cpps_names(llama):
    tensors, fields = llama.imatrix
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    expected = {f"model.layers.{n}.{one}": f"blk.{n}.{other}" for n in range(2) for one, other in names.items()}
    expected["lm_head"] = "output"
    assert tensors.keys() == {f"{name}.weight.{part}" for name in expected.values() for part in ("in_sum2", "counts")}
    for module, name in expected.items():
        (x,) = llama.channels.read_by(module)
        assert tensors[f"{name}.weight.counts"].ravel().tolist() == [len(x)]
        assert tensors[f"{name}.weight.in_sum2"].ravel() == pytest.approx(np.square(x).sum(0), rel=1e-6)
    assert fields["general.type"] == "imatrix" and "general.architecture" not in fields
    assert fields["imatrix.datasets"] == ["text"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (SEQUENCES, TOKENS)


@pytest.mark.parametrize(("tied", "names"), [(False, {"output"}), (True, {"output", "token_embd"})])
def test_a_tied_head_is_the_embedding_in_gguf(tmp_path, tied, names):
    tensors, _ = Exported(tmp_path, config={**LLAMA, "tie_word_embeddings": tied}).imatrix
    assert {name.split(".")[0] for name in tensors if not name.startswith("blk")} == names


def test_experts_in_one_tensor_have_a_row_each_and_those_never_chosen_count_nothing(tmp_path):
    path = "model.layers.0.mlp.experts"
    layers = [
        Layer(f"{path}.gate_up_proj", 0, "mlp_norm", 8, 6, experts=3),
        Layer(f"{path}.down_proj", 0, None, 6, 4, experts=3),
    ]
    exported = Exported(tmp_path, layers, config={**LLAMA, "model_type": "qwen3_moe"})
    scales = load_file(exported.paths["scales"])
    tensors, _ = exported.imatrix
    assert {name.removesuffix(".weight.counts") for name in tensors if name.endswith("counts")} == {
        "blk.0.ffn_gate_exps", "blk.0.ffn_up_exps", "blk.0.ffn_down_exps",
    }  # fmt: skip
    for module, name in (
        ("gate_up_proj", "ffn_up_exps"),
        ("gate_up_proj", "ffn_gate_exps"),
        ("down_proj", "ffn_down_exps"),
    ):
        inputs = exported.channels.read_by(f"{path}.{module}")
        sums, counts = (tensors[f"blk.0.{name}.weight.{part}"] for part in ("in_sum2", "counts"))
        assert sums.shape == (3, inputs[0].shape[1]) and counts.ravel().tolist() == [0, 5, 10]
        assert not sums[0].any() and sums[2] == pytest.approx(np.square(inputs[2]).sum(0), rel=1e-6)
        assert np.array_equal(scales[f"{path}.{module}"][1], np.abs(inputs[1].astype(np.float32)).max(0))
        assert not scales[f"{path}.{module}"][0].any()


@pytest.mark.parametrize(
    ("config", "module", "tensor"),
    [
        ({"model_type": "gpt2"}, "transformer.h.0.attn.c_attn", "blk.0.attn_qkv"),
        ({"model_type": "gpt2"}, "transformer.h.0.mlp.c_proj", "blk.0.ffn_down"),
        ({"model_type": "bert"}, "bert.encoder.layer.0.attention.self.query", "blk.0.attn_q"),
        ({"model_type": "bert"}, "encoder.layer.0.output.dense", "blk.0.ffn_down"),
        ({"model_type": "xlm-roberta"}, "roberta.encoder.layer.0.intermediate.dense", "blk.0.ffn_up"),
        ({"model_type": "mistral"}, "model.layers.0.mlp.up_proj", "blk.0.ffn_up"),
        ({"model_type": "gpt_neox"}, "gpt_neox.layers.0.attention.query_key_value", "blk.0.attn_qkv"),
        ({"model_type": "gemma3_text"}, "model.layers.0.self_attn.o_proj", "blk.0.attn_output"),
        ({"model_type": "gemma3"}, "model.language_model.layers.0.self_attn.o_proj", "blk.0.attn_output"),
        ({"model_type": "phi"}, "model.layers.0.self_attn.dense", "blk.0.attn_output"),
        ({"model_type": "t5"}, "encoder.block.0.layer.0.SelfAttention.q", "enc.blk.0.attn_q"),
        ({"model_type": "llama"}, "layers.0.self_attn.q_proj", "blk.0.attn_q"),
    ],
)
def test_modules_of_many_types_have_their_names_in_gguf(tmp_path, config, module, tensor):
    tensors, _ = Exported(tmp_path, [Layer(module, 0)], config=config).imatrix
    assert tensors.keys() == {f"{tensor}.weight.in_sum2", f"{tensor}.weight.counts"}


@pytest.mark.parametrize(
    ("config", "module", "reason"),
    [
        ({"model_type": "mpnet"}, "encoder.layer.0.attention.attn.q", "no architecture for the type mpnet"),
        ({"model_type": "llama"}, "model.layers.0.other.thing", "no such name"),
        ({"model_type": "qwen3_5_text"}, "model.layers.0.linear_attn.out_proj", "columns otherwise"),
    ],
)
def test_what_has_no_name_in_gguf_is_said(tmp_path, capsys, config, module, reason):
    exported = Exported(tmp_path, [Layer(module, 0)], {"model.layers.1.x": "it did not run"}, config)
    assert not exported.imatrix[0]
    left_out = foreign_provenance(exported.paths["imatrix"])["left_out"]
    assert left_out.pop("it did not run") == ["model.layers.1.x"]
    assert [names for why, names in left_out.items() if reason in why] == [[module]]
    said = capsys.readouterr().err
    assert module in said and reason in said and "model.layers.1.x" in said


def test_the_recipe_smooths_what_norms_write_and_leaves_the_head(llama):
    smooth, quantization = llama.recipe["SmoothQuantModifier"], llama.recipe["QuantizationModifier"]
    matched = [
        ({one.name for one in llama.channels.layers for pattern in balance if matches(pattern, one.name)},
         {row["module"] for row in norm_rows() if matches(norm, row["module"])})
        for balance, norm in smooth["mappings"]
    ]  # fmt: skip
    attention, mlp = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
    assert matched == [
        ({f"model.layers.{n}.{one}" for n in range(2) for one in names}, {f"model.layers.{n}.{norm}" for n in range(2)})
        for names, norm in ((attention, "input_layernorm"), (mlp, "post_attention_layernorm"))
    ]
    assert smooth["smoothing_strength"] == 0.5
    assert quantization == {"targets": ["Linear"], "scheme": "W8A8", "ignore": ["lm_head"]}


def test_every_scheme_has_a_preset(llama):
    measured = MeasuredLayers(TensorFile(llama.run / "channel_stats.safetensors"))
    for scheme in SCHEMES:
        content, said = recipe(measured, None, [], scheme)
        modifier = content["quantization_stage"]["quantization_modifiers"]["QuantizationModifier"]
        assert modifier["scheme"] and any("nearest" in one for one in said) == (scheme not in PRESETS)


def matches(pattern, name):
    """As compressed-tensors matches a name (compressed_tensors/utils/match.py)."""
    return bool(re.match(pattern.removeprefix("re:"), name)) if pattern.startswith("re:") else pattern == name


@pytest.mark.parametrize(
    ("layers", "norms", "smoothed"),
    [
        (None, norm_rows(parameterization=None), set()),
        (None, norm_rows(parameterization="1 + w"), {0, 1}),
        (None, [*norm_rows(1), *norm_rows(2, site="attn_norm+resid_mid")[2:]], {0}),
        ([*llama_layers(), Layer("model.layers.1.mlp.experts.down_proj", 1, None, experts=2)], norm_rows(), {0}),
        ([replace(one, transposed=one.layer == 0) for one in llama_layers()], norm_rows(), {1}),
    ],
    ids=["no gain is known", "1 + w", "after the stream", "experts beside", "Conv1D"],
)
def test_a_norm_that_others_read_is_not_smoothed(tmp_path, layers, norms, smoothed):
    mappings = Exported(tmp_path, layers, norms=norms).recipe.get("SmoothQuantModifier", {"mappings": []})["mappings"]
    gates = [pattern for balance, _ in mappings for pattern in balance if "gate_proj" in pattern]
    assert {n for n in range(2) for one in gates if matches(one, f"model.layers.{n}.mlp.gate_proj")} == smoothed
    outside = [f"model.layers.{n}.mlp.gate_proj" for n in range(2, 30)]
    assert smoothed == {0, 1} or not [name for name in outside for one in gates if matches(one, name)]


def test_without_norms_nothing_is_smoothed(tmp_path):
    assert Exported(tmp_path, norms=None).recipe.keys() == {"QuantizationModifier"}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, {DOWN, "model.layers.0.self_attn.k_proj"}), ({"scheme": "mxfp4"}, set()), ({"remedy": "hadamard"}, set()),
     ({"quantized": "x"}, set())],
)  # fmt: skip
def test_layers_whose_output_is_too_wrong_are_left_in_16_bits(tmp_path, changes, kept):
    errors = {DOWN: 0.4, "model.layers.0.self_attn.k_proj": 0.11, "model.layers.0.mlp.up_proj": 0.09}
    table = quantization_table(provenance_of_run(tmp_path), tmp_path, errors, **changes)
    exported = Exported(tmp_path, quantization=table)
    skipped = exported.bitsandbytes.llm_int8_skip_modules
    assert {*skipped} == {"lm_head", *kept}
    left = {one.name for one in exported.channels.layers if not should_convert_module(one.name, skipped)}
    assert left == {"lm_head", *kept}
    # What vLLM holds as one matrix has one scheme.
    with_readers = {f"model.layers.0.self_attn.{one}_proj" for one in "qkv"} if kept else set()
    assert {*exported.recipe["QuantizationModifier"]["ignore"]} == {"lm_head", *kept, *with_readers}
    assert foreign_provenance(exported.paths["llmcompressor"])["kept"] == [*(one for one in errors if one in kept)]


def test_what_the_loss_needs_goes_before_what_is_wrong(tmp_path, monkeypatch):
    found = public_tables().get("quantization_sensitivity")
    table = found or Table("quantization_sensitivity", "layer", (MODULE, Column("kept", pl.Boolean, "")))
    monkeypatch.setitem(public_tables(), table.name, table)
    provenance = provenance_of_run(tmp_path)
    rows = [{"module": DOWN, "kept": False}, {"module": "model.layers.0.mlp.up_proj", "kept": True}]
    path = tmp_path / f"{table.name}.parquet"
    write_table(path, pl.DataFrame(rows, schema=table.schema, strict=False), table, provenance)
    wrong = quantization_table(provenance, tmp_path, {DOWN: 0.9})
    skipped = Exported(tmp_path, quantization=wrong, quantization_sensitivity=path).bitsandbytes.llm_int8_skip_modules
    assert skipped == ["lm_head", "model.layers.0.mlp.up_proj"]
    write_table(path, pl.DataFrame(schema=table.schema), table, {**provenance, "missing": {"cause": "off"}})
    skipped = Exported(tmp_path, quantization=wrong, quantization_sensitivity=path).bitsandbytes.llm_int8_skip_modules
    assert skipped == ["lm_head", DOWN]


def test_bitsandbytes_takes_its_arguments(llama):
    config = llama.bitsandbytes
    assert config.load_in_8bit and config.llm_int8_threshold == 6.0 and config.llm_int8_skip_modules == ["lm_head"]
    assert "tokens_sha256" not in config.to_dict()


def test_a_prefix_is_the_chosen_tokens_in_order_and_what_is_missing_says_why(tmp_path):
    rows = [
        {"token_id": 30, "text": "\n", "count": 9, "chosen": True, "prefix_position": 0, "appended": False},
        {"token_id": 7, "text": ".", "count": 2, "chosen": False, "prefix_position": None, "appended": False},
        {"token_id": 1, "text": "<s>", "count": None, "chosen": True, "prefix_position": 1, "appended": True},
    ]
    table = tmp_path / "prefix_tokens.parquet"
    provenance = provenance_of_run(tmp_path)
    write_table(table, pl.DataFrame(rows, schema=PREFIX_TOKENS.schema, strict=False), PREFIX_TOKENS, provenance)
    prefix = read_json(Exported(tmp_path, prefix_tokens=table).paths["prefix"])
    assert prefix["prefixed_tokens"] == [30, 1] and prefix["texts"] == ["\n", "<s>"]
    empty, absent = pl.DataFrame(schema=PREFIX_TOKENS.schema), {"prefix": {"absent": "the model is not causal"}}
    write_table(table, empty, PREFIX_TOKENS, {**provenance, **absent})
    prefix = read_json(Exported(tmp_path, prefix_tokens=table).paths["prefix"])
    assert prefix["prefixed_tokens"] is None and prefix["absent"] == "the model is not causal"


def test_without_a_head_transformers_chooses_what_to_skip(tmp_path):
    assert Exported(tmp_path, llama_layers()[:-1]).bitsandbytes.llm_int8_skip_modules is None


def test_experts_that_are_kept_are_left_where_each_is_a_linear_layer(tmp_path):
    path = "model.layers.0.mlp.experts"
    layers = [Layer(f"{path}.gate_up_proj", 0, "mlp_norm", experts=2), Layer(f"{path}.down_proj", 0, None, experts=2)]
    FakeChannels(layers, {}, tmp_path / "results/tiny/text")
    table = quantization_table(provenance_of_run(tmp_path), tmp_path, {f"{path}.gate_up_proj": 0.5})
    ignored = Exported(tmp_path, layers, quantization=table).recipe["QuantizationModifier"]["ignore"]
    left = lambda name: any(matches(one, name) for one in ignored)  # noqa: E731
    assert left(f"{path}.0.gate_proj") and left(f"{path}.1.up_proj") and left(f"{path}.gate_up_proj")
    assert not left(f"{path}.0.down_proj") and not left("model.layers.0.mlp.shared_expert.gate_proj")
    assert left("model.layers.0.mlp.gate") and not left("model.layers.0.mlp.gate_proj")


def test_every_file_says_where_it_comes_from_and_damage_shows(llama, tmp_path):
    run = json.loads(json.dumps(llama.channels.provenance))
    found = {
        "scales": TensorFile(llama.paths["scales"]).provenance,
        "imatrix": foreign_provenance(llama.paths["imatrix"]),
        "llmcompressor": foreign_provenance(llama.paths["llmcompressor"]),
        "bitsandbytes": read_json(llama.paths["bitsandbytes"]),
        "prefix": read_json(llama.paths["prefix"]),
    }
    for facts in found.values():
        assert facts["rule"] == "export_quantization" and facts["package_version"]
        assert all(facts[key] == run[key] for key in ("model", "model_revision", "corpus", "tokens_sha256", "dtype"))
    verdicts = {one.path: one.found for one in verify_artifacts([tmp_path / "results"])}
    assert not any(verdicts.values()) and {*llama.paths.values()} <= verdicts.keys()
    for path in llama.paths.values():
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    assert {one.path for one in verify_artifacts([tmp_path / "results"]) if one.found} == {*llama.paths.values()}


def test_a_file_of_another_run_is_found(llama, tmp_path):
    other = Exported(tmp_path, model="other")
    taken = [llama.paths[name] for name in ("imatrix", "llmcompressor")]
    for path in taken:
        (other.run / "quantization" / path.name).replace(path)
    assert {one.path for one in verify_artifacts([llama.run]) if one.found} == {*taken}


@pytest.mark.parametrize("why", [None, "`skip` names channels"])
def test_a_run_without_channels_has_none_and_says_why(tmp_path, why):
    run = tmp_path / "results/tiny/text"
    channels = FakeChannels(llama_layers(), {}, run)
    stats = run / "channel_stats.safetensors"
    log = str(tmp_path / "results/logs/merge_channels/tiny/text.log")
    with optional("channels", [str(stats)], log, of=str(run / "tokens.safetensors"), off=why):
        if why is None:
            raise RuntimeError("no linear layer")
    paths = {name: run / "quantization" / file for name, file in FILES.items()}
    source = channels.write_model(tmp_path / "resources/models/tiny", **LLAMA)
    with optional("channels", map(str, paths.values()), log, of=str(stats)):
        export_quantization(source=source, tokens=run / "tokens.safetensors", channel_stats=stats, tables={},
                            scheme="int8_token", **paths)  # fmt: skip
    said = [
        TensorFile(paths["scales"]).provenance, foreign_provenance(paths["imatrix"]),
        foreign_provenance(paths["llmcompressor"]), read_json(paths["bitsandbytes"]), read_json(paths["prefix"]),
    ]  # fmt: skip
    assert all((why or "no linear layer") in one["missing"]["reason"] for one in said)
    assert not load_file(paths["scales"]) and not GGUFReader(paths["imatrix"]).tensors
    assert yaml.safe_load(paths["llmcompressor"].read_text()) is None
    assert not [one for one in verify_artifacts([tmp_path / "results"]) if one.found]
