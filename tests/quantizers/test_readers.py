"""What a run exports, read by the quantizers themselves: `make test-quantizers`, in an environment that has them."""

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from compressed_tensors.quantization import preset_name_to_scheme
from llmcompressor.recipe import Recipe
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import replace_with_bnb_linear

from exported_run import DOWN, LLAMA, Exported, provenance_of_run, quantization_table


def test_llm_compressor_takes_the_recipe_and_finds_its_layers(tmp_path):
    llama = Exported(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))
    smooth, quantization = Recipe.create_instance(str(llama.paths["llmcompressor"])).modifiers
    resolved = smooth._resolve_mappings(model)
    names = {module: name for name, module in model.named_modules()}
    found = {one.smooth_name: [names[layer] for layer in one.balance_layers] for one in resolved}
    for n in range(2):
        block = f"model.layers.{n}"
        assert found[f"{block}.input_layernorm"] == [f"{block}.self_attn.{one}_proj" for one in "qkv"]
        assert found[f"{block}.post_attention_layernorm"] == [f"{block}.mlp.{one}_proj" for one in ("gate", "up")]
    assert len(found) == 4
    quantization.initialize_quantization(model)
    quantized = {name for name, one in model.named_modules() if getattr(one, "quantization_scheme", None)}
    assert quantized == {one.name for one in llama.channels.layers} - {"lm_head"}
    weights = model.model.layers[0].mlp.up_proj.quantization_scheme
    assert (weights.weights.num_bits, weights.input_activations.strategy) == (8, "token")


@pytest.mark.parametrize(
    ("scheme", "bits", "strategy"),
    [("int8_token", (8, 8), "token"), ("int4_group128", (4, 4), "token"), ("fp8_token", (8, 8), "token"),
     ("fp8_tensor", (8, 8), "tensor"), ("mxfp4", (4, 4), "group")],
)  # fmt: skip
def test_the_preset_of_a_scheme_rounds_as_it_does(tmp_path, scheme, bits, strategy):
    preset = Exported(tmp_path, scheme=scheme).recipe["QuantizationModifier"]["scheme"]
    found = preset_name_to_scheme(preset, ["Linear"])
    assert (found.weights.num_bits, found.input_activations.num_bits) == bits
    assert found.input_activations.strategy == strategy


def test_bitsandbytes_leaves_the_modules_that_are_named(tmp_path):
    table = quantization_table(provenance_of_run(tmp_path), tmp_path, {DOWN: 0.4})
    config = Exported(tmp_path, quantization=table).bitsandbytes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))
    replace_with_bnb_linear(model, config.llm_int8_skip_modules, config)
    left = {name for name, one in model.named_modules() if type(one) is torch.nn.Linear}
    eight_bits = {name: one for name, one in model.named_modules() if isinstance(one, Linear8bitLt)}
    assert left == {"lm_head", DOWN} and len(eight_bits) == 13
    assert {one.state.threshold for one in eight_bits.values()} == {6.0}
