"""Weights that stay on disk: the numbers of a whole load, in less memory than the weights take, each read once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM

import zoo
from outlier_features.ablate.ablate_dims import AblationRun
from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights import down_projection, search_super_weights
from outlier_features.errors import InputError
from outlier_features.extract.block_by_block import place_beside
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.interventions import scaling, weight_at
from outlier_features.model.models import load_model
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites
from outlier_features.model.stored_weights import StoredWeights
from test_ablate_dims import every_kind, sample
from test_extract_activations import Run, bits

sys.path.append(str(Path(__file__).parents[1] / "every_type"))
import tiny_types

PLAIN = {"dtype": "float32", "device": "cpu", "attention": "eager", "trust_remote_code": False}
# Experts fused by transformers, blocks of several kinds, parallel ones, norms after a sum, an encoder, Conv1D.
NAMES = ["llama", "qwen3_moe", "mixtral", "gpt_oss", "qwen3_next", "gpt_neox", "olmo2", "bert", "gpt2"]


def both(directory, keep=0, **changes):
    options = PLAIN | changes
    return load_model(directory, **options), load_model(directory, **options, placement="layerwise", keep=keep)


def states(loaded, ids):
    with torch.inference_mode():
        return loaded.base(ids)[0]


def some_ids(length=20):
    return torch.randint(3, zoo.VOCABULARY, (1, length), generator=torch.Generator().manual_seed(4))


def extract(run, **settings):
    return bits(*run.extract(**settings))


@pytest.fixture
def small_memory(monkeypatch):
    """A layerwise model keeps no block that does not run."""
    monkeypatch.setattr("outlier_features.model.placement._KEPT_SHARE", 0)


@pytest.mark.parametrize("name", zoo.of_every_kind(NAMES, {"llama", "qwen3_moe", "gpt_oss", "qwen3_next", "gpt2"}))
def test_a_chunk_has_the_bits_of_a_whole_load(name, tmp_path, capfd, small_memory):
    run = Run(tmp_path, name, lengths=[24, 24, 13, 24, 9])
    assert extract(run, placement="layerwise") == extract(run)
    assert "blocks: 100%" in capfd.readouterr().err and not place_beside(tmp_path / "activations.safetensors").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_chunk_in_16_bit(dtype, tmp_path, small_memory):
    run = Run(tmp_path, "qwen3_moe")
    assert extract(run, placement="layerwise", dtype=dtype) == extract(run, dtype=dtype)


@pytest.mark.parametrize("name", ["jamba", "zamba2", "lfm2", "cohere", "phimoe", "dbrx", "t5", "mamba"])
def test_passes_of_other_architectures(name, tmp_path):
    """Hybrids, blocks that are shared, experts that are split or fused, an encoder-decoder model."""
    tiny_types.save(name, tmp_path)
    whole, streamed = both(tmp_path, attention="auto", part="decoder" if name == "t5" else None)
    ids = some_ids() % whole.vocab_size
    assert torch.equal(states(whole, ids), states(streamed, ids))
    assert whole.parameters == streamed.parameters and whole.no_loss == streamed.no_loss


def test_a_block_that_runs_several_times(tmp_path):
    sizes = {"vocab_size": 128, "embedding_size": 32, "hidden_size": 64, "intermediate_size": 96}
    torch.manual_seed(0)
    config = AutoConfig.for_model("albert", num_hidden_layers=4, num_attention_heads=4, **sizes)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    whole, streamed = both(tmp_path)
    assert torch.equal(states(whole, some_ids()), states(streamed, some_ids()))
    assert Prefixes(streamed).no_steps() is None


@pytest.mark.parametrize("stored", ["once", "twice, the same", "twice, others"])
def test_tied_embeddings(stored, tmp_path):
    zoo.save("llama", tmp_path, tie_word_embeddings=True)
    if stored != "once":
        file = tmp_path / "model.safetensors"
        weights = load_file(file)
        head = weights["model.embed_tokens.weight"].clone()
        save_file(weights | {"lm_head.weight": head + (stored == "twice, others")}, file, {"format": "pt"})
    whole, streamed = both(tmp_path)
    assert whole.parameters == streamed.parameters
    with torch.inference_mode():
        assert torch.equal(whole.model(some_ids()).logits, streamed.model(some_ids()).logits)


def test_ablations_and_super_weights(tmp_path):
    whole, streamed = both(zoo.save("llama", tmp_path))
    found = []
    for loaded in (whole, streamed):
        subject = Subject(lambda loaded=loaded: loaded)
        weights = search_super_weights(subject, some_ids(), threshold=0.001, rounds=3)
        assert len(weights) == 3
        passes = AblationRun(subject, sample(), 2)
        found.append((weights, passes.scores(every_kind(loaded, sample()))))
    assert found[0][0] == found[1][0] and found[0][1].equals(found[1][1], null_equal=True)


def test_a_weight_that_is_changed_stays_so_while_other_blocks_run(tmp_path):
    whole, streamed = both(zoo.save("llama", tmp_path))
    changed = []
    for loaded in (whole, streamed):
        blocks = find_sites(loaded)
        before = weight_at(down_projection(blocks, 1), 3, 5)
        with scaling() as scale:
            scale(down_projection(blocks, 1), 3, 5, 0)
            changed.append([states(loaded, some_ids()) for _ in range(2)])
            assert weight_at(down_projection(blocks, 1), 3, 5) == 0
        changed[-1].append(states(loaded, some_ids()))
        assert weight_at(down_projection(blocks, 1), 3, 5) == before
    assert all(map(torch.equal, *changed)) and not torch.equal(changed[0][0], changed[0][2])


def test_no_number_comes_of_weights_that_are_not_there(tmp_path):
    _, streamed = both(zoo.save("llama", tmp_path))
    states(streamed, some_ids())
    block = streamed.stack.blocks[0].module
    assert block.mlp.down_proj.weight.isnan().all() and block.mlp.down_proj.weight.shape == (zoo.D_MODEL, zoo.D_MLP)
    assert not block.input_layernorm.weight.isnan().any()


def test_blocks_that_fit_are_read_once(tmp_path):
    _, streamed = both(zoo.save("llama", tmp_path), keep=10**9)
    for _ in range(3):
        states(streamed, some_ids())
    assert streamed.on_demand.times_read == 1


@pytest.mark.parametrize(("sequences", "tokens"), [(2, 16), (12, 16)])
def test_a_chunk_of_any_size_reads_the_weights_once(sequences, tokens, tmp_path, small_memory, monkeypatch):
    """And some passes over a few tokens, which are as many whatever the chunk."""
    run = Run(tmp_path, "llama", shape=(sequences, tokens))
    read, counted = [], load_model

    def load(*args, **options):
        loaded = counted(*args, **options)
        read.append(loaded.on_demand)
        return loaded

    monkeypatch.setattr("outlier_features.extract.passes.load_model", load)
    before_chunk = []
    monkeypatch.setattr(
        "outlier_features.extract.passes.Prefixes",
        lambda loaded: type("Counted", (Prefixes,), {
            "no_steps": lambda self: (Prefixes.no_steps(self), before_chunk.append(read[-1].times_read))[0]
        })(loaded),
    )  # fmt: skip
    run.extract(placement="layerwise")
    assert read[-1].times_read - before_chunk[-1] <= 1


def test_what_a_checkpoint_lacks_and_what_does_not_fit(tmp_path):
    zoo.save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    for changed, message in (
        ({"model.layers.1.mlp.up_proj.weight": None}, "its weights lack model.layers.1.mlp.up_proj.weight"),
        ({"model.norm.weight": torch.ones(3)}, r"model.norm.weight is of shape \[3\], expected \[64\]"),
    ):
        kept = {name: value for name, value in (weights | changed).items() if value is not None}
        save_file(kept, file, {"format": "pt"})
        with pytest.raises(InputError, match=message):
            load_model(tmp_path, **PLAIN, placement="layerwise")
    save_file({name: value for name, value in weights.items() if name != "lm_head.weight"}, file, {"format": "pt"})
    whole, streamed = both(tmp_path)
    assert whole.no_loss == streamed.no_loss and "lm_head.weight" in streamed.no_loss


def test_a_stored_weight_is_read_as_it_lies(tmp_path):
    values = {"a": torch.arange(6.0).reshape(2, 3).bfloat16(), "b": torch.tensor(7), "c": torch.zeros(0, 4)}
    save_file(values, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    stored = StoredWeights.open(tmp_path)
    assert sorted(stored) == ["a", "b", "c"] and stored.bytes == 12 + 8
    for name, value in values.items():
        assert torch.equal(stored.read(name), value) and stored.shape(name) == value.shape


LIMITED = """
import json, resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
import psutil
from outlier_features.extract.extract_activations import extract_activations
from test_extract_activations import SETTINGS
import test_extract_activations
folder, placement, room = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
warm = test_extract_activations.Run(folder / "warm", "llama")  # libraries and threads are not what is limited
warm.extract(placement="layerwise")
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
names = ("source.json", "tokens.safetensors", "activations.safetensors", "losses.safetensors", "neurons.safetensors",
         "channels.safetensors")
files = (folder / name for name in names)
extract_activations(*files, start=0, stop=5, **SETTINGS | {{"placement": placement, "sites": ["resid_post"]}})
"""


def limited(folder, placement, room):
    code = LIMITED.format(path=[str(Path(__file__).parent)])
    command = [sys.executable, "-c", code, str(folder), placement, str(room)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_a_model_larger_than_the_limit_of_the_address_space(tmp_path):
    run = Run(tmp_path, "llama", num_hidden_layers=12, hidden_size=1024, intermediate_size=3072, head_dim=16)
    weights = (tmp_path / "model/model.safetensors").stat().st_size
    assert weights > 400e6
    expected = extract(run, sites=["resid_post"])
    room = weights - 20 * 10**6
    assert limited(tmp_path, "one", room).returncode != 0
    for name in ("activations", "losses"):
        (tmp_path / f"{name}.safetensors").unlink()
    done = limited(tmp_path, "auto", room)
    assert done.returncode == 0, done.stderr
    assert "placement: layerwise on cpu" in done.stderr
    assert bits(*(TensorFile(tmp_path / f"{name}.safetensors") for name in ("activations", "losses"))) == expected


def start(folder):
    code = LIMITED.format(path=[str(Path(__file__).parent)])
    command = [sys.executable, "-c", code, str(folder), "layerwise", str(2**36)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_killed_chunk_goes_on_from_the_last_finished_block(tmp_path):
    run = Run(tmp_path, "llama", num_hidden_layers=12, shape=(40, 200))
    place = place_beside(tmp_path / "activations.safetensors")
    job = start(tmp_path)
    deadline = time.monotonic() + 120
    while not (place / "00003.block").exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    finished = len(list(place.glob("*.block")))
    assert 4 <= finished < 12 and not (tmp_path / "activations.safetensors").exists()
    first = (place / "00000.block").stat().st_mtime_ns
    job = start(tmp_path)
    _, said = job.communicate()
    assert job.returncode == 0 and f"{finished} of 12 were finished before" in said
    assert first < (tmp_path / "activations.safetensors").stat().st_mtime_ns and not place.exists()
    files = [TensorFile(tmp_path / f"{name}.safetensors") for name in ("activations", "losses")]
    assert bits(*files) == extract(run, sites=["resid_post"], stop=5)


@pytest.mark.parametrize("change", ["another revision", "other tokens", "other sites", "a damaged file"])
def test_what_another_job_left_is_not_taken(change, tmp_path, monkeypatch, capfd):
    run = Run(tmp_path, "llama")
    monkeypatch.setattr("outlier_features.extract.block_by_block.BlockByBlock.remove", lambda self: None)
    run.extract(placement="layerwise")
    monkeypatch.undo()
    settings = {}
    place = place_beside(tmp_path / "activations.safetensors")
    assert len(list(place.glob("*.block"))) == 4
    if change == "another revision":
        run.source.write_text(json.dumps(json.loads(run.source.read_text()) | {"revision": "abd"}))
    elif change == "other tokens":
        run.ids = np.where(run.mask, run.ids + 1, 0).astype(np.int32) % zoo.VOCABULARY
        run.write_tokens()
    elif change == "other sites":
        settings = {"sites": ["resid_pre", "mlp_norm"]}
    else:
        with (place / "00001.block").open("r+b") as file:
            file.truncate(5000)
    assert extract(run, placement="layerwise", **settings) == extract(run, **settings)
    assert "removed what another job left" in capfd.readouterr().err


def test_a_model_whose_blocks_cannot_begin_a_pass_is_run_whole(tmp_path, monkeypatch, capfd):
    run = Run(tmp_path, "llama")
    monkeypatch.setattr(Prefixes, "no_steps", lambda self: "it says so")
    assert extract(run, placement="layerwise") == extract(run)
    assert "every batch reads the weights anew: it says so" in capfd.readouterr().err


def test_the_provenance_says_where_the_weights_were(tmp_path):
    run = Run(tmp_path, "llama")
    for placement, kind in (("layerwise", "layerwise"), ("one", "one"), ("auto", "one")):
        activations, _ = run.extract(placement=placement)
        assert activations.provenance["placement"] == kind
