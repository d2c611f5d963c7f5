"""The norms that are found are those of the architecture, and their gains what plain torch multiplies by."""

import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from fake_run import FakeRun
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.missing import MissingInput
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites
from outlier_features.norms.check_norms import check_norms
from outlier_features.norms.describe_gains import describe_gains
from outlier_features.norms.kept_norms import norm_tensors, norms_or_why, read_norms
from outlier_features.norms.norms import checkpoint_of, find_norms, norms_of
from test_extract_activations import Run

ONE_PLUS = {"gemma2", "gemma3_text", "qwen3_next"}
BOTH = {"attn_norm", "mlp_norm"}
# What makes which site, by the architecture's own code; all other norms make none.
SITES = {
    "gpt2": {"ln_1": {"attn_norm"}, "ln_2": {"mlp_norm"}},
    "llama": {"input_layernorm": {"attn_norm"}, "post_attention_layernorm": {"mlp_norm"}},
    "qwen3": {"input_layernorm": {"attn_norm"}, "post_attention_layernorm": {"mlp_norm"}},
    "gemma2": {
        "input_layernorm": {"attn_norm"}, "post_attention_layernorm": {"attn_out"},
        "pre_feedforward_layernorm": {"mlp_norm"}, "post_feedforward_layernorm": {"mlp_out"},
    },
    "olmo2": {"post_attention_layernorm": {"attn_out"}, "post_feedforward_layernorm": {"mlp_out"}},
    "gptj": {"ln_1": BOTH},
    "bert": {"attention.output.LayerNorm": {"resid_mid", "mlp_norm"}, "output.LayerNorm": {"resid_post"}},
}  # fmt: skip


def found(loaded):
    return {norm.module: norm for norm in find_norms(loaded, find_sites(loaded), [])}


def normalised(x, kind):
    return nn.functional.layer_norm(x, x.shape[-1:]) if kind == "layer" else nn.functional.rms_norm(x, x.shape[-1:])


@pytest.mark.parametrize("name", list(zoo.CONFIGS))
def test_every_norm_of_every_architecture(name):
    loaded = zoo.loaded(name)
    modules = dict(loaded.model.named_modules())
    norms = found(loaded)
    assert set(norms) == {path for path, module in modules.items() if re.search("Norm", type(module).__name__)}
    for path, norm in norms.items():
        module = modules[path]
        if "Gated" in type(module).__name__:
            assert norm.parameterization is None and norm.gain is None and "ignores the scale" in norm.reason
            continue
        assert norm.kind == ("layer" if "LayerNorm" in type(module).__name__ else "rms")
        if not list(module.parameters()):  # Llama 4 normalises queries and keys without a gain
            assert norm.parameterization == "none" and norm.gain is None
            continue
        one_plus = name in ONE_PLUS
        assert norm.parameterization == ("1 + w" if one_plus else "w") and norm.reason is None
        np.testing.assert_array_equal(norm.gain.effective, module.weight.detach().double().numpy() + one_plus)
        bias = getattr(module, "bias", None)
        assert norm.bias_max_abs == (None if bias is None else float(bias.detach().abs().max()))
        x = 3 + 50 * torch.randn(5, *module.weight.shape)
        with torch.no_grad():
            gained = normalised(x, norm.kind) * torch.from_numpy(norm.gain.effective).float()
            torch.testing.assert_close(module(x), gained if bias is None else gained + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(SITES))
def test_sites_and_basis(name):
    loaded = zoo.loaded(name)
    for path, norm in found(loaded).items():
        block = re.match(r".*(?:h|layers?)\.(\d+)\.(.*)", path)
        expected = SITES[name].get(block[2], set()) if block else set()
        assert set(norm.sites) == expected, path
        assert norm.layer == (int(block[1]) if block else None)
        # OLMo-2's norm of all queries is as wide as the stream, but on another basis.
        assert norm.residual == (not re.search("[qk]_norm", path)), path


def test_a_mixed_model_is_told_apart_norm_by_norm():
    """Nothing but the computation says whether 1 is added: here the same class does either."""
    loaded = zoo.loaded("gemma2")
    plain = nn.RMSNorm(zoo.D_MODEL, eps=1e-6)
    loaded.model.model.layers[1].input_layernorm = plain
    with torch.no_grad():
        plain.weight[:] = loaded.model.model.layers[0].input_layernorm.weight
    norms = found(loaded)
    one_plus, bare = (norms[f"model.layers.{i}.input_layernorm"] for i in (0, 1))
    assert (one_plus.parameterization, bare.parameterization) == ("1 + w", "w")
    np.testing.assert_allclose(one_plus.gain.effective - bare.gain.effective, 1)


class Scale(nn.Module):
    """Multiplies by a vector, but normalises nothing."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, width))

    def forward(self, x):
        return x * self.weight


def test_a_scale_is_no_norm():
    loaded = zoo.loaded("llama")
    before = set(found(loaded))
    loaded.model.model.norm = nn.Sequential(loaded.model.model.norm, Scale(zoo.D_MODEL))
    assert set(found(loaded)) == before - {"model.norm"} | {"model.norm.0"}


def test_bias_and_gain_are_not_told_by_their_names():
    loaded = zoo.loaded("gpt2")

    class Swapped(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x, self.normalized_shape, self.bias, self.weight, self.eps)

    norm = Swapped(zoo.D_MODEL)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    loaded.model.transformer.ln_f = norm
    last = found(loaded)["transformer.ln_f"]
    np.testing.assert_array_equal(last.gain.stored, norm.bias.detach().numpy())
    assert last.bias_max_abs == float(norm.weight.detach().abs().max())


def test_gains_of_zero_leave_the_kind_open():
    loaded = zoo.loaded("gpt2")
    nn.init.zeros_(loaded.model.transformer.ln_f.weight)
    norm = found(loaded)["transformer.ln_f"]
    assert norm.kind is None and norm.parameterization is None and "all 0" in norm.reason


def test_norms_without_gains(monkeypatch):
    monkeypatch.setitem(zoo.CONFIGS, "olmo", zoo.CONFIGS["llama"])
    norms = found(zoo.loaded("olmo"))
    assert len(norms) == 2 * zoo.BLOCKS + 1
    assert {(n.kind, n.parameterization, n.size, n.gain) for n in norms.values()} == {("layer", "none", 64, None)}
    assert norms["model.layers.2.input_layernorm"].sites == ("attn_norm",)


@pytest.mark.parametrize(("name", "offset"), [("gemma3_text", 1), ("llama", 0)])
def test_exactly_one_is_told_by_what_is_stored(name, offset):
    loaded = zoo.loaded(name)
    weight = loaded.model.model.norm.weight
    nn.init.constant_(weight, 1 - offset)
    row = describe_gains({"n": found(loaded)["model.norm"].gain})["n"]
    assert row["all_one"] and row["exactly_one"] == row["size"] == 64 and row["min"] == row["max"] == 1
    with torch.no_grad():
        weight[3] += 1e-20 if offset else 2**-23  # 1 + 1e-20 is 1 in any float
    row = describe_gains({"n": found(loaded)["model.norm"].gain})["n"]
    assert row["exactly_one"] == 63 and not row["all_one"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "bert"])
def test_gains_are_those_of_the_checkpoint(tmp_path, name, dtype):
    zoo.build(name, dtype).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    norms = norms_of(tmp_path, trust_remote_code=False)
    assert len(norms) >= 2 * zoo.BLOCKS
    for norm in norms:
        assert norm.gain.dtype == dtype
        np.testing.assert_array_equal(norm.gain.stored, stored[norm.tensor].float().numpy())
        assert norm.tensor.removesuffix(".weight") in norm.module


def test_a_mixed_checkpoint_is_not_rounded(tmp_path):
    model = zoo.build("llama", "bfloat16")
    model.model.norm.float()
    with torch.no_grad():
        model.model.norm.weight[:] = 1 + 2**-20  # 1 in bfloat16
    model.save_pretrained(tmp_path)
    *_, last = norms_of(tmp_path, trust_remote_code=False)
    assert last.gain.dtype == "float32" and last.gain.exactly_one == 0 and set(last.gain.effective) == {1 + 2**-20}


def rule(tmp_path, name="llama", find=norms_of, **said):
    """Run the rule on the norms of a tiny model and a run that selected dims; returns both tables."""
    folder = FakeRun(**{key: said.pop(key) for key in ("outliers", "massive") if key in said}).write(tmp_path / "run")
    zoo.save(name, tmp_path / "model")
    provenance = read_table(folder / "dims.parquet", DIMS)[1]
    kept = norms_or_why(lambda: find(tmp_path / "model", trust_remote_code=False), tmp_path / "a.log")
    tensors, facts = norm_tensors(kept)
    write_tensors(tmp_path / "losses.safetensors", tensors, provenance | facts | said)
    made = {key: tmp_path / f"{key}.parquet" for key in ("norms", "gains")}
    check_norms(tmp_path / "losses.safetensors", folder / "dims.parquet", **made)
    return pl.read_parquet(made["norms"]), pl.read_parquet(made["gains"])


@pytest.mark.parametrize(("name", "one_plus"), [("llama", 0), ("gemma3_text", 1), ("bert", 0), ("olmo2", 0)])
def test_the_tables(tmp_path, name, one_plus):
    norms, gains = rule(tmp_path, name)
    stored = load_file(tmp_path / "model/model.safetensors")
    residual = norms.filter("residual")
    selected = {("all", "dettmers", 5), ("without_first", "dettmers", 5), ("all", "massive", 5), ("all", "massive", 7)}
    assert set(gains.select("population", "rule", "dim").rows()) == selected
    assert len(gains) == 4 * len(residual) and len(residual) == 9 + 8 * (name == "gemma3_text")
    for norm in norms.to_dicts():
        values = stored[norm["tensor"]].double().numpy() + one_plus
        assert norm["median"] == pytest.approx(np.median(values), rel=1e-12)
        assert (norm["min"], norm["max"]) == (values.min(), values.max())
        assert norm["shape"] == str(len(values)) and norm["exactly_one"] == 0 and norm["all_one"] is False
        if not norm["residual"]:
            assert norm["others_median"] is None
            continue
        others = sorted(abs(value) for dim, value in enumerate(values) if dim not in (5, 7))
        assert norm["others_median"] == pytest.approx((others[30] + others[31]) / 2)
        assert (norm["others_min"], norm["others_max"]) == (others[0], others[-1])
        for row in gains.filter(module=norm["module"]).to_dicts():
            size = abs(values[row["dim"]])
            assert row["gain"] == values[row["dim"]] and row["size"] == 64
            assert row["rank"] == sorted(abs(values), reverse=True).index(size) + 1
            assert row["ratio"] == pytest.approx(size / norm["others_median"])
            assert (row["site"], row["layer"]) == (norm["site"], norm["layer"])


def test_a_run_that_selects_nothing(tmp_path):
    norms, gains = rule(tmp_path, outliers=(), massive=())
    assert gains.is_empty() and len(norms) == 9
    weights = load_file(tmp_path / "model/model.safetensors")
    assert norms["others_max"].to_list() == [weights[name].abs().max().item() for name in norms["tensor"]]


def test_another_model_than_the_runs(tmp_path):
    with pytest.raises(InputError, match=r"its model_revision is 'abc', expected '00000000' as in .*dims.parquet"):
        rule(tmp_path, model_revision="abc")


def test_why_there_are_no_norms_travels(tmp_path, capsys):
    def unlike(location, trust_remote_code):
        raise InputError("a norm: is like no other")

    def broken(location, trust_remote_code):
        return [][1]

    with pytest.raises(MissingInput) as refused:
        rule(tmp_path / "unlike", find=unlike)
    assert (refused.value.missing.cause, refused.value.missing.reason) == ("model", "a norm: is like no other")
    with pytest.raises(MissingInput) as failed:
        rule(tmp_path / "broken", find=broken)
    assert failed.value.missing.cause == "fault" and "IndexError" in capsys.readouterr().err


def same(one, other):
    """Whether two lists of norms are equal, gains bit for bit."""
    assert [replace(norm, gain=None) for norm in one] == [replace(norm, gain=None) for norm in other]
    for left, right in zip(one, other, strict=True):
        assert (left.gain is None) == (right.gain is None)
        if left.gain is not None:
            assert (left.gain.offset, left.gain.dtype) == (right.gain.offset, right.gain.dtype)
            np.testing.assert_array_equal(left.gain.stored, right.gain.stored)


@pytest.mark.parametrize(
    ("stored", "loaded_as"), [("float32", "bfloat16"), ("bfloat16", "float16"), ("float16", "float32")]
)
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "bert", "llama4_text"])
def test_the_dtype_of_the_run_rounds_no_gain(tmp_path, name, stored, loaded_as):
    zoo.save(name, tmp_path, dtype=stored)
    loaded = load_model(tmp_path, dtype=loaded_as, device="cpu", attention="auto", trust_remote_code=False)
    same(find_norms(loaded, find_sites(loaded), checkpoint_of(tmp_path)), norms_of(tmp_path, trust_remote_code=False))


def test_a_rounded_gain_that_the_checkpoint_does_not_name(tmp_path):
    zoo.save("llama", tmp_path)
    loaded = load_model(tmp_path, dtype="bfloat16", device="cpu", attention="auto", trust_remote_code=False)
    tensors = load_file(tmp_path / "model.safetensors")
    last = tensors.pop("model.norm.weight").clone()
    save_file({**tensors, "something": last}, tmp_path / "model.safetensors")
    *_, found_last = find_norms(loaded, find_sites(loaded), checkpoint_of(tmp_path))
    np.testing.assert_array_equal(found_last.gain.stored, last.numpy())
    assert found_last.tensor is None
    for others in ({"one": last, "other": last.bfloat16().float()}, {}):
        save_file({**tensors, **others}, tmp_path / "model.safetensors")
        refusal = rf"model\.norm\.weight: was rounded to bfloat16 .* {len(others)} tensors"
        with pytest.raises(InputError, match=refusal):
            find_norms(loaded, find_sites(loaded), checkpoint_of(tmp_path))


@pytest.mark.parametrize("name", zoo.of_every_kind(zoo.CONFIGS))
def test_the_extraction_leaves_the_norms(tmp_path, name):
    """Those of every architecture, as the model that is loaded for its norms alone has them."""
    run = Run(tmp_path, name)
    _, losses = run.extract()
    same(read_norms(losses), norms_of(tmp_path / "model", trust_remote_code=False))
    _, later = run.extract(1, 3)
    assert not any(key.startswith("norm.") for key in later.entries)


def test_a_gain_that_is_not_finite(tmp_path):
    model = zoo.build("llama")
    model.model.norm.weight.data[2] = float("inf")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"model\.norm: its weight has 1 values that are NaN or infinite"):
        norms_of(tmp_path / "model", trust_remote_code=False)
