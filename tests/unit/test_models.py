"""Loading: which class, which head, and each mistake as one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

import zoo
from outlier_features.errors import InputError
from outlier_features.extract.losses import LossRecorder
from outlier_features.model.models import load_model

PLAIN = {"dtype": "float32", "device": "cpu", "attention": "sdpa", "trust_remote_code": False}


def change_config(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def drop_weights(directory, *names):
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file({key: value for key, value in weights.items() if key not in names}, path, metadata={"format": "pt"})


def test_a_decoder_has_a_head(tmp_path):
    loaded = load_model(zoo.save("llama", tmp_path), **PLAIN)
    assert (loaded.causal, loaded.has_causal_head) == (True, True)
    assert (loaded.blocks, loaded.d_model, loaded.vocab_size, loaded.model_type) == (4, 64, 128, "llama")
    assert loaded.parameters == sum(p.numel() for p in zoo.build("llama").parameters())
    assert loaded.dtype == torch.float32
    assert not loaded.model.training


def test_an_encoder_has_none(tmp_path):
    loaded = load_model(zoo.save("bert", tmp_path), **PLAIN)
    assert (loaded.causal, loaded.has_causal_head) == (False, False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "olmoe", "llama"])
def test_causality_is_seen_in_16_bits(name, dtype, tmp_path):
    assert zoo.load(name, tmp_path, dtype).causal == (name not in zoo.ENCODERS)


def test_without_architectures_the_model_type_decides(tmp_path):
    change_config(zoo.save("llama", tmp_path / "llama"), architectures=None)
    change_config(zoo.save("bert", tmp_path / "bert"), architectures=None)
    assert load_model(tmp_path / "llama", **PLAIN).has_causal_head
    assert not load_model(tmp_path / "bert", **PLAIN).has_causal_head


def test_a_missing_head_means_no_head(tmp_path):
    drop_weights(zoo.save("llama", tmp_path), "lm_head.weight")
    loaded = load_model(tmp_path, **PLAIN)
    assert loaded.causal
    assert not loaded.has_causal_head


def test_a_tied_head_is_there(tmp_path):
    assert zoo.load("llama", tmp_path, tie_word_embeddings=True).has_causal_head


def test_a_missing_pooler_is_of_no_concern(tmp_path):
    drop_weights(zoo.save("bert", tmp_path), "pooler.dense.weight", "pooler.dense.bias")
    load_model(tmp_path, **PLAIN)


def test_missing_weights_are_an_error(tmp_path):
    drop_weights(zoo.save("llama", tmp_path), "model.layers.2.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"its weights lack model\.layers\.2\.mlp\.up_proj\.weight"):
        load_model(tmp_path, **PLAIN)


def test_missing_tied_embeddings_are_an_error(tmp_path):
    drop_weights(zoo.save("llama", tmp_path, tie_word_embeddings=True), "model.embed_tokens.weight")
    with pytest.raises(InputError, match=r"lack model\.embed_tokens\.weight"):
        load_model(tmp_path, **PLAIN)


def test_weights_of_another_shape_are_an_error(tmp_path):
    change_config(zoo.save("llama", tmp_path), intermediate_size=48)
    with pytest.raises(InputError, match=r"is of shape .* by its config\.json"):
        load_model(tmp_path, **PLAIN)


def test_only_safetensors_are_read(tmp_path):
    zoo.save("llama", tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="expected safetensors weights"):
        load_model(tmp_path, **PLAIN)


def test_damaged_weights_are_an_error(tmp_path):
    path = zoo.save("llama", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="expected safetensors weights"):
        load_model(tmp_path, **PLAIN)


def test_encoder_decoders_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(InputError, match="'t5', an encoder-decoder model"):
        load_model(tmp_path, **PLAIN)


def test_unknown_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_thing"}))
    with pytest.raises(InputError, match=r"expected a config\.json of a transformers model"):
        load_model(tmp_path, **PLAIN)


def test_a_models_own_code_does_not_run(tmp_path):
    zoo.save("llama", tmp_path)
    change_config(tmp_path, model_type="my_own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="`trust_remote_code: true`"):
        load_model(tmp_path, **PLAIN)


@pytest.mark.parametrize("name", sorted(zoo.EAGER_ONLY))
def test_attention_that_the_model_refuses(name, tmp_path):
    zoo.save(name, tmp_path)
    with pytest.raises(InputError, match=r"attention: found 'sdpa', .* set `attention: auto`"):
        load_model(tmp_path, **PLAIN)
    assert load_model(tmp_path, **PLAIN | {"attention": "eager"}).attention == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="device: found 'cuda'"):
        load_model(tmp_path, **PLAIN | {"device": "cuda"})


def test_attention_auto_is_what_the_class_does_by_itself(tmp_path):
    used = {name: load_model(zoo.save(name, tmp_path / name), **PLAIN | {"attention": "auto"}).attention
            for name in ("llama", "gpt_oss")}  # fmt: skip
    assert used == {"llama": "sdpa", "gpt_oss": "eager"}


def test_the_true_reason_of_a_missing_loss(tmp_path):
    drop_weights(zoo.save("llama", tmp_path / "llama"), "lm_head.weight")
    assert load_model(tmp_path / "llama", **PLAIN).no_loss.startswith("its weights lack lm_head.weight")
    change_config(zoo.save("gpt2", tmp_path / "gpt2"), architectures=["GPT2ForSequenceClassification"])
    assert "GPT2ForSequenceClassification" in load_model(tmp_path / "gpt2", **PLAIN).no_loss
    bert = load_model(zoo.save("bert", tmp_path / "bert"), **PLAIN)
    assert not bert.causal and bert.no_loss is not None


def test_a_field_that_a_config_no_longer_has_is_given_back(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "codegen", vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load_model(tmp_path, **PLAIN | {"attention": "auto"}).blocks == 2


def test_models_of_images_alone_are_refused(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = AutoConfig.for_model("vit", image_size=32, patch_size=16, **small)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="ViTModel, which reads pixel_values, expected a model that runs on text"):
        load_model(tmp_path, **PLAIN)


@pytest.mark.parametrize("name", ["llava", "llama4"])
def test_the_text_stack_of_a_vision_language_model_and_its_head(name, tmp_path):
    """Wherever it lies: beside the vision tower (LLaVA), or a model with a head of its own inside (Llama 4)."""
    torch.manual_seed(0)
    text = dict(zoo.CONFIGS["llama4_text" if name == "llama4" else "llama"], num_hidden_layers=3)
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48,
             "image_size": 32, "patch_size": 16, "vision_output_dim": 32, "projector_input_dim": 32,
             "projector_output_dim": 32}  # fmt: skip
    vision = {"model_type": "llama4_vision_model" if name == "llama4" else "clip_vision_model", **small}
    kind = "llama4_text" if name == "llama4" else "llama"
    config = AutoConfig.for_model(
        name, text_config={"model_type": kind, **text}, vision_config=vision, image_token_index=5
    )
    AutoModelForImageTextToText.from_config(config, attn_implementation="eager").save_pretrained(tmp_path)
    loaded = load_model(tmp_path, **PLAIN | {"attention": "eager"})
    assert (loaded.blocks, loaded.d_model, loaded.no_loss) == (3, 64, None)
    assert all("vision" not in block.path for block in loaded.stack.blocks)
    ids = torch.randint(6, 128, (2, 9), generator=torch.Generator().manual_seed(3))
    recorder = LossRecorder(loaded)
    with recorder.states(), torch.inference_mode():
        loaded.base(ids)
        logits = loaded.model(ids).logits.float()
    nll = recorder.token_losses(ids, torch.ones_like(ids, dtype=torch.bool))
    expected = functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(nll[:, 1:], expected, rtol=1e-5, atol=1e-5)
