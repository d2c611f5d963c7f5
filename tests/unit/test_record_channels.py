"""What linear layers read, channel by channel: what plain hooks see, and the same however the text is cut."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import zoo
from outlier_features.channels.kept_channels import ABSENT, INPUTS, RECORDED, merged
from outlier_features.channels.linear_layers import LinearInput, LinearInputs, LinearLayer
from outlier_features.channels.record_channels import ChannelRecorder
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.files.missing import MISSING
from outlier_features.files.tensorfile import TensorFile
from outlier_features.populations import EXCLUDED, REST
from test_extract_activations import SETTINGS, Run, bits
from test_moe_layers import neurons_by_hand

LENGTHS = [24, 7, 24, 1, 13]
FIELDS = ("low", "high", "total", "squares", "count")
# What hooks see of one call is the layer's input: what routes tokens to experts, by its name, is left out.
ROUTERS = ("mlp.gate", "mlp.router", "mlp.shared_expert_gate")


def record(run, folder, cuts=(0, None), **settings):
    folder.mkdir()
    ends = [len(run.ids) if cut is None else cut for cut in cuts]
    files = []
    for start, stop in pairwise(ends):
        paths = [folder / f"{kind}{start}" for kind in ("activations", "losses", "neurons", "channels")]
        chosen = {"recording": True, **SETTINGS, **settings}
        extract_activations(run.source, run.tokens, *paths, start=start, stop=stop, **chosen)
        files.append(TensorFile(paths[-1]))
    return files


def names_of(file):
    """By name of each linear layer, that of the input it reads, and its experts."""
    return {
        layer["name"]: (one["layers"][0]["name"], layer["experts"])
        for one in file.provenance[INPUTS]
        for layer in one["layers"]
    }


def hooked_inputs(run, dtype="float32"):
    """By name of each linear layer, and expert: the vectors that it reads and their positions, a sequence each."""
    model = run.model(dtype)
    read, handles = {}, []

    def keep(name, expert, values, positions):
        read.setdefault((name, expert), []).append((values.detach().float().numpy().copy(), positions))

    def dense(name):
        def hook(module, args):
            values = args[0].reshape(-1, args[0].shape[-1])
            keep(name, None, values, np.arange(len(values)))

        return hook

    def routed(name):
        def hook(module, args):
            hidden, chosen = args[:2]
            for expert in range(zoo.EXPERTS):
                rows = (chosen == expert).any(dim=-1).nonzero()[:, 0]
                if len(rows):
                    keep(f"{name}.gate_up_proj", expert, hidden[rows], rows.numpy())
                    keep(f"{name}.down_proj", expert, neurons_by_hand(module, expert, hidden[rows]), rows.numpy())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not name.endswith(ROUTERS):
            handles.append(module.register_forward_pre_hook(dense(name)))
        elif hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            handles.append(module.register_forward_pre_hook(routed(name)))
    for ids, mask in zip(run.ids, run.mask, strict=True):
        with torch.no_grad():
            model(torch.from_numpy(ids[mask].astype(np.int64))[None])
    return read


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "olmoe", "qwen3_next", "gpt_oss"])
def test_as_plain_hooks_see_it(name, tmp_path):
    run = Run(tmp_path, name, lengths=LENGTHS)
    (file,) = record(run, tmp_path / "one")
    read, names = hooked_inputs(run), names_of(file)
    expected = {one for one, _ in read if not one.startswith("pooler")}
    assert names.keys() == expected and not file.provenance[ABSENT]
    for (layer, expert), calls in read.items():
        if layer not in names:
            continue
        assert bool(names[layer][1]) == (expert is not None)
        row = expert or 0
        for part in (EXCLUDED, REST):
            values = np.concatenate([values[(at == 0) == (part == EXCLUDED)] for values, at in calls])
            kept = merged([file], names[layer][0], [part])
            assert kept.count[row] == len(values)
            if not len(values):
                assert kept.low[row].min() == np.inf and kept.high[row].max() == -np.inf
                continue
            # A product of a sequence without its padding has other last bits; a wrong token would differ by far more.
            wide, room = values.astype(np.float64), 1e-5 * np.abs(values).max()
            np.testing.assert_allclose(kept.low[row], values.min(0), rtol=0, atol=room)
            np.testing.assert_allclose(kept.high[row], values.max(0), rtol=0, atol=room)
            np.testing.assert_allclose(kept.total[row], wide.sum(0), rtol=0, atol=room * len(values))
            np.testing.assert_allclose(kept.squares[row], (wide**2).sum(0), rtol=1e-4, atol=room**2 * len(values))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_largest_of_each_token_that_down_proj_reads(name, tmp_path):
    run = Run(tmp_path, name, lengths=LENGTHS)
    (file,) = record(run, tmp_path / "one")
    read = hooked_inputs(run)
    down = [f"model.layers.{n}.mlp.down_proj" if name == "llama" else f"transformer.h.{n}.mlp.c_proj" for n in range(4)]
    assert {entry for entry in file.entries if entry.endswith("token_absmax")} == {f"{n}.token_absmax" for n in down}
    for layer in down:
        found = file.array(f"{layer}.token_absmax")
        for row, (values, _) in enumerate(read[layer, None]):
            np.testing.assert_allclose(found[row, : len(values)], np.abs(values).max(1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_values_are_summed_as_they_are(dtype, tmp_path):
    run = Run(tmp_path, "llama")
    (file,) = record(run, tmp_path / "one", dtype=dtype)
    for (layer, _), calls in hooked_inputs(run, dtype).items():
        values = np.concatenate([values for values, _ in calls]).astype(np.float64)
        kept = merged([file], names_of(file)[layer][0], [EXCLUDED, REST])
        assert np.array_equal(kept.high[0], values.max(0)) and np.array_equal(kept.low[0], values.min(0))
        np.testing.assert_allclose(kept.squares[0], (values**2).sum(0), rtol=1e-13)


@pytest.mark.parametrize(
    "name", zoo.of_every_kind(["llama", "olmoe", "bert", "qwen3_next"], {"llama", "olmoe", "bert"})
)
def test_the_same_whatever_the_chunks_and_batches(name, tmp_path):
    """Counts and extremes bit by bit; a float64 sum of n terms is off by at most n eps times the sum of their sizes."""
    run = Run(tmp_path, name, lengths=LENGTHS)
    (whole,) = record(run, tmp_path / "whole")
    parts = record(run, tmp_path / "parts", (0, 2, 3, None), batch_size=3)
    names = {one for one, _ in names_of(whole).values()}
    for layer in names:
        for part in (EXCLUDED, REST):
            one, other = merged([whole], layer, [part]), merged(parts, layer, [part])
            assert all(np.array_equal(getattr(one, field), getattr(other, field)) for field in ("low", "high", "count"))
            n = one.count.max() * np.finfo(np.float64).eps
            assert (np.abs(one.squares - other.squares) <= n * one.squares).all()
            sizes = np.sqrt(one.squares * one.count[:, None])  # sum |x| <= sqrt(n sum x^2)
            assert (np.abs(one.total - other.total) <= n * sizes).all()
    for entry in whole.entries:
        if entry.endswith("token_absmax"):
            assert np.array_equal(whole.array(entry), np.concatenate([file.array(entry) for file in parts]))


def test_sequences_that_share_a_pass_are_told_apart():
    """As on a GPU, where a batch has several: by hand, without a model."""
    generator = np.random.default_rng(0)
    parts = np.array([[0, 1, 1, 2], [0, 0, 1, 1], [0, 1, 2, 2]], np.uint8)
    values = torch.from_numpy(generator.standard_normal((3, 4, 6)).astype(np.float32))
    module = nn.Linear(6, 2)
    layer = LinearLayer("down", module, "weight", False, 0, 2, 6)
    inputs = LinearInputs((LinearInput(0, "mlp_act", (layer,)),), {}, nn.Identity())
    recorder = ChannelRecorder(inputs, np.concatenate([parts[:1], parts]), 1, 4)
    with recorder.listening(1, (3, 4)):
        module(values)
    arrays = recorder.arrays()
    for part in (EXCLUDED, REST):
        own = values.numpy()[parts == part]
        assert arrays[f"down.{part}.count"] == len(own)
        assert np.array_equal(arrays[f"down.{part}.low"][0], own.min(0))
        assert np.array_equal(arrays[f"down.{part}.high"][0], own.max(0))
        np.testing.assert_allclose(arrays[f"down.{part}.total"][0], own.astype(np.float64).sum(0), rtol=1e-13)
    assert np.array_equal(arrays["down.token_absmax"], np.abs(values.numpy()).max(2))
    assert recorder.arrays() == {}


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_block_by_block(name, tmp_path):
    run = Run(tmp_path, name, lengths=LENGTHS)
    (whole,) = record(run, tmp_path / "whole")
    (layerwise,) = record(run, tmp_path / "layerwise", placement="layerwise")
    assert bits(whole) == bits(layerwise)
    assert whole.provenance[INPUTS] == layerwise.provenance[INPUTS]


def test_what_is_not_wanted_and_a_chunk_without_sequences(tmp_path):
    run = Run(tmp_path, "llama")
    (off,) = record(run, tmp_path / "off", recording=False)
    assert not off.entries and off.provenance[RECORDED] is False and MISSING not in off.provenance
    (none,) = record(run, tmp_path / "none", (7, 9))
    assert not none.entries and none.provenance["start"] == none.provenance["stop"]


def test_recording_changes_no_activation(tmp_path):
    run = Run(tmp_path, "olmoe", lengths=LENGTHS)
    record(run, tmp_path / "on")
    record(run, tmp_path / "off", recording=False)
    files = [
        [TensorFile(tmp_path / folder / f"{kind}0") for kind in ("activations", "losses")] for folder in ("on", "off")
    ]
    assert bits(*files[0]) == bits(*files[1])
