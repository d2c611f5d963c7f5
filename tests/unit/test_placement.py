"""Where a model is placed, from what a machine has; what a device map is like, on models that hold no weights."""

import resource
import subprocess
import sys

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights import search_super_weights
from outlier_features.errors import ConfigError
from outlier_features.extract.losses import loss_recorder
from outlier_features.model.bases import SITES
from outlier_features.model.models import LoadedModel
from outlier_features.model.placement import Machine, bytes_in, device_map, placed
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites, hooked
from outlier_features.model.verify_sites import prove_sites
from outlier_features.norms.site_gains import site_gains

GB = 10**9


@pytest.fixture
def gpus(monkeypatch):
    """torch says that it has CUDA; nothing is run on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("size", "memory", "device", "expected"),
    [
        (10, [80], "auto", ("one", "cuda")),
        (100, [80], "cuda", ("layerwise", "cuda")),
        (100, [80], "auto", ("one", "cpu")),  # the CPU's 200 GB hold it
        (100, [80] * 8, "auto", ("spread", "cuda")),
        (600, [80] * 8, "auto", ("layerwise", "cuda")),
        (100, [80] * 8, "cpu", ("one", "cpu")),
        (300, [80], "cpu", ("layerwise", "cpu")),
    ],
)
def test_auto_takes_the_first_that_fits(size, memory, device, expected, gpus):
    machine = Machine({n: one * GB for n, one in enumerate(memory)}, 200 * GB)
    found = placed("auto", device, size * GB, size * GB, machine)
    assert (found.kind, found.device.type) == expected and found.why


def test_what_a_limit_of_the_address_space_leaves():
    free = Machine({}, 200 * GB)
    limited = Machine({}, 200 * GB, address_space=30 * GB)
    assert placed("auto", "cpu", 10 * GB, 20 * GB, free).kind == "one"
    found = placed("auto", "cpu", 10 * GB, 20 * GB, limited)  # a whole load maps the files beside the weights
    assert found.kind == "layerwise" and 0 <= found.keep < 30 * GB


def test_what_is_wanted_is_taken(gpus):
    machine = Machine({0: 80 * GB, 1: 80 * GB}, 200 * GB)
    assert placed("one", "cuda", 500 * GB, 0, machine).kind == "one"
    assert placed("layerwise", "cpu", 1, 1, machine).kind == "layerwise"
    assert placed("spread", "auto", 1, 1, machine).kind == "spread"
    with pytest.raises(ConfigError, match=r"found 'spread' with one GPU"):
        placed("spread", "cuda", 1, 1, Machine({0: 80 * GB}, 200 * GB))
    with pytest.raises(ConfigError, match=r"found 'spread' with no GPU"):
        placed("spread", "cpu", 1, 1, Machine({}, 200 * GB))


def test_the_memory_of_this_machine():
    machine = Machine.here()
    assert machine.cpu > 0 and (machine.address_space is None) == (
        resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    )
    code = "from outlier_features.model.placement import Machine; print(Machine.here().address_space)"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35)); {code}"
    found = int(subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True, check=True).stdout)
    assert 2**33 < found < 2**35


def test_the_size_of_weights():
    assert bytes_in(torch.bfloat16, {"a": (3, 5), "b": (7,)}) == 2 * 22


def on_meta(name, **changes):
    config = AutoConfig.for_model(name, **{**zoo.CONFIGS[name], **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_neox"])
def test_blocks_are_spread_whole_and_in_order(name):
    model = on_meta(name, num_hidden_layers=8)
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    found = device_map(model, {0: size, 1: size, 2: size}, model._no_split_modules)
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 8)
    path = next(path for path, module in model.named_modules() if module is blocks)
    devices = []
    for number in range(8):
        (place,) = {place for key, place in found.items() if f"{path}.{number}.".startswith(f"{key}.")}
        devices.append(place)
    assert devices == sorted(devices) and set(devices) == {0, 1, 2}


def test_gpus_that_do_not_hold_a_model():
    model = on_meta("llama")
    with pytest.raises(ConfigError, match=r"2 GPUs with .* do not hold weights of"):
        device_map(model, {0: 1000, 1: 1000}, model._no_split_modules)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_neox", "qwen3_next"])
def test_a_model_whose_blocks_are_dispatched_gives_the_same(name):
    """With accelerate's hooks on every block, which is what a spread model has; all of them are on the CPU."""
    plain, model = zoo.loaded(name), zoo.build(name)
    path = plain.stack.blocks[0].path.rpartition(".")[0]
    parts = {key: "cpu" for key, _ in model.named_modules() if key.count(".") <= path.count(".") and key != path}
    parts = {key: place for key, place in parts.items() if not f"{path}.".startswith(f"{key}.")}
    parts |= {f"{path}.{n}": "cpu" for n in range(len(plain.stack))}
    dispatch_model(model, parts, main_device="cpu", force_hooks=True)
    spread = LoadedModel.of(model, torch.device("cpu"), "eager")
    assert [one.path for one in spread.stack.blocks] == [one.path for one in plain.stack.blocks]
    ids = torch.randint(3, zoo.VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(1))
    found = []
    for loaded in (plain, spread):
        seen = {}
        blocks = find_sites(loaded)
        sites = [((n, site), block.sites[site]) for n, block in enumerate(blocks) for site in block.sites]
        recorder, _ = loss_recorder(loaded)
        receive = lambda key, x, seen=seen: seen.update({key: x.clone()})  # noqa: E731
        with hooked(sites, receive), recorder.states(), torch.inference_mode():
            loaded.base(ids)
        seen |= {f"gain.{site}": torch.from_numpy(one) for site, one in site_gains(loaded, blocks, SITES).items()}
        seen["losses"] = recorder.token_losses(ids, torch.ones_like(ids, dtype=torch.bool))
        seen["starts"] = torch.tensor([Prefixes(loaded).start(n) for n in range(len(blocks) + 1)])
        if "mlp_down" in blocks[0].sites:
            weights = search_super_weights(Subject(lambda loaded=loaded: loaded), ids, threshold=1.0, rounds=2)
            seen["weights"] = torch.tensor([(one.layer, one.row, one.col) for one in weights])
        found.append((prove_sites(loaded, blocks).held, seen))
    (held, seen), (other_held, other) = found
    assert held == other_held and seen.keys() == other.keys()
    assert all(torch.equal(seen[key], other[key]) for key in seen)
