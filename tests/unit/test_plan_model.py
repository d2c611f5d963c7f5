"""Sizes and FLOPs of a model without weights, compared with the same model built and run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import zoo
from outlier_features.model.models import empty_model
from outlier_features.plan.flops import forward_flops
from outlier_features.plan.model_size import size_of

# By model, experts of a token over all: of the mixtures in `zoo`.
MIXTURES = {"olmoe", "gpt_oss", "qwen3_moe", "mixtral", "qwen3_next", "deepseek_v3", "glm4_moe", "llama4_text"}
T = 24


def config_alone(name, folder, **changes):
    """The directory with the config of a built model, and that model."""
    built = zoo.build(name, **changes)
    built.config.architectures = [type(built).__name__]
    built.config.save_pretrained(folder)
    return built


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in sorted(zoo.CONFIGS)), ("llama", "bfloat16")]
)
def test_parameters_and_bytes_are_those_of_the_built_model(name, dtype, tmp_path):
    built = config_alone(name, tmp_path)
    size = size_of(empty_model(tmp_path, dtype=dtype)[0])
    assert size.parameters == sum(one.numel() for one in built.parameters())
    assert size.weights.total == size.parameters * {"float32": 4, "bfloat16": 2}[dtype]
    assert (size.blocks, size.width) == (zoo.BLOCKS, zoo.D_MODEL)
    assert size.has_experts == any("experts" in path for path, _ in built.named_modules())


def test_tied_embeddings_count_once(tmp_path):
    built = config_alone("llama", tmp_path, tie_word_embeddings=True)
    tied = size_of(empty_model(tmp_path, dtype="float32")[0]).parameters
    assert tied == sum(one.numel() for one in built.parameters())
    config_alone("llama", tmp_path)
    assert size_of(empty_model(tmp_path, dtype="float32")[0]).parameters == tied + zoo.VOCABULARY * zoo.D_MODEL


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_active_parameters_are_those_that_change_a_token(name, tmp_path):
    """Experts that no token is routed to have no gradient."""
    built = config_alone(name, tmp_path)
    size = size_of(empty_model(tmp_path, dtype="float32")[0])
    chosen = 1 if name == "llama4_text" else 2
    idle = sum(
        one.numel() * (zoo.EXPERTS - chosen) // zoo.EXPERTS
        for path, one in built.named_parameters()
        if ".experts." in path and one.ndim >= 2 and len(one) == zoo.EXPERTS
    )
    assert idle > 0
    assert size.active == size.parameters - idle


@pytest.mark.parametrize("name", zoo.of_every_kind(sorted(zoo.CONFIGS), zoo.KINDS | MIXTURES))
def test_flops_are_those_of_a_pass(name, tmp_path):
    built = config_alone(name, tmp_path)
    ids = torch.randint(3, 100, (1, T))
    sees_experts = {}
    for path, module in built.named_modules():
        if path.endswith(".experts"):
            # The counter does not know every way to run experts: their part is counted by hand, below.
            module.forward = lambda hidden, *others, **more: torch.zeros_like(hidden)
            sees_experts[path] = sum(one.numel() for one in module.parameters() if one.ndim == 3) // zoo.EXPERTS
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(ids)
    chosen = 1 if name == "llama4_text" else 2
    expected = counter.get_total_flops() + 2 * T * chosen * sum(sees_experts.values())
    model, _ = empty_model(tmp_path, dtype="float32")
    assert forward_flops(model, size_of(model), T).total == expected


@pytest.mark.parametrize("name", ["llama", "olmoe", "bert", "qwen3_next"])
def test_flops_of_long_sequences_follow_from_shorter_ones(name, tmp_path):
    tokens = 448
    built = config_alone(name, tmp_path, max_position_embeddings=512)
    for path, module in built.named_modules():
        if path.endswith(".experts"):
            module.forward = lambda hidden, *others, **more: torch.zeros_like(hidden)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(torch.randint(3, 100, (1, tokens)))
    model, _ = empty_model(tmp_path, dtype="float32")
    size = size_of(model)
    found = forward_flops(model, size, tokens)
    assert found.total - 2 * tokens * size.experts == counter.get_total_flops()


def test_flops_by_the_formula(tmp_path):
    built = config_alone("llama", tmp_path)
    matrices = sum(one.weight.numel() for one in built.modules() if isinstance(one, torch.nn.Linear))
    model, _ = empty_model(tmp_path, dtype="float32")
    found = forward_flops(model, size_of(model), 300)
    assert found.head == 2 * 300 * zoo.VOCABULARY * zoo.D_MODEL
    assert found.weights == 2 * 300 * matrices
    assert found.attention == zoo.BLOCKS * 4 * 300**2 * zoo.D_MODEL


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_halves_of_a_t5(part, tmp_path):
    config = AutoConfig.for_model("t5", vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    built = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    built.config.architectures = [type(built).__name__]
    built.config.save_pretrained(tmp_path)
    ids = torch.randint(3, 100, (1, T))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built.get_encoder()(ids) if part == "encoder" else built(input_ids=ids[:, 1:], decoder_input_ids=ids)
    model, _ = empty_model(tmp_path, dtype="float32", part=part)
    size = size_of(model)
    assert size.parameters == sum(one.numel() for one in built.parameters())
    assert forward_flops(model, size, T, part).total == counter.get_total_flops()
