"""Quantized checkpoints: weights against the integers that they were written from, models against the plain ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import quantizers as q
import zoo
from outlier_features.errors import InputError
from outlier_features.model.checkpoint import Checkpoint
from outlier_features.model.models import load_model
from outlier_features.quantized import weight as weight_module

PLAIN = {"dtype": "float32", "device": "cpu", "attention": "eager", "trust_remote_code": False}
FP8 = {"quant_method": "fp8", "weight_block_size": [48, 40]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
FLOATS = {"quant_method": "compressed-tensors", "format": "float-quantized"}

# By name: the quantizer, the quantization_config, the bits and the groups that are to be told.
FORMATS: dict[str, tuple[q.Quantizer, dict[str, Any], int, set[str]]] = {
    "fp8": (q.fp8_blocks(48, 40), FP8, 8, {"48 x 40"}),
    "fp8, powers of two": (q.fp8_blocks(48, 40, ".scale", powers=True), FP8, 8, {"48 x 40"}),
    "fp8, fp4 inside": (q.fp4_pairs, FP8, 4, {"32"}),
    "fp8 of rows": (q.fp8_shared(True, (-1, 1), torch.bfloat16), FLOATS, 8, {"row"}),
    "fp8 of rows, flat": (q.fp8_shared(True, (-1,)), {"quant_method": "fbgemm_fp8"}, 8, {"row"}),
    "fp8 of tensors": (q.fp8_shared(False, (1,)), FLOATS, 8, {"tensor"}),
    "fp8 of tensors, scalar": (q.fp8_shared(False, ()), FLOATS, 8, {"tensor"}),
    "gptq, 2 bits": (q.gptq(2, 32), GPTQ | {"bits": 2}, 2, {"32"}),
    "gptq, 3 bits": (q.gptq(3, 32), GPTQ | {"bits": 3}, 3, {"32"}),
    "gptq, 4 bits": (q.gptq(4, 32), GPTQ, 4, {"32"}),
    "gptq, 8 bits": (q.gptq(8, 32), GPTQ | {"bits": 8}, 8, {"32"}),
    "gptq, act-order": (q.gptq(4, 32, act_order=True), GPTQ | {"desc_act": True}, 4, {"32"}),
    "gptq, v2": (q.gptq(4, 32, version=2), GPTQ | {"checkpoint_format": "gptq_v2"}, 4, {"32"}),
    "gptq, one group": (q.gptq(4, -1, with_groups=False), GPTQ | {"group_size": -1}, 4, {"row"}),
    "gptq, bits of its own": (q.gptq(8, 32), GPTQ | {"dynamic": {"+:.*": {"bits": 8}}}, 8, {"32"}),
    "awq": (q.awq(32), AWQ, 4, {"32"}),
    "bitsandbytes, 8 bits": (q.bnb_8bit, {"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, {"row"}),
    "bitsandbytes, nf4": (q.bnb_4bit("nf4", 64), BNB4, 4, {"64"}),
    "bitsandbytes, fp4, nested": (q.bnb_4bit("fp4", 64, nested=16), {"load_in_4bit": True}, 4, {"64"}),
    "compressed int8": (q.int8_rows, FLOATS | {"format": "int-quantized"}, 8, {"row"}),
    "packed, symmetric": (q.packed(4, 32, True), PACKED, 4, {"32"}),
    "packed, with zero points": (q.packed(4, 32, False), PACKED, 4, {"32"}),
    "packed, 8 bits": (q.packed(8, 32, False), PACKED, 8, {"32"}),
}


def plain_twin(directory: Path, decoded: dict[str, np.ndarray]) -> Path:
    """The same model with the decoded weights and no word of quantization."""
    twin = directory.with_name(directory.name + "-plain")
    twin.mkdir()
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (twin / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(weight)) for name, weight in decoded.items()}
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    return twin


def assert_same_model(directory: Path, twin: Path, **changes: Any) -> None:
    ids = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(3))
    found, expected = (load_model(path, **PLAIN | changes) for path in (directory, twin))
    weights = dict(expected.model.named_parameters())
    assert all(torch.equal(weight, weights.pop(name)) for name, weight in found.model.named_parameters())
    assert not weights and found.dtype == expected.dtype
    with torch.inference_mode():
        assert torch.equal(found.model(ids).logits, expected.model(ids).logits)
    assert expected.quantized is None


@pytest.mark.parametrize("name", [*FORMATS, "mxfp4"])
def test_a_large_weight_is_decoded_in_bands(name, tmp_path, monkeypatch):
    directory = zoo.save("gpt_oss" if name == "mxfp4" else "llama", tmp_path / "model", num_hidden_layers=1)
    if name == "mxfp4":
        q.quantize(directory, q.mxfp4_experts, {"quant_method": "mxfp4"}, lambda name: name.endswith("down_proj"))
    else:
        q.quantize(directory, *FORMATS[name][:2])
    checkpoint = Checkpoint.open(directory)
    for weight in checkpoint.names:
        monkeypatch.setattr(weight_module, "_AT_ONCE", 1 << 20)
        whole = checkpoint.read(weight)
        monkeypatch.setattr(weight_module, "_AT_ONCE", 1000)  # of some 4,000
        assert torch.equal(checkpoint.read(weight), whole)


@pytest.mark.parametrize("name", FORMATS)
def test_every_weight_is_what_its_codes_stand_for(name, tmp_path):
    quantizer, settings, bits, groups = FORMATS[name]
    directory = zoo.save("llama", tmp_path / "llama", num_hidden_layers=1)
    decoded = q.quantize(directory, quantizer, settings)
    checkpoint = Checkpoint.open(directory)
    assert {one for one in checkpoint.names if "input_scale" not in one} == decoded.keys()
    for weight, expected in decoded.items():
        assert checkpoint.shape(weight) == expected.shape
        found = checkpoint.read(weight)
        assert found.dtype == torch.float32 and found.is_contiguous()
        np.testing.assert_allclose(found.numpy(), expected, rtol=3e-7, atol=0, err_msg=weight)
        half = checkpoint.read(weight, torch.bfloat16)
        assert torch.equal(half, found.bfloat16())  # rounded once
    told = checkpoint.quantization
    assert (told.format, told.weights, told.bits) == (settings.get("quant_method", "bitsandbytes"), 7, [bits])
    assert set(told.groups) == groups


@pytest.mark.parametrize(
    "name",
    ["fp8", "fp8 of rows", "gptq, act-order", "awq", "bitsandbytes, nf4", "bitsandbytes, 8 bits", "packed, symmetric"],
)
def test_a_model_is_the_plain_one_with_the_decoded_weights(name, tmp_path):
    quantizer, settings, _, _ = FORMATS[name]
    directory = zoo.save("llama", tmp_path / "llama", num_hidden_layers=2)
    q.quantize(directory, quantizer, settings)
    checkpoint = Checkpoint.open(directory)
    twin = plain_twin(directory, {name: checkpoint.read(name).numpy() for name in checkpoint.names})
    assert_same_model(directory, twin)
    assert_same_model(directory, twin, dtype="bfloat16")
    assert load_model(directory, **PLAIN).quantized == checkpoint.quantization


@pytest.mark.parametrize("model", ["qwen3_moe", "deepseek_v3"])
def test_experts_are_joined_once_they_are_decoded(model, tmp_path):
    """A checkpoint has a matrix for each expert, the model a tensor for all; some modules are left as they are."""
    directory = zoo.save(model, tmp_path / model, num_hidden_layers=3)

    def chosen(name):
        return q.is_projection(name) and "layers.1." not in name

    settings = {"quant_method": "fp8", "weight_block_size": [16, 16], "modules_to_not_convert": ["model.layers.1"]}
    decoded = q.quantize(directory, q.fp8_blocks(16, 16), settings, chosen)
    assert sum("experts.3." in name for name in decoded) == (9 if model == "qwen3_moe" else 6)
    assert_same_model(directory, plain_twin(directory, decoded))


def test_gpt_oss_in_mxfp4(tmp_path):
    directory = zoo.save("gpt_oss", tmp_path / "gpt_oss", num_hidden_layers=2)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    decoded = q.quantize(
        directory, q.mxfp4_experts, settings, lambda name: name.endswith(("gate_up_proj", "down_proj"))
    )
    checkpoint = Checkpoint.open(directory)
    assert str(checkpoint.quantization) == "mxfp4: 4 weights of 4 bits, a scale for each 32"
    stored = load_file(directory / "model.safetensors")
    for name in decoded:
        assert np.array_equal(checkpoint.read(name).numpy(), decoded[name]), name
        if f"{name}_blocks" in stored:
            blocks, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
            for dtype in (torch.float32, torch.bfloat16):
                expected = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
                assert torch.equal(checkpoint.read(name, dtype), expected)
    assert_same_model(directory, plain_twin(directory, decoded))


def test_scales_of_mxfp4_at_the_ends_of_their_range(tmp_path):
    """0 is 2^-127; 255 is not a number."""
    directory = zoo.save("gpt_oss", tmp_path / "gpt_oss", num_hidden_layers=1)
    settings = {"quant_method": "mxfp4"}
    q.quantize(directory, q.mxfp4_experts, settings, lambda name: name.endswith("down_proj"))
    path = directory / "model.safetensors"
    stored = load_file(path)
    name = "model.layers.0.mlp.experts.down_proj"
    stored[f"{name}_scales"][0] = 0
    stored[f"{name}_scales"][1] = 255
    save_file(stored, path, metadata={"format": "pt"})
    found = Checkpoint.open(directory).read(name)
    codes = stored[f"{name}_blocks"][0].numpy().reshape(64, 16)  # of 64 outputs and 32 inputs
    values = np.stack([q.E2M1[codes & 15], q.E2M1[codes >> 4]], axis=-1).reshape(64, 32)
    assert np.array_equal(found[0].numpy(), (values * 2.0**-127).astype(np.float32).T)
    assert found[1].isnan().all() and found[2:].isfinite().all()


def test_fp8_is_what_transformers_makes_of_it(tmp_path):
    directory = zoo.save("llama", tmp_path / "llama", num_hidden_layers=1)
    q.quantize(directory, q.fp8_blocks(16, 32), FP8 | {"weight_block_size": [16, 32]})
    stored, checkpoint = load_file(directory / "model.safetensors"), Checkpoint.open(directory)
    dequantize = Fp8Dequantize(None)._dequantize_one
    for name in filter(q.is_projection, checkpoint.names):
        for dtype in (torch.float32, torch.bfloat16):
            expected = dequantize(stored[name], stored[f"{name}_scale_inv"], dtype)
            assert torch.equal(checkpoint.read(name, dtype), expected)


def test_fused_experts_in_fp8(tmp_path):
    """One tensor for all experts, with blocks in each, or one scale for each expert."""
    weight = np.random.default_rng(0).standard_normal((3, 40, 24)).astype(np.float32)
    tensors, decoded = {}, {}
    parts = [q.fp8_blocks(16, 16)("w", one) for one in weight]
    for name in ("w", "w_scale_inv"):
        tensors[f"experts.{name}"] = torch.stack([stored[name].view(torch.uint8) if name == "w" else stored[name]
                                                  for stored, _ in parts])  # fmt: skip
    tensors["experts.w"] = tensors["experts.w"].view(torch.float8_e4m3fn)
    decoded["experts.w"] = np.stack([one for _, one in parts])
    parts = [q.fp8_shared(False, ())("v", one) for one in weight]
    tensors["experts.v"] = torch.stack([stored["v"].view(torch.uint8) for stored, _ in parts]).view(torch.float8_e4m3fn)
    tensors["experts.v_scale"] = torch.stack([stored["v_scale"] for stored, _ in parts])
    decoded["experts.v"] = np.stack([one for _, one in parts])
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.names) == decoded.keys()
    for name, expected in decoded.items():
        assert np.array_equal(checkpoint.read(name).numpy(), expected)


def test_shards_and_plain_checkpoints(tmp_path):
    directory = tmp_path / "sharded"
    zoo.build("llama").save_pretrained(directory, max_shard_size="100KB")
    whole = load_file(zoo.save("llama", tmp_path / "whole") / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    assert len([*directory.glob("*.safetensors")]) > 1
    assert checkpoint.quantization is None and sorted(checkpoint.names) == sorted(whole)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in whole.items())
    assert checkpoint.read("model.norm.weight", torch.float16).dtype == torch.float16
    next(directory.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"lacks model-.*expected every \.safetensors file"):
        Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "hqq"}, r"quant_method .*found 'hqq'.*package hqq"),
        ({"quant_method": "new_thing"}, r"quant_method .*found 'new_thing', expected one of fp8, .*compressed-tensors"),
        ({"bits": 4}, "quant_method in quantization_config: found 'none'"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format .*found 'marlin'.*expected 'gptq' or 'gptq_v2'"),
        (AWQ | {"version": "gemv"}, "version .*found 'gemv'"),
        (AWQ | {"zero_point": False}, "zero_point .*found False"),
        (PACKED | {"format": "nvfp4-pack-quantized"}, "format .*found 'nvfp4-pack-quantized'"),
    ],
)
def test_formats_that_are_not_known_are_refused(settings, message, tmp_path):
    directory = zoo.save("llama", tmp_path / "llama")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(InputError, match=message):
        load_model(directory, **PLAIN)


def change(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    stored = load_file(directory / "model.safetensors")
    change(stored)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("fp8", lambda s: s.pop("model.layers.1.mlp.up_proj.weight_scale_inv"), "without a scale"),
        ("fp8", lambda s: s.update({"model.layers.1.mlp.up_proj.weight_scale_inv": torch.ones(7, 7)}), "block of 48"),
        ("compressed int8", lambda s: s.update({"model.layers.1.mlp.up_proj.weight_g_idx": torch.ones(9)}), "in order"),
        ("gptq, 4 bits", lambda s: s.pop("model.layers.1.mlp.up_proj.qzeros"), "without .*qzeros"),
        ("gptq, 4 bits", lambda s: s["model.layers.1.mlp.up_proj.g_idx"].fill_(99), "g_idx goes from 99 to 99"),
        ("gptq, 4 bits", lambda s: s["model.layers.1.mlp.up_proj.qzeros"].fill_(-1), "all ones.*gptq_v2"),
        ("awq", lambda s: s.update({"model.layers.1.mlp.up_proj.scales": torch.ones(2, 95)}), "of shape .2, 95."),
        ("bitsandbytes, nf4", lambda s: s.pop("model.layers.1.mlp.up_proj.weight.absmax"), "without .*absmax"),
        ("bitsandbytes, nf4",
         lambda s: s["model.layers.1.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"].fill_(7), "state of a 4-bit"),
    ],
)  # fmt: skip
def test_incomplete_weights_are_refused_by_name(name, changed, message, tmp_path):
    quantizer, settings, _, _ = FORMATS[name]
    directory = zoo.save("llama", tmp_path / "llama", num_hidden_layers=2)
    q.quantize(directory, quantizer, settings)
    change(directory, changed)
    with pytest.raises(InputError, match=rf"layers\.1\.mlp\.up_proj.*{message}|{message}.*layers\.1\.mlp\.up_proj"):
        load_model(directory, **PLAIN)


def test_layers_that_hold_their_weights_transposed_are_refused(tmp_path):
    directory = zoo.save("gpt2", tmp_path / "gpt2")
    q.quantize(directory, q.gptq(4, 32), GPTQ, lambda name: name.endswith("attn.c_proj.weight"))  # square
    with pytest.raises(InputError, match="GPT2LMHeadModel, whose layers hold theirs transposed"):
        load_model(directory, **PLAIN)
