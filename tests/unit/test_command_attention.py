"""The command `attention`: the right numbers from every source, and one line for every mistake."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.gpt_oss import modeling_gpt_oss

import zoo
from fake_run import FakeRun
from outlier_features.command.main import main
from outlier_features.files.tensorfile import TensorFile, write_tensors

BLOCKED = """
import builtins, sys
real = builtins.__import__
def refuse(name, *rest, **more):
    if name.split(".")[0] in ("kaleido", "choreographer"):
        raise ImportError(name)
    return real(name, *rest, **more)
builtins.__import__ = refuse
from outlier_features.command.main import main
sys.exit(main(sys.argv[1:]))
"""


def byte_tokenizer(folder):
    """Every byte is a token, between [CLS] and [SEP]; returns the vocabulary."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"[CLS]": 0, "[SEP]": 1} | {name: i + 2 for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary


@pytest.fixture(scope="module")
def model():
    return zoo.build("llama")


@pytest.fixture(scope="module")
def dump(tmp_path_factory, model):
    """Patterns, the norms' outputs and the weights of a tiny Llama on three sequences of 12 tokens."""
    ids = torch.arange(20, 56).reshape(3, 12)
    norms = []
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda module, args, output: norms.append(output))
    with torch.inference_mode():
        patterns = torch.stack(model.base_model(ids, output_attentions=True).attentions, dim=1)
    tensors = {"pattern": patterns, "attn_norm": torch.stack(norms, dim=1), "tokens": ids, "word": ids.float()}
    tensors["bad"], tensors["cut"] = -patterns, patterns[..., :5].contiguous()
    tensors["with_sink"] = torch.cat([patterns / 2, torch.full_like(patterns[..., :1], 0.5)], dim=-1)
    tensors["half"] = patterns / 2
    for layer, block in enumerate(model.model.layers):
        tensors[f"pattern_of.{layer}"] = patterns[:, layer].contiguous().bfloat16()
        tensors[f"norm_of.{layer}"] = tensors["attn_norm"][:, layer].contiguous()
        tensors[f"layers.{layer}.q"] = block.self_attn.q_proj.weight.data
        tensors[f"layers.{layer}.k"] = block.self_attn.k_proj.weight.data
    for name in ("q", "k"):
        tensors[f"all_{name}"] = torch.stack([tensors[f"layers.{layer}.{name}"] for layer in range(4)])
    path = tmp_path_factory.mktemp("dump") / "dump.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path, patterns.numpy()


def panels(page):
    """Title, keys and values (nan for white) of every panel of a page, figure by figure."""
    figures = []
    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page):
        figure = json.loads(text)
        titles = [note["text"] for note in figure["layout"]["annotations"]]
        figures.append([
            (title, trace["x"], np.array(trace["z"], dtype=float))
            for title, trace in zip(titles, figure["data"], strict=True)
        ])  # fmt: skip
    return figures


def draw(capsys, folder, *arguments):
    status = main(["attention", *map(str, arguments), "--output-dir", str(folder / "out")])
    out, err = capsys.readouterr()
    assert status == 0, err
    path = folder / out.strip().removeprefix(f"{folder}/")
    return panels(path.read_text(encoding="utf-8")), err


def near(found, expected, atol=6e-5):
    np.testing.assert_allclose(np.nan_to_num(found), expected, atol=atol)


FACTS = (
    "--n-heads", 4, "--n-kv-heads", 2, "--head-groups", "consecutive", "--scale", 0.25, "--causal",
    "--rotary-base", 10000,
)  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        ("--patterns", "pattern", "--n-kv-heads", 2, "--head-groups", "consecutive"),
        ("--attn-norm", "attn_norm", "--q", "all_q", "--k", "all_k", *FACTS),
        ("--attn-norm", "norm_of", "--q", "layers.{layer}.q", "--k", "layers.{layer}.k", *FACTS),
    ],
    ids=["patterns", "stacked", "per layer"],
)
def test_a_dump_gives_the_models_own_patterns(source, dump, tmp_path, capsys):
    path, patterns = dump
    figures, _ = draw(capsys, tmp_path, "--input", path, *source, "--layer", 2, "--sequences", "2,0", "--heads", "3,1")
    assert len(figures) == 2
    for n, figure in zip((2, 0), figures, strict=True):
        titles, values = [title for title, *_ in figure], [one for *_, one in figure]
        assert titles == ["average over 4 heads", "head 3 (KV head 1)", "head 1 (KV head 0)"]
        near(values[0], patterns[n, 2].mean(0))
        near(values[1], patterns[n, 2, 3])
        near(values[2], patterns[n, 2, 1])
        assert np.isnan(values[1][np.triu_indices(12, 1)]).all()


@pytest.mark.parametrize("groups", ["consecutive", "interleaved"])
def test_heads_read_the_kv_heads_that_are_named(groups, tmp_path, capsys, monkeypatch):
    """By a model that repeats its keys one after the other, or all of them in turn, and has learned sinks."""
    if groups == "interleaved":
        monkeypatch.setattr(modeling_gpt_oss, "repeat_kv", lambda kv, group: kv.repeat(1, group, 1, 1))
    rope = {"rope_type": "default", "rope_theta": 500.0}
    model = zoo.build("gpt_oss", rope_parameters=rope, sliding_window=64)
    layer, ids, seen = model.model.layers[2], torch.arange(20, 32)[None], {}
    layer.input_layernorm.register_forward_hook(lambda module, args, output: seen.update(x=output))
    with torch.inference_mode():
        pattern = model.base_model(ids, output_attentions=True).attentions[2][0]
    pattern = torch.cat([pattern, 1 - pattern.sum(-1, keepdim=True)], dim=-1).numpy()
    attention = layer.self_attn
    tensors = {
        "norm.2": seen["x"], "q": attention.q_proj.weight, "k": attention.k_proj.weight,
        "q_bias": attention.q_proj.bias, "k_bias": attention.k_proj.bias, "sinks": attention.sinks,
    }  # fmt: skip
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, tmp_path / "dump.safetensors")
    facts = ["--n-heads", 4, "--n-kv-heads", 2, "--scale", 0.25, "--causal", "--rotary-base", 500, "--no-avg"]
    keys = ["--q", "q", "--k", "k", "--q-bias", "q_bias", "--k-bias", "k_bias", "--sinks", "sinks"]
    arguments = ["--input", tmp_path / "dump.safetensors", "--attn-norm", "norm", "--layer", 2, *keys, *facts]
    (heads,), err = draw(capsys, tmp_path, *arguments, "--head-groups", groups)
    read = (0, 1, 0, 1) if groups == "interleaved" else (0, 0, 1, 1)
    assert [title for title, *_ in heads] == [f"head {head} (KV head {kv})" for head, kv in enumerate(read)]
    assert heads[0][1][-1] == "learned sink" and err == ""
    for (_, _, values), expected in zip(heads, pattern, strict=True):
        near(values, expected)
    other = {"consecutive": "interleaved", "interleaved": "consecutive"}[groups]
    (wrong,), _ = draw(capsys, tmp_path, *arguments, "--head-groups", other)
    assert np.nanmax(np.abs(wrong[1][2] - pattern[1])) > 1e-3


def test_bfloat16_patterns_a_layer_each(dump, tmp_path, capsys):
    path, patterns = dump
    figures, _ = draw(capsys, tmp_path, "--input", path, "--patterns", "pattern_of", "--layer", 1, "--no-avg")
    assert [[title for title, *_ in figure] for figure in figures] == [["head 0", "head 1", "head 2", "head 3"]] * 2
    for head in range(4):
        near(figures[1][head][2], patterns[1, 1, head], atol=4e-3)


def test_a_learned_sink_is_a_column_and_a_cut_keeps_it(dump, tmp_path, capsys):
    path, patterns = dump
    arguments = ("--input", path, "--patterns", "with_sink", "--layer", 0, "--n-sequences", 1, "--positions", 5)
    ((panel,),), err = draw(capsys, tmp_path, *arguments, "--labels", "tokens")
    _, keys, values = panel
    assert keys == ["0 20", "1 21", "2 22", "3 23", "4 24", "learned sink"]
    near(values[:, :5], patterns[0, 0].mean(0)[:5, :5] / 2)
    near(values[:, 5], 0.5)
    assert err == ""
    assert "first 5 of 12 positions" in (tmp_path / "out/layer-0.html").read_text(encoding="utf-8")


def test_rows_that_sum_to_less_are_pointed_out(dump, tmp_path, capsys):
    _, err = draw(capsys, tmp_path, "--input", dump[0], "--patterns", "half", "--layer", 0)
    assert err == "a row of a pattern sums to 0.5: the rest may be the mass of a learned sink\n"


def test_a_model_on_texts_of_ones_own(tmp_path, capsys):
    folder = zoo.save("llama", tmp_path / "llama", vocab_size=300)
    vocabulary = byte_tokenizer(folder)
    texts = ("--text", "ab</script><b>", "--text", "b a")
    figures, _ = draw(capsys, tmp_path, "--model", folder, *texts, "--layer", 3, "--no-avg", "--heads", 2)
    ((title, keys, values),), ((_, other, _),) = figures
    ids = torch.tensor([[0, *[vocabulary[c] for c in "ab</script><b>"], 1]])
    with torch.inference_mode():
        expected = zoo.build("llama", vocab_size=300).base_model(ids, output_attentions=True).attentions[3][0, 2]
    near(values, expected.numpy())
    assert title == "head 2 (KV head 1)"
    assert keys[:4] == ["0 [CLS]", "1 a", "2 b", "3 &lt;"] and keys[-1] == "15 [SEP]"
    assert other == ["0 [CLS]", "1 b", "2  ", "3 a", "4 [SEP]"]
    page = (tmp_path / "out/layer-3.html").read_text(encoding="utf-8")
    assert page.count("</script>") == page.count("<script") and "</script><b>" not in page


def test_what_a_run_kept(tmp_path, capsys):
    run = FakeRun(pieces=("<b>", " cat", "\n", "x")).write(tmp_path / "run")
    (((_, keys, values), *_),), _ = draw(capsys, tmp_path, "--run", run, "--layer", 1)
    assert keys == ["0 &lt;b&gt;", "1  cat", "2 ⏎", "3 x"]
    near(values, (np.eye(4) + np.eye(4)[[0] * 4]) / 2)


def test_a_model_on_the_tokens_of_a_run(tmp_path, capsys):
    folder, run = zoo.save("llama", tmp_path / "llama"), FakeRun().write(tmp_path / "run")
    arguments = ("--model", folder, "--run", run, "--layer", 0, "--sequences", 1)
    (((_, keys, values),),), _ = draw(capsys, tmp_path, *arguments)
    with torch.inference_mode():
        expected = zoo.build("llama").base_model(torch.arange(6)[None], output_attentions=True).attentions[0][0].mean(0)
    near(values, expected.numpy())
    assert keys[0] == "0 The"


def test_labels_from_files(dump, tmp_path, capsys):
    arguments = ("--input", dump[0], "--patterns", "pattern", "--layer", 0, "--labels")
    names = [f"<{i}>" for i in range(12)]
    (tmp_path / "one.json").write_text(json.dumps(names))
    (tmp_path / "each.json").write_text(json.dumps([names, names[::-1]]))
    (tmp_path / "lines.txt").write_text("\n".join(names))
    for name in ("one.json", "each.json", "lines.txt"):
        figures, _ = draw(capsys, tmp_path, *arguments, tmp_path / name)
        second = names[::-1] if name == "each.json" else names
        assert figures[0][0][1][3] == "3 &lt;3&gt;"
        assert figures[1][0][1][3] == f"3 {second[3]}".replace("<", "&lt;").replace(">", "&gt;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "0"], "expected one source: --model, --run or --input"),
        (["--layer", "0", "--model", "a", "--input", "b"], "expected one source"),
        (["--layer", "0", "--model", "a"], "argument --model: expected --text or --run, and not both"),
        (["--layer", "0", "--run", "a", "--text", "b"], "argument --text: expected with --model"),
        (["--layer", "0", "--input", "a"], "argument --input: expected --patterns or --attn-norm"),
        (["--layer", "0", "--run", "a", "--labels", "b"], "argument --labels: expected with --input"),
        (["--layer", "0", "--input", "a", "--patterns", "b", "--scale", "1"], "--scale: expected with --attn-norm"),
        (["--layer", "0", "--run", "a", "--bidirectional"], "--bidirectional: expected with --attn-norm"),
        (["--layer", "0", "--input", "a", "--attn-norm", "b", "--q", "q", "--n-heads", "4"],
         "required with --attn-norm: --k, --n-kv-heads, --scale, --causal or --bidirectional, "
         "--rotary-base or --no-rotary"),
        (["--layer", "0", "--input", "a", "--attn-norm", "b", "--q", "q", "--k", "k", "--q-norm", "n",
          *map(str, FACTS)], "required with --attn-norm: --norm-eps"),
        (["--layer", "0", "--input", "a", "--attn-norm", "b", "--q", "q", "--k", "k", "--n-heads", "4",
          "--n-kv-heads", "2", "--scale", "1", "--causal", "--no-rotary"], "required with --attn-norm: --head-groups"),
        (["--layer", "0", "--input", "a", "--patterns", "b", "--sinks", "c"], "--sinks: expected with --attn-norm"),
        (["--layer", "-1", "--run", "a"], "argument --layer: -1 found, expected an index from 0"),
        (["--layer", "0", "--run", "a", "--heads", "x"], "argument --heads: invalid indices value: 'x'"),
    ],
)  # fmt: skip
def test_a_usage_mistake_ends_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["attention", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patterns", "gone"], "has neither gone nor gone.0, expected gone (N, L, heads, T, T) or gone.0 (N, "),
        (["--patterns", "bad"], "expected probabilities whose rows, over the last axis, sum to 1"),
        (["--patterns", "cut"], "found shape [4, 12, 5], expected (heads, T, T) or (heads, T, T + 1)"),
        (["--patterns", "attn_norm"], "attn_norm is F32 [3, 4, 12, 64], expected floats"),
        (["--patterns", "tokens"], "tokens is I64 [3, 12], expected floats"),
        (["--patterns", "pattern", "--layer", "4"], "pattern has 4 layers, expected layer 4 among them"),
        (["--patterns", "pattern", "--sequences", "3"], "found 0 to 2, expected sequence 3"),
        (["--patterns", "pattern", "--heads", "4"], "heads: found 4, but layer 0 has 4, expected 0 to 3"),
        (["--patterns", "pattern", "--n-kv-heads", "3"], "found 4 heads and 3 KV heads, expected a multiple of them"),
        (["--patterns", "pattern", "--n-kv-heads", "2"], "found 4 heads and 2 KV heads, expected --head-groups"),
        (["--patterns", "pattern", "--labels", "word"], "word has shape [3, 12], expected integers (N, T) or (T,)"),
        (["--patterns", "pattern", "--labels", "none"], "labels: none is neither a tensor in"),
        (["--attn-norm", "attn_norm", "--q", "layers.0.q", "--k", "layers.0.q", *map(str, FACTS)],
         "found Q weights of shape [64, 64] and K weights of shape [64, 64], expected [out, in] with 4 and 2 heads"),
        (["--attn-norm", "attn_norm", "--q", "tokens", "--k", "all_k", *map(str, FACTS)],
         "tokens is I64 [3, 12], expected floats of shape [out, in] or [layers, out, in] for layer 0"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_dump_is_one_line(arguments, message, dump, tmp_path, capsys):
    layer = [] if "--layer" in arguments else ["--layer", "0"]
    status = main(["attention", "--input", str(dump[0]), *arguments, *layer, "--output-dir", str(tmp_path)])
    out, err = capsys.readouterr()
    assert status == 1 and out == "" and list(tmp_path.iterdir()) == []
    assert re.fullmatch(r"error: [^\n]*\n", err) and message in err


def test_a_wrong_number_of_labels_is_refused(dump, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("a\nb\n")
    arguments = [
        "--input",
        str(dump[0]),
        "--patterns",
        "pattern",
        "--layer",
        "0",
        "--labels",
        str(tmp_path / "few.txt"),
    ]
    assert main(["attention", *arguments, "--output-dir", str(tmp_path)]) == 1
    assert "found 2 labels for sequence 0, expected 12" in capsys.readouterr().err


def test_a_layer_that_the_run_did_not_keep(tmp_path, capsys):
    run = FakeRun().write(tmp_path / "run")
    assert main(["attention", "--run", str(run), "--layer", "3"]) == 1
    assert "kept patterns of layer 1, 2, not of 3; give --model to run it" in capsys.readouterr().err
    file = TensorFile(run / "attention.safetensors")
    assert set(file.entries) == {"pattern.1", "pattern.2"}
    write_tensors(run / "attention.safetensors", {}, {})
    assert main(["attention", "--run", str(run), "--layer", "1"]) == 1
    assert "expected the attention patterns of a run" in capsys.readouterr().err


def test_an_image_without_kaleido_is_one_line(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    arguments = ["attention", "--run", run, "--layer", "1", "--format", "png", "--output-dir", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: --format asks for png, which needs the package kaleido: [^\n]*\n", done.stderr)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_images(kind, tmp_path, capsys):
    pytest.importorskip("kaleido")
    run = FakeRun().write(tmp_path / "run")
    status = main(["attention", "--run", str(run), "--layer", "1", "--format", kind, "--output-dir", str(tmp_path)])
    out, err = capsys.readouterr()
    if "Chrome" in err:
        pytest.skip("needs a Chrome")
    assert status == 0 and out == f"{tmp_path}/layer-1-sequence-0.{kind}\n"
    start = (tmp_path / f"layer-1-sequence-0.{kind}").read_bytes()[:200]
    assert (b"\x89PNG" if kind == "png" else b"<svg") in start
