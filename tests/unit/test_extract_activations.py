"""What the files hold: the values that hooks see, the same bits however the work is cut, and where they come from."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

import zoo
from outlier_features import __version__
from outlier_features.errors import InputError
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.extract.losses import LossRecorder
from outlier_features.extract.proven_sites import not_finite
from outlier_features.extract.request import Sequences
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.model.bases import SITES
from outlier_features.model.loading import Loading
from outlier_features.tokens.tokens import tokens_digest
from quantizers import mxfp4_experts, quantize

N, T = 5, 24
SETTINGS = {
    "sites": ["resid_post", "attn_norm", "mlp_norm"], "dtype": "float32", "device": "cpu", "attention": "eager",
    "batch_size": 2, "threads": 1, "trust_remote_code": False, "part": None, "placement": "one",
}  # fmt: skip


class Run:
    """A saved tiny model and tokens for it; lengths of the documents (N,), None for full windows."""

    def __init__(self, directory, name, shape=(N, T), lengths=None, **changes):
        self.directory = directory
        self.name = name
        location = zoo.save(name, directory / "model", **changes)
        self.source = directory / "source.json"
        record = {
            "kind": "path", "location": str(location), "origin": "org/tiny", "revision": "abc", "licence": None,
            "files": {}, "trust_remote_code": False,
        }  # fmt: skip
        self.source.write_text(json.dumps(record))
        ids = np.random.default_rng(0).integers(3, zoo.VOCABULARY, shape).astype(np.int32)
        self.mask = np.arange(shape[1]) < np.reshape(lengths or [shape[1]] * shape[0], (-1, 1))
        self.ids = np.where(self.mask, ids, 0).astype(np.int32)
        self.write_tokens()

    @property
    def tokens(self):
        return self.directory / "tokens.safetensors"

    def write_tokens(self):
        special = np.zeros_like(self.mask)
        arrays = {
            "tokens": self.ids, "special": special, "mask": self.mask,
            "offsets": np.zeros((*self.ids.shape, 2), np.int32),
        }  # fmt: skip
        digest = tokens_digest(self.ids, special, self.mask)
        provenance = {"model": "tiny", "corpus": "words", "corpus_sha256": "0" * 64, "tokens_sha256": digest}
        write_tensors(self.tokens, arrays, provenance)

    def extract(self, start=0, stop=None, **settings):
        names = ("activations", "losses", "neurons", "channels")
        activations, losses, neurons, channels = (self.directory / f"{kind}.safetensors" for kind in names)
        stop = len(self.ids) if stop is None else stop
        extract_activations(
            self.source,
            self.tokens,
            activations,
            losses,
            neurons,
            channels,
            start=start,
            stop=stop,
            **SETTINGS | settings,
        )
        return TensorFile(activations), TensorFile(losses)

    def model(self, dtype="float32"):
        auto_class = AutoModel if self.name in zoo.ENCODERS else AutoModelForCausalLM
        return auto_class.from_pretrained(self.directory / "model", dtype=dtype, attn_implementation="eager")


def arrays(file):
    """What there is for each sequence, so no gains."""
    return [(name, file.array(name)) for name in file.entries if not name.startswith(("gain.", "norm."))]


def bits(*files):
    return {name: values.tobytes() for file in files for name, values in arrays(file)}


def resid_post(model, layers, ids, mask=None):
    """The outputs of the blocks (L, T, H) for one sequence, from hooks set by hand."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    with torch.no_grad():
        model(torch.from_numpy(ids[None].astype(np.int64)), **({} if mask is None else {"attention_mask": mask}))
    for handle in handles:
        handle.remove()
    return torch.stack([value.clone().reshape(len(ids), -1) for value in seen])


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_the_file_holds_what_hooks_see(name, tmp_path):
    run = Run(tmp_path, name)
    activations, losses = run.extract()
    model = run.model()
    for n, ids in enumerate(run.ids):
        for block, expected in enumerate(resid_post(model, model.model.layers, ids)):
            assert np.array_equal(activations.array(f"resid_post.{block}")[n], expected.numpy())
        row = torch.from_numpy(ids.astype(np.int64))
        nll = torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none")
        np.testing.assert_allclose(losses.array("nll")[n, 1:], nll.detach().numpy(), rtol=1e-5)
    assert activations.entry("attn_norm.3").shape == (N, T, zoo.D_MODEL)
    extracted = {f"{site}.{block}" for site in SETTINGS["sites"] for block in range(4)}
    assert set(activations.entries) == extracted | {"gain.attn_norm", "gain.mlp_norm"}


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_16_bit_values_are_stored_as_they_are(dtype, stored, tmp_path):
    run = Run(tmp_path, "llama")
    activations, _ = run.extract(dtype=dtype)
    model = run.model(dtype)
    expected = torch.stack([resid_post(model, model.model.layers, ids) for ids in run.ids])[:, 2]
    assert activations.entry("resid_post.2").dtype == stored
    assert activations.array("resid_post.2").tobytes() == expected.contiguous().view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("lengths", [None, [24, 3, 24, 10, 1]], ids=["windows", "documents"])
@pytest.mark.parametrize("name", zoo.of_every_kind(["llama", "olmoe", "opt", "bert"], {"olmoe", "bert"}))
def test_the_same_bits_for_any_batch_and_chunk(name, lengths, tmp_path):
    run = Run(tmp_path, name, lengths=lengths)
    sites = list(SITES)
    whole = bits(*run.extract(sites=sites, batch_size=1))
    assert bits(*run.extract(sites=sites, batch_size=4)) == whole
    parts = [bits(*run.extract(*span, sites=sites, batch_size=3)) for span in ((0, 1), (1, 4), (4, 5))]
    assert {name: b"".join(part[name] for part in parts) for name in whole} == whole


@pytest.mark.parametrize("name", ["llama", "olmoe", "opt", "bert"])
def test_several_sequences_at_once_as_on_a_gpu(name, tmp_path, monkeypatch):
    run = Run(tmp_path, name, lengths=[24, 24, 3, 10, 24])
    alone = {name: values.copy() for file in run.extract(sites=list(SITES)) for name, values in arrays(file)}
    monkeypatch.setattr("outlier_features.extract.passes._sequences_at_once", lambda loaded, size: size)
    together = run.extract(sites=list(SITES), batch_size=4)
    for name, values in [pair for file in together for pair in arrays(file)]:
        np.testing.assert_allclose(values[run.mask], alone[name][run.mask], rtol=1e-4, atol=1e-5, err_msg=name)


def test_full_and_padded_sequences_can_be_kept_apart():
    mask = np.ones((7, 3), bool)
    mask[[2, 3, 6], 2] = False
    chunk = Sequences(np.zeros((7, 3), np.int32), mask)
    assert chunk.batches(4, apart=True) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert chunk.batches(4, apart=False) == [slice(0, 4), slice(4, 7)]


def test_the_same_bits_for_few_tokens(tmp_path):
    run = Run(tmp_path, "gpt2", shape=(5, 3))
    assert bits(*run.extract(batch_size=1)) == bits(*run.extract(batch_size=5))


def test_padding_changes_nothing_in_a_causal_model(tmp_path):
    run = Run(tmp_path, "llama", lengths=[24, 3, 24, 10, 1])
    activations, losses = run.extract()
    values, nll = activations.array("resid_post.3").copy(), losses.array("nll").copy()
    assert not nll[~run.mask].any()
    run.ids[~run.mask] = 77
    run.write_tokens()
    activations, losses = run.extract()
    assert np.array_equal(activations.array("resid_post.3")[run.mask], values[run.mask])
    assert np.array_equal(losses.array("nll"), nll)


def test_an_encoder_does_not_see_padding(tmp_path):
    lengths = [24, 3, 24, 10, 1]
    run = Run(tmp_path, "bert", lengths=lengths)
    activations, _ = run.extract()
    model = run.model()
    for n, length in enumerate(lengths):
        expected = resid_post(model, model.encoder.layer, run.ids[n, :length])
        np.testing.assert_allclose(activations.array("resid_post.3")[n, :length], expected[3], rtol=1e-4, atol=1e-5)


def test_an_encoder_has_no_losses(tmp_path):
    _, losses = Run(tmp_path, "bert").extract()
    assert "nll" not in losses.entries
    assert losses.provenance["causal"] is False


@pytest.mark.parametrize("placement", ["one", "layerwise"])
def test_losses_that_nobody_wants_are_not_computed(tmp_path, monkeypatch, placement):
    run = Run(tmp_path, "llama")
    activations, losses = run.extract()
    assert losses.provenance["losses_recorded"] and "nll" in losses.entries
    expected = bits(activations)
    monkeypatch.setattr(LossRecorder, "token_losses", None)  # a call fails
    activations, losses = run.extract(scoring=False, placement=placement)
    assert bits(activations) == expected
    assert "nll" not in losses.entries and losses.provenance["losses_recorded"] is False
    # That the model has losses is known all the same: ablations measure them.
    assert losses.provenance["no_loss"] is None and losses.provenance["causal_head"]


def test_absent_sites_are_named_and_not_written(tmp_path, capsys):
    run = Run(tmp_path, "gpt_neox")
    activations, _ = run.extract(sites=["resid_mid", "resid_post"])
    assert {name.partition(".")[0] for name in activations.entries} == {"resid_post"}
    assert activations.provenance["sites"] == ["resid_post"]
    assert activations.provenance["absent"] == {"resid_mid": "attention and MLP are parallel"}
    assert "resid_mid: absent (attention and MLP are parallel)" in capsys.readouterr().err


def test_blocks_that_lack_a_site_are_numbered(tmp_path):
    activations, _ = Run(tmp_path, "glm4_moe").extract(sites=["mlp_act"])
    assert set(activations.entries) == {"mlp_act.0"}
    assert activations.provenance["sites"] == ["mlp_act"]
    assert activations.provenance["absent"] == {"mlp_act": "blocks 1,2,3: the MLP routes tokens to experts"}


def test_both_files_say_where_they_come_from(tmp_path):
    run = Run(tmp_path, "llama")
    activations, losses = run.extract(1, 4)
    found = activations.provenance
    assert {**found, "losses_recorded": True} == losses.provenance
    assert len(found.pop("job")) == 32
    assert found == {
        "model": "tiny", "corpus": "words", "corpus_sha256": "0" * 64,
        "tokens_sha256": TensorFile(run.tokens).provenance["tokens_sha256"],
        "model_origin": "org/tiny", "model_revision": "abc", "architecture": "llama",
        "parameters": sum(p.numel() for p in run.model().parameters()), "blocks": 4, "d_model": 64, "vocab_size": 128,
        "attention_blocks": [0, 1, 2, 3],
        "part": None, "causal": True, "causal_head": True, "no_loss": None, "dtype": "float32", "device": "cpu",
        "attention": "eager", "threads": 1, "quantized": None, "placement": "one",
        "start": 1, "stop": 4, "sequences": N, "sites": SETTINGS["sites"], "absent": {}, "package_version": __version__,
        "torch": torch.__version__, "transformers": sys.modules["transformers"].__version__,
    }  # fmt: skip


def test_gpt_oss_in_mxfp4_is_its_decoded_twin(tmp_path, capfd):
    """Activations, losses and gains, bit for bit; and what was decoded is told."""
    quantized, plain = (Run(tmp_path / name, "gpt_oss", num_hidden_layers=2) for name in ("quantized", "plain"))
    location = quantized.directory / "model"
    decoded = quantize(
        location, mxfp4_experts, {"quant_method": "mxfp4"}, lambda name: name.endswith(("gate_up_proj", "down_proj"))
    )
    tensors = {name: torch.from_numpy(values) for name, values in decoded.items()}
    save_file(tensors, plain.directory / "model/model.safetensors", metadata={"format": "pt"})
    found, expected = (run.extract(sites=list(SITES), batch_size=1) for run in (quantized, plain))
    assert bits(*found) == bits(*expected)
    gains = [[file.array(name).tobytes() for name in file.entries if name.startswith("gain.")]
             for file, _ in (found, expected)]  # fmt: skip
    assert gains[0] == gains[1] and gains[0]
    told = {"format": "mxfp4", "weights": 4, "bits": [4], "groups": ["32"]}
    assert (found[0].provenance["quantized"], expected[0].provenance["quantized"]) == (told, None)
    assert "weights: dequantized from mxfp4: 4 weights" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure peak memory")
def test_memory_does_not_grow_with_the_sequences(tmp_path):
    run = Run(tmp_path, "gpt2", shape=(64, 128))

    def peak(stop):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        run.extract(stop=stop, sites=list(SITES))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024

    peak(2)
    few, many = peak(2), peak(64)
    written = (tmp_path / "activations.safetensors").stat().st_size / 2**20
    assert written > 120
    assert many - few < 30


def test_tokens_that_do_not_fit_the_vocabulary(tmp_path):
    run = Run(tmp_path, "llama")
    run.ids[2, 3] = 128
    run.write_tokens()
    with pytest.raises(InputError, match="token id 128, expected ids below 128"):
        run.extract()
    assert not (tmp_path / "activations.safetensors").exists()


def test_padding_must_follow_the_tokens(tmp_path):
    run = Run(tmp_path, "llama")
    run.mask[1, 0] = False
    run.write_tokens()
    with pytest.raises(InputError, match="padding before tokens"):
        run.extract()


def test_a_chunk_has_the_sequences_that_there_are(tmp_path):
    """Of a text that is shorter than the sample: the last chunk is cut, and those after it are empty."""
    run = Run(tmp_path, "llama")
    expected = bits(*run.extract(4, 5))
    for found in run.extract(4, 9):
        assert [found.provenance[key] for key in ("start", "stop", "sequences")] == [4, 5, 5]
        assert bits(found).items() <= expected.items() and found.entries
    for found in run.extract(9, 13):
        assert found.entries == {} and (found.provenance["start"], found.provenance["stop"]) == (5, 5)


def test_an_unknown_site(tmp_path):
    with pytest.raises(InputError, match="found 'hook_z', expected names among resid_pre"):
        Run(tmp_path, "llama").extract(sites=["hook_z"])


@pytest.mark.parametrize(
    ("name", "positions"),
    [("gpt2", "n_positions"), ("opt", "max_position_embeddings"), ("bert", "max_position_embeddings")],
)
def test_more_tokens_than_learned_positions(name, positions, tmp_path):
    run = Run(tmp_path, name, **{positions: 16})
    with pytest.raises(InputError, match=rf"sample\.tokens: found 24, expected at most 16, all that {name} has"):
        run.extract()
    assert not (tmp_path / "activations.safetensors").exists()


def test_rotary_positions_have_no_end(tmp_path):
    Run(tmp_path, "llama", max_position_embeddings=16).extract()


def test_the_script_passes_the_rules_values_on(tmp_path):
    run = Run(tmp_path, "llama")
    outputs = {
        kind: str(tmp_path / "out" / f"{kind}.safetensors") for kind in ("activations", "losses", "neurons", "channels")
    }
    loading = {key: SETTINGS[key] for key in Loading.__annotations__}
    others = {key: value for key, value in SETTINGS.items() if key not in loading}
    rule = SimpleNamespace(
        input=SimpleNamespace(source=str(run.source), tokens=str(run.tokens)),
        output=SimpleNamespace(**outputs),
        params=SimpleNamespace(
            start=0, stop=2, sample=None, ranking=None, recording=False, scoring=True, loading=loading, **others
        ),
        log=[str(tmp_path / "log.txt")],
    )
    script = Path(__file__).parents[2] / "scripts" / "extract_activations.py"
    runpy.run_path(str(script), init_globals={"snakemake": rule})
    assert TensorFile(outputs["losses"]).entry("nll").shape == (2, T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_every_value_that_is_not_finite_is_counted(dtype, bad):
    value = torch.randn(3, 7, 5).to(dtype)
    assert not_finite(value) == not_finite(value[:0]) == 0
    value[0, 0, 0] = value[1, 2, 3] = bad
    assert not_finite(value) == 2
