"""A checkpoint in TransformerLens' own format, fetched and converted, against its forward pass in numpy."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hub_server import running_hub
from outlier_features.files.model_source import source_of
from outlier_features.model.models import load_model
from rule_process import run_rule, run_rules

CONFIG = {
    "d_model": 12, "n_layers": 2, "n_heads": 3, "d_head": 4, "d_mlp": 20, "n_ctx": 40, "d_vocab": 200,
    "act_fn": "gelu", "attn_only": False, "normalization": "LN", "shortformer_pos": False,
    "tokenizer_name": "org/tokenizer",
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
    "decoder": None, "truncation": None, "padding": None,
    "model": {"type": "WordLevel", "vocab": {"<bos>": 0, "a": 1}, "unk_token": "<bos>"},
}  # fmt: skip
FILES = {
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
    "tokenizer_config.json": b'{"bos_token": "<bos>", "tokenizer_class": "PreTrainedTokenizerFast"}',
}

erf = np.vectorize(math.erf)


def checkpoint(unembedding_bias: bool = False) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    d, heads, d_head, d_mlp, vocabulary = 12, 3, 4, 20, 200

    def some(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(shape) * 0.5, dtype=torch.float32)

    state = {"embed.W_E": some(vocabulary, d), "pos_embed.W_pos": some(40, d), "unembed.W_U": some(d, vocabulary)}
    state["unembed.b_U"] = some(vocabulary) if unembedding_bias else torch.full((vocabulary,), 0.25)
    for norm in ("ln_final", *(f"blocks.{i}.ln{n}" for i in (0, 1) for n in (1, 2))):
        state |= {f"{norm}.w": 1 + some(d), f"{norm}.b": some(d)}
    for i in (0, 1):
        block = f"blocks.{i}."
        state |= {f"{block}attn.W_{x}": some(heads, d, d_head) for x in "QKV"}
        state |= {f"{block}attn.b_{x}": some(heads, d_head) for x in "QKV"}
        state |= {f"{block}attn.W_O": some(heads, d_head, d), f"{block}attn.b_O": some(d)}
        state |= {f"{block}mlp.W_in": some(d, d_mlp), f"{block}mlp.b_in": some(d_mlp)}
        state |= {f"{block}mlp.W_out": some(d_mlp, d), f"{block}mlp.b_out": some(d)}
        state |= {f"{block}attn.mask": torch.ones(40, 40).tril().bool(), f"{block}attn.IGNORE": torch.tensor(-1e5)}
    return state


def forward(state: dict[str, torch.Tensor], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neurons of block 0, the stream behind the last block, and logits, of one sequence, in float64."""
    w = {name: value.double().numpy() for name, value in state.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.w"] + w[f"{name}.b"]

    x = w["embed.W_E"][ids] + w["pos_embed.W_pos"][: len(ids)]
    neurons = []
    for i in (0, 1):
        a, m = f"blocks.{i}.attn.", f"blocks.{i}.mlp."
        h = norm(x, f"blocks.{i}.ln1")
        for head in range(3):
            q, k, v = (h @ w[f"{a}W_{n}"][head] + w[f"{a}b_{n}"][head] for n in "QKV")
            scores = q @ k.T / 2.0  # the root of d_head
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + (pattern / pattern.sum(-1, keepdims=True)) @ v @ w[f"{a}W_O"][head]
        x = x + w[f"{a}b_O"]
        pre = norm(x, f"blocks.{i}.ln2") @ w[f"{m}W_in"] + w[f"{m}b_in"]
        neurons.append(pre * 0.5 * (1 + erf(pre / np.sqrt(2))))
        x = x + neurons[-1] @ w[f"{m}W_out"] + w[f"{m}b_out"]
    return neurons[0], x, norm(x, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]


def saved(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize("unembedding_bias", [False, True])
def test_it_computes_the_same(tmp_path: Path, unembedding_bias: bool) -> None:
    state = checkpoint(unembedding_bias)
    with running_hub() as hub:
        files = {"config.json": json.dumps(CONFIG).encode(), "x_final.pth": saved(state), "checkpoints/x_1.pth": b""}
        repository = hub.model("NeelNanda/GELU_1L512W_C4_Code", files)
        hub.model("org/tokenizer", FILES)
        directory = tmp_path / "model"
        assert run_rule("fetch_model", {"transformer_lens": "gelu-1l"}, directory, hub.url, tmp_path / "home") == ""
    source = source_of(directory / "source.json")
    assert source["origin"] == repository.name and source["revision"] == repository.revisions["main"]
    assert "x_final.pth" in source["converted"] and "tokenizer.json" in source["files"]
    loaded = load_model(
        Path(source["location"]), dtype="float32", device="cpu", attention="auto", trust_remote_code=False
    )
    ids = np.random.default_rng(1).integers(0, 200, 40)
    neurons, stream, logits = forward(state, ids)
    caught = {}
    blocks = loaded.model.base_model.h
    blocks[0].mlp.act.register_forward_hook(lambda module, args, output: caught.update(neurons=output))
    blocks[1].register_forward_hook(
        lambda module, args, output: caught.update(stream=output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        output = loaded.model(torch.tensor(ids)[None])
    np.testing.assert_allclose(caught["neurons"].reshape(40, -1).numpy(), neurons, atol=2e-5)
    np.testing.assert_allclose(caught["stream"].reshape(40, -1).numpy(), stream, atol=2e-5)
    if unembedding_bias:
        assert loaded.no_loss  # rather than a wrong one
    else:
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found = output.logits[0].double().log_softmax(-1).numpy()
        np.testing.assert_allclose(found, expected, atol=5e-5)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    state = checkpoint()
    lacking = {name: value for name, value in state.items() if name != "blocks.1.mlp.W_in"}
    wrong = {
        "attn": (CONFIG | {"attn_only": True}, state, "attn_only in config.json is True"),
        "solu": (CONFIG | {"act_fn": "solu_ln"}, state, "act_fn in config.json is 'solu_ln'"),
        "wide": (CONFIG | {"d_head": 8}, state, "n_heads * d_head in config.json is 24, expected 12"),
        "shape": (CONFIG | {"d_mlp": 24}, state, "is of shape [12, 20], expected [12, 24]"),
        "lacks": (CONFIG, lacking, "lacks blocks.1.mlp.W_in"),
        "more": (CONFIG, state | {"blocks.2.ln1.w": torch.ones(12)}, "has a weight 'blocks.2.ln1.w'"),
        "none": (CONFIG | {"tokenizer_name": None}, state, "names no tokenizer"),
    }
    with running_hub() as hub:
        hub.model("org/tokenizer", FILES)
        for name, (config, content, _) in wrong.items():
            hub.model(f"org/{name}", {"config.json": json.dumps(config).encode(), "final.pth": saved(content)})
        hub.model("org/empty", {"README.md": b""})
        sources = {tmp_path / name: {"transformer_lens": f"org/{name}"} for name in (*wrong, "empty")}
        outcomes = run_rules("fetch_model", sources, hub.url, tmp_path / "home")
    expected = [*(text for _, _, text in wrong.values()), "expected config.json and one *final.pth"]
    for outcome, text in zip(outcomes, expected, strict=True):
        assert outcome.error.startswith("error: transformer_lens: ") and text in outcome.error, outcome.error
