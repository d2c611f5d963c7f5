"""Loading: which class, which head, and each mistake as one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from outlier_features.errors import InputError
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
