"""A planted super weight is found, every weight is what it was afterwards, and the model's files are never written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

import zoo
from outlier_features.ablate.super_weights import search_super_weights
from outlier_features.errors import InputError
from outlier_features.files.digest import sha256_of
from outlier_features.model.interventions import scaling
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites
from outlier_features.model.tensors import first_tensor
from outlier_features.published import published_super_weights

TABLE = Path(__file__).parents[2] / "workflow/published/super_weights.csv"
MLP = {
    "llama": ("model.layers.{}.mlp", ("gate_proj", "up_proj"), "down_proj"),
    "gpt2": ("transformer.h.{}.mlp", ("c_fc",), "c_proj"),
    "opt": ("model.decoder.layers.{}", ("fc1",), "fc2"),
    "glm4_moe": ("model.layers.{}.mlp", ("gate_proj", "up_proj"), "down_proj"),
    "bert": ("encoder.layer.{}", ("intermediate.dense",), "output.dense"),
}


def some_ids(length=20):
    return torch.randint(3, zoo.VOCABULARY, (1, length), generator=torch.Generator().manual_seed(2))


def plant(name, model, layer, neuron, rows, ids=None):
    """Make a neuron fire at some 400 at position 3 of a sequence, and let it write to the dims `rows` alone."""
    path, inputs, output = MLP[name]
    mlp = model.get_submodule(path.format(layer))
    read = []
    first = mlp.get_submodule(inputs[0])
    handle = first.register_forward_pre_hook(lambda module, args: read.append(args[0].reshape(1, -1, zoo.D_MODEL)))
    with torch.no_grad():
        model(some_ids() if ids is None else ids)
    handle.remove()
    x = read[0][0, 3]

    def matrix(module):
        weight = mlp.get_submodule(module).weight
        return weight.T if name == "gpt2" else weight

    with torch.no_grad():
        for module in inputs:
            matrix(module)[neuron] = 400 ** (1 / len(inputs)) * x / x.square().sum()
        matrix(output)[:, neuron] = 0
        for row, value in rows.items():
            matrix(output)[row, neuron] = value


def search(loaded, threshold=50.0, rounds=20):
    return search_super_weights(loaded, find_sites(loaded), some_ids(), threshold=threshold, rounds=rounds)


def places(found):
    return [(weight.layer, weight.row, weight.col) for weight in found]


@pytest.mark.parametrize(("name", "layer"), [("llama", 2), ("gpt2", 2), ("opt", 1), ("glm4_moe", 0), ("bert", 1)])
def test_a_planted_super_weight_is_found(name, layer):
    loaded = zoo.loaded(name)
    plant(name, loaded.model, layer, 17, {33: 7.5})
    seen = {}
    path, _, output = MLP[name]
    down = loaded.model.get_submodule(path.format(layer)).get_submodule(output)
    handle = down.register_forward_hook(lambda module, args, out: seen.update(act=args[0].clone(), down=out.clone()))
    with torch.no_grad():
        loaded.model(some_ids())
    handle.remove()
    found = search(loaded)
    assert places(found)[0] == (layer, 33, 17)
    first = found[0]
    assert (first.round, first.value) == (1, 7.5)
    act, down_out = seen["act"].reshape(20, -1), seen["down"].reshape(20, -1)
    assert first.mlp_act.value == act[first.mlp_act.position, 17] and abs(first.mlp_act.value) == act.abs().max() > 50
    assert abs(first.mlp_down.value) == down_out.abs().max() == abs(down_out[first.mlp_down.position, 33])


def test_the_earliest_block_goes_first_and_then_what_still_spikes():
    loaded = zoo.loaded("llama")
    plant("llama", loaded.model, 3, 5, {40: 9.0})
    plant("llama", loaded.model, 1, 17, {33: 5.0, 34: -7.0})
    found = search(loaded)
    assert places(found)[:2] == [(1, 34, 17), (1, 33, 17)]  # the larger first
    assert places(found)[2:] == [(3, 40, 5)]
    assert [weight.round for weight in found] == [1, 2, 3]


def by_whole_passes(loaded, name, rounds=20):
    """The places that the search finds where every round runs all of the model, by hooks of one's own."""
    path, _, output = MLP[name]
    layers = range(4)
    downs = [loaded.model.get_submodule(path.format(n)).get_submodule(output) for n in layers]
    weights = [down.weight.data.clone() for down in downs]
    found, seen = [], {}
    handles = [
        down.register_forward_hook(lambda m, args, out, n=n: seen.update({n: (args[0][0], out[0])}))
        for n, down in enumerate(downs)
    ]
    for _ in range(rounds):
        with torch.no_grad():
            loaded.model(some_ids())
        both = [n for n in layers if all(tensor.abs().max() > 50 for tensor in seen[n])]
        spikes = [(n, *(int(x.abs().argmax()) % x.shape[-1] for x in reversed(seen[n]))) for n in both]
        new = [(place, seen[place[0]]) for place in spikes if place not in [one for one, _ in found]]
        if not new:
            break
        (layer, row, col), (act, down) = new[0]
        found.append((new[0][0], (float(act.abs().max()), float(down.abs().max()))))
        with torch.no_grad():
            downs[layer].weight[(col, row) if name == "gpt2" else (row, col)] = 0
    for handle, down, weight in zip(handles, downs, weights, strict=True):
        handle.remove()
        down.weight.data = weight
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_search_that_goes_on_from_the_block_it_changed_finds_what_whole_passes_find(name, shared):
    loaded = zoo.loaded(name)
    plant(name, loaded.model, 3, 5, {40: 9.0, 41: 8.0})
    plant(name, loaded.model, 1, 17, {33: 5.0, 34: -7.0})
    if shared:  # one matrix of two blocks: what is zero changes the first of them
        path, _, output = MLP[name]
        two, one = (loaded.model.get_submodule(path.format(n)).get_submodule(output) for n in (2, 1))
        two.weight = one.weight
    expected = by_whole_passes(loaded, name)
    found = search(loaded)
    assert len(found) >= 4 and places(found) == [place for place, _ in expected]
    spikes = [(abs(weight.mlp_act.value), abs(weight.mlp_down.value)) for weight in found]
    assert spikes == [values for _, values in expected]


def test_a_search_finds_the_same_where_no_pass_may_begin_at_a_block(monkeypatch):
    loaded = zoo.loaded("llama")
    plant("llama", loaded.model, 3, 5, {40: 9.0})
    plant("llama", loaded.model, 1, 17, {33: 5.0, 34: -7.0})
    found = search(loaded)
    monkeypatch.setattr(Prefixes, "start", lambda self, wanted: 0)
    assert len(found) == 3 and search(loaded) == found


def test_a_search_runs_each_block_once_and_the_changed_ones_again():
    loaded = zoo.loaded("llama")
    plant("llama", loaded.model, 2, 5, {40: 9.0})
    plant("llama", loaded.model, 1, 17, {33: 5.0, 34: -7.0})
    blocks, ran = find_sites(loaded), []
    for n, layer in enumerate(loaded.model.model.layers):
        layer.mlp.register_forward_hook(lambda m, args, out, n=n: ran.append(n) if out.shape[1] == 20 else None)
    found = search_super_weights(loaded, blocks, some_ids(), threshold=50.0, rounds=20)
    assert [weight.layer for weight in found] == [1, 1, 2]
    assert ran == [0, 1, 1, 1, 2, 2, 3]


def test_a_model_without_spikes_has_none():
    assert search(zoo.loaded("llama")) == []


def test_both_must_spike():
    loaded = zoo.loaded("llama")
    plant("llama", loaded.model, 2, 17, {})
    with torch.no_grad():  # a neuron spikes that writes nothing, and elsewhere an output spikes without any neuron
        loaded.model.model.layers[1].mlp.down_proj.weight *= 1e5
    assert search(loaded) == []


def test_a_spike_that_its_weight_does_not_carry_is_passed_over():
    loaded = zoo.loaded("gpt2")
    plant("gpt2", loaded.model, 0, 17, {})
    with torch.no_grad():
        loaded.model.transformer.h[0].mlp.c_proj.bias[33] = 1e4
    plant("gpt2", loaded.model, 2, 9, {12: 8.0})
    assert places(search(loaded)) == [(0, 33, 17), (2, 12, 9)]


def test_the_search_ends_after_so_many_rounds():
    loaded = zoo.loaded("llama")
    plant("llama", loaded.model, 1, 17, {row: 5.0 + row for row in range(10)})
    assert places(search(loaded, rounds=3)) == [(1, row, 17) for row in (9, 8, 7)]


def test_activations_that_are_not_finite_stop_the_search():
    loaded = zoo.loaded("llama")
    blocks = find_sites(loaded)
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite in mlp_down of block 1"):
        search_super_weights(loaded, blocks, some_ids(), threshold=50.0, rounds=20)


class Stop(BaseException):
    """As a signal's handler may raise."""


def weights_of(model):
    return {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}


def same(model, before):
    return all(
        parameter.data_ptr() == before[name][0]
        and torch.equal(parameter.view(torch.int32), before[name][1].view(torch.int32))
        for name, parameter in model.named_parameters()
    )


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_weight_is_what_it_was(name, error):
    loaded = zoo.loaded(name)
    plant(name, loaded.model, 1, 17, {33: 5.0, 34: -7.0})
    with torch.no_grad():
        loaded.model.get_submodule(MLP[name][0].format(1)).get_submodule(MLP[name][2]).weight[0, 0] = -0.0
    blocks = find_sites(loaded)
    before, passes, zeros = weights_of(loaded.model), [], []

    def count(module, args):
        if first_tensor(args).shape[1] != 20:  # probe tokens
            return
        passes.append(1)
        zeros.append(not same(loaded.model, before))
        if error and len(passes) == 3:
            raise error

    planted = loaded.model.get_submodule(blocks[1].path)
    planted.register_forward_pre_hook(count)
    if error is None:
        search_super_weights(loaded, blocks, some_ids(), threshold=50.0, rounds=20)
    else:
        with pytest.raises(error):
            search_super_weights(loaded, blocks, some_ids(), threshold=50.0, rounds=20)
    assert zeros[:3] == [False, True, True]  # changed while it ran
    assert same(loaded.model, before)


def test_an_error_between_two_zeros_restores_both():
    linear = torch.nn.Linear(4, 3)
    before = linear.weight.data
    kept = before.clone()
    with pytest.raises(IndexError), scaling() as scale:
        scale(linear, 1, 2, 0)
        assert linear.weight[1, 2] == 0 and before[1, 2] != 0  # a copy is written to
        scale(linear, 7, 2, 0)
    assert linear.weight.data_ptr() == before.data_ptr() and torch.equal(linear.weight.data, kept)


def digests(folder):
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


_KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import test_super_weights as t
from pathlib import Path
from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites
loaded = load_model(Path({folder!r}), dtype="float32", device="cpu", attention="eager", trust_remote_code=False)
blocks = find_sites(loaded)
before = t.weights_of(loaded.model)
def kill(module, args):
    if not t.same(loaded.model, before):
        print("changed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
loaded.model.get_submodule(blocks[-1].path).register_forward_pre_hook(kill)
t.search_super_weights(loaded, blocks, t.some_ids(), threshold=50.0, rounds=20)
"""


def test_a_killed_search_leaves_the_files_as_they_were(tmp_path):
    model = zoo.build("llama")
    plant("llama", model, 1, 17, {33: 5.0, 34: -7.0})
    model.save_pretrained(tmp_path / "model")
    before = digests(tmp_path / "model")
    code = _KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "model"))
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "changed\n"
    assert digests(tmp_path / "model") == before


def test_a_finished_search_leaves_the_files_as_they_were(tmp_path):
    model = zoo.build("llama")
    plant("llama", model, 1, 17, {33: 5.0})
    model.save_pretrained(tmp_path / "model")
    before = digests(tmp_path / "model")
    loaded = zoo.load_model(
        tmp_path / "model", dtype="float32", device="cpu", attention="eager", trust_remote_code=False
    )
    assert places(search(loaded))[0] == (1, 33, 17)
    assert digests(tmp_path / "model") == before


@pytest.mark.parametrize(
    ("kind", "origin", "hub_id", "some"),
    [
        ("hub", "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", (1, 2070, 7310)),
        ("hub", "Huggyllama/LLaMA-7b", "huggyllama/llama-7b", (2, 3968, 7003)),
        ("path", "/models/OLMo-1B-0724-hf/", "allenai/OLMo-1B-0724-hf", (1, 1764, 1710)),
    ],
)
def test_published_super_weights_of_a_model(kind, origin, hub_id, some):
    rows = published_super_weights(TABLE, {"kind": kind, "origin": origin})
    assert set(rows["hub_id"]) == {hub_id}
    assert some in rows.select("layer", "row", "col").rows()
    assert set(rows["certainty"]) <= {"read", "quoted"} and rows["source"].null_count() == 0


@pytest.mark.parametrize(
    ("kind", "origin"),
    [
        ("hub", "someone/Mistral-7B-v0.1"),
        ("path", "/models/llama"),
        ("pypi", "x==1:llama-7b"),
        ("hub", "Qwen/Qwen3-30B-A3B"),  # weights of single experts only
    ],
)
def test_no_published_super_weights_of_others(kind, origin):
    assert published_super_weights(TABLE, {"kind": kind, "origin": origin}).is_empty()


def test_the_published_table_names_its_sources():
    rows = pl.read_csv(TABLE, infer_schema_length=None)
    assert len(rows) == 65
    assert rows.select("source", "certainty", "rule").null_count().sum_horizontal().item() == 0
