"""Every knock-out equals plain transformers with hooks set by hand, and the tables say what was run."""

from contextlib import ExitStack

import numpy as np
import polars as pl
import pytest
import torch

import zoo
from fake_run import leave_out
from outlier_features.ablate.knock_out import knock_out
from outlier_features.ablate.knock_out_run import KnockOutRun
from outlier_features.ablate.knock_out_schema import KNOCK_OUT_DIMS, KNOCK_OUTS, SPIKES
from outlier_features.ablate.knock_out_targets import (
    BASELINE,
    SCALES,
    KnockOut,
    MassiveDim,
    head_targets,
    massive_dims,
    massive_targets,
    sublayer_targets,
    weight_targets,
)
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.errors import InputError
from outlier_features.files.tables import read_table, write_table
from outlier_features.model.heads import find_heads
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites
from test_ablate_dims import BOUND, PATHS, Files, N, T, dims_table, first, losses, sample, weights_table
from test_super_weights import plant

# By architecture, modules of a block: attention, the last matrix of attention, the MLP, as its own code names them.
MODULES = {
    "llama": ("self_attn", "self_attn.o_proj", "mlp"),
    "gpt2": ("attn", "attn.c_proj", "mlp"),
    "gpt_neox": ("attention", "attention.dense", "mlp"),
    "falcon": ("self_attention", "self_attention.dense", "mlp"),
    "mixtral": ("self_attn", "self_attn.o_proj", "mlp"),
    "gemma3_text": ("post_attention_layernorm", "self_attn.o_proj", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "self_attn.o_proj", "post_feedforward_layernorm"),
}
ROWS = slice(0, N)


def places(*at):
    found = np.zeros((N, T), bool)
    for place in at:
        found[place] = True
    return found


DIMS = [MassiveDim(5, 1, places((0, 0), (1, 0), (2, 3))), MassiveDim(9, 2, places((1, 7)))]


def zeros(module, args, output):
    return torch.zeros_like(output) if torch.is_tensor(output) else (torch.zeros_like(output[0]), *output[1:])


def without_head(head, heads):
    def hook(module, args):
        x = args[0].clone()
        width = x.shape[-1] // heads
        x[..., head * width : (head + 1) * width] = 0
        return (x, *args[1:])

    return hook


def by_hand(loaded, tokens, name, after=(), before=()):
    """nll (N,), and resid_post of every block, (blocks, N, T, d), with hooks on modules of blocks."""
    blocks = loaded.model.get_submodule(PATHS[name])
    handles = [blocks[n].get_submodule(module).register_forward_pre_hook(hook) for n, module, hook in before]
    handles += [blocks[n].get_submodule(module).register_forward_hook(hook) for n, module, hook in after]
    kept = [[] for _ in blocks]
    for block, own in zip(blocks, kept, strict=True):
        handles.append(
            block.register_forward_hook(lambda m, a, out, own=own: own.append(first(out).clone().view(T, -1)))
        )
    nll, _ = losses(loaded.model, tokens)
    for handle in handles:
        handle.remove()
    return nll, torch.stack([torch.stack(own) for own in kept]).numpy()


def run_of(loaded, tokens, massive=DIMS, batch_size=2):
    run = KnockOutRun(loaded, tokens, batch_size)
    run.take(tokens, massive)
    return run


def same(found, rows, index, expected, tokens):
    """Row `index` of both tables is what was found by hand, nll and resid_post."""
    nll, posts = expected
    predicted = tokens.mask[:, 1:].sum()
    assert found["nll"][index] == pytest.approx(nll.sum() / predicted, rel=2e-5)
    assert found["tokens"][index] == predicted
    of_variant = rows.filter(variant=index)
    tops = of_variant.filter(pl.col("dim").is_null()).sort("layer")["max_abs"]
    np.testing.assert_allclose(tops, np.abs(posts * tokens.mask[None, ..., None]).max(axis=(1, 2, 3)), rtol=1e-4)
    for one in DIMS:
        there = of_variant.filter(dim=one.dim).sort("layer")
        values = posts[:, one.places, one.dim].astype(np.float64)
        np.testing.assert_allclose(there["mean"], values.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(there["max_abs"], np.abs(values).max(axis=1), rtol=1e-4, atol=1e-5)
        assert set(there["places"]) == {int(one.places.sum())}


@pytest.mark.parametrize("name", MODULES)
def test_sublayers_and_heads_are_off_as_by_hand(name):
    loaded, tokens = zoo.loaded(name), sample(lengths=(T, T, 9))
    attention, last, mlp = MODULES[name]
    every = range(zoo.BLOCKS)
    cases = [
        (KnockOut("attention", tuple(every)), {"after": [(n, attention, zeros) for n in every]}),
        (KnockOut("mlp", tuple(every)), {"after": [(n, mlp, zeros) for n in every]}),
        (KnockOut("attention", (2,)), {"after": [(2, attention, zeros)]}),
        (KnockOut("mlp", (1,)), {"after": [(1, mlp, zeros)]}),
        (KnockOut("head", (1,), 2), {"before": [(1, last, without_head(2, zoo.HEADS))]}),
        (KnockOut("head", (3,), 0), {"before": [(3, last, without_head(0, zoo.HEADS))]}),
    ]
    found, rows = run_of(loaded, tokens).measured([BASELINE, *(variant for variant, _ in cases)])
    plain = by_hand(loaded, tokens, name)
    same(found, rows, 0, plain, tokens)
    for index, (_, hooks) in enumerate(cases, start=1):
        same(found, rows, index, by_hand(loaded, tokens, name, **hooks), tokens)
    assert found["nll"].n_unique() == len(found)  # each changes something
    np.testing.assert_allclose(found["nll_change"], found["nll"] - found["nll"][0])
    joined = rows.join(rows.filter(variant=0), on=["layer", "dim"], suffix="_before", nulls_equal=True)
    assert joined["unchanged_mean"].equals(joined["mean_before"])
    assert joined["unchanged_max_abs"].equals(joined["max_abs_before"])


def test_a_mixer_is_off_as_by_hand():
    loaded, tokens = zoo.loaded("qwen3_next"), sample()
    run = run_of(loaded, tokens)
    variants = [BASELINE, KnockOut("mixer", (0, 1, 2)), KnockOut("attention", (3,)), KnockOut("head", (3,), 1)]
    assert run.targets(weights_table())[:3] == [variants[2], variants[1], KnockOut("mlp", (0, 1, 2, 3))]
    found, rows = run.measured(variants)
    hands = [
        {"after": [(n, "linear_attn", zeros) for n in range(3)]},
        {"after": [(3, "self_attn", zeros)]},
        {"before": [(3, "self_attn.o_proj", without_head(1, zoo.HEADS))]},
    ]
    for index, hooks in enumerate(hands, start=1):
        same(found, rows, index, by_hand(loaded, tokens, "qwen3_next", **hooks), tokens)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_all_heads_off_are_attention_off_without_its_bias(name):
    loaded, tokens = zoo.loaded(name), sample()
    last = loaded.model.get_submodule(f"{PATHS[name]}.1.{MODULES[name][1]}")
    if last.bias is not None:
        with torch.no_grad():
            last.bias.zero_()
    run, ids = run_of(loaded, tokens), torch.from_numpy(tokens.tokens).long()

    def states(*variants):
        with torch.inference_mode(), ExitStack() as changes:
            for variant in variants:
                changes.enter_context(run.changed(variant, ROWS, 1, 0, 0))
            return loaded.base(ids)[0]

    off = states(KnockOut("attention", (1,)))
    assert torch.equal(states(*(KnockOut("head", (1,), head) for head in range(zoo.HEADS))), off)
    assert not torch.equal(states(*(KnockOut("head", (1,), head) for head in range(zoo.HEADS - 1))), off)


def test_dims_at_their_massive_tokens_are_set_as_by_hand():
    loaded, tokens = zoo.loaded("llama"), sample()
    with torch.no_grad():
        embeddings = loaded.model.get_input_embeddings().weight
        embeddings[:, [5, 9]] += 8 * embeddings.std()  # dims that are worth something
    run = run_of(loaded, tokens)
    targets = [one for one in run.targets(weights_table()) if one.target == "massive_tokens"]
    both = [(5,), (5, 9)]
    assert [(one.dims, one.positions, one.value) for one in targets] == [
        (dims, positions, value)
        for positions, sets in (("massive", both), ("massive_first", both[:1]), ("massive_later", both))
        for dims in sets
        for value in ("zero", "mean")
    ]  # fmt: skip
    found, rows = run.measured([BASELINE, *targets])
    _, posts = by_hand(loaded, tokens, "llama")
    there = {"massive": np.ones(T, bool), "massive_first": np.arange(T) == 0, "massive_later": np.arange(T) > 0}
    for index, target in enumerate(targets, start=1):
        hooks = []
        for layer, dim in zip(target.layers, target.dims, strict=True):
            where = next(one.places for one in DIMS if one.dim == dim) & there[target.positions]
            value = posts[layer, where, dim].astype(np.float64).mean() if target.value == "mean" else 0.0
            hooks.append((layer, "", setting(dim, where, value)))
        same(found, rows, index, by_hand(loaded, tokens, "llama", after=hooks), tokens)


def setting(dim, where, value):
    seen = []

    def hook(module, args, output):
        x = first(output).clone()
        x.view(T, -1)[torch.from_numpy(where[len(seen)]), dim] = value
        seen.append(1)
        return x if torch.is_tensor(output) else (x, *output[1:])

    return hook


@pytest.mark.parametrize(("name", "down"), [("llama", "mlp.down_proj"), ("gpt2", "mlp.c_proj")])
def test_super_weights_are_scaled_and_their_spike_restored(name, down):
    loaded, tokens = zoo.loaded(name), sample(lengths=(T, T, 9))
    modules = [loaded.model.get_submodule(f"{PATHS[name]}.{layer}.{down}") for layer in (1, 2)]
    row, col = (6, 4) if name == "gpt2" else (4, 6)  # Conv1D keeps [in, out]
    with torch.no_grad():
        for module in modules:
            module.weight[4, 6] = -20.0
    targets = weight_targets(weights_table((1, row, col, 600.0), (2, row, col, 900.0)))
    alone, both = targets[: len(SCALES) + 1], targets[len(SCALES) + 1 :]
    assert [one.scale for one in alone] == [*SCALES, None] == [one.scale for one in both]
    assert {one.layers for one in alone} == {(2,)} and {one.layers for one in both} == {(1, 2)}
    found, rows = run_of(loaded, tokens).measured([BASELINE, *targets])
    scored = dict(zip(targets, found.rows(named=True)[1:], strict=True))
    for one in targets:
        if one.scale == 1.0:
            assert scored[one]["nll"] == found["nll"][0] and scored[one]["nll_change"] == 0.0
    _, written = kept_outputs(loaded, tokens, modules)
    for index, target in enumerate(targets, start=1):
        if target.scale not in (0.0, 0.5, 3.0, None):
            continue
        hooks = []
        with torch.no_grad():
            for layer in target.layers:
                modules[layer - 1].weight[4, 6] = -20.0 * (target.scale or 0)
                if target.value == "restored":
                    hooks.append((layer, down, putting_back(row, written[layer - 1], tokens)))
        same(found, rows, index, by_hand(loaded, tokens, name, after=hooks), tokens)
        with torch.no_grad():
            for module in modules:
                module.weight[4, 6] = -20.0


def kept_outputs(loaded, tokens, modules):
    written = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda m, a, out, own=own: own.append(out.clone().view(T, -1)))
        for module, own in zip(modules, written, strict=True)
    ]
    nll = losses(loaded.model, tokens)
    for handle in handles:
        handle.remove()
    return nll, written


def putting_back(row, written, tokens):
    seen = []

    def hook(module, args, output):
        n = len(seen)
        before = written[n][:, row] * torch.from_numpy(tokens.mask[n])
        at = int(before.abs().argmax())
        output = output.clone()
        output.view(T, -1)[at, row] = before[at]
        seen.append(1)
        return output

    return hook


def every_kind(run):
    weights = weights_table((2, 4, 6, 99.0)) if "mlp_down" in run.blocks[2].sites else weights_table()
    return [BASELINE, *run.targets(weights), *head_targets(run.heads)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "olmoe", "gemma3_text"])
def test_passes_that_begin_at_a_block_give_what_whole_passes_give(name, monkeypatch):
    tokens, loaded = sample(lengths=(T, 9, T)).head(2, T), zoo.loaded(name)
    massive = [MassiveDim(one.dim, one.step_up, one.places[:2]) for one in DIMS]
    run = run_of(loaded, tokens, massive)
    variants = every_kind(run)
    found = run.measured(variants)
    monkeypatch.setattr(Prefixes, "start", lambda self, wanted: 0)
    for one, other in zip(found, run_of(loaded, tokens, massive).measured(variants), strict=True):
        assert one.equals(other)


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe"])
def test_variants_that_share_a_batch_differ_by_rounding(name):
    tokens, loaded = sample(), zoo.loaded(name)
    alone, together = run_of(loaded, tokens), run_of(loaded, tokens)
    together._batch_size = 12  # as on a GPU: four variants of three sequences
    variants = every_kind(alone)
    for one, other in zip(alone.measured(variants), together.measured(variants), strict=True):
        numbers = [name for name, dtype in one.schema.items() if dtype == pl.Float64 and name != "nll_change"]
        assert one.drop(numbers, "nll_change", strict=False).equals(other.drop(numbers, "nll_change", strict=False))
        for column in numbers:
            expected = one[column].to_numpy()
            np.testing.assert_allclose(other[column].to_numpy(), expected, rtol=30 * BOUND, atol=1e-6)


def test_heads_are_found_where_they_are():
    of_layers = {name: [zoo.HEADS] * zoo.BLOCKS for name in zoo.CONFIGS} | {"qwen3_next": [None] * 3 + [zoo.HEADS]}
    for name, heads in of_layers.items():
        loaded = zoo.loaded(name)
        found, unknown = find_heads(loaded, find_sites(loaded))
        assert [found.get(layer) for layer in range(zoo.BLOCKS)] == heads, name
        assert unknown.keys() == {layer for layer, number in enumerate(heads) if number is None}


def test_heads_that_do_not_lie_side_by_side_are_not_told():
    loaded = zoo.loaded("llama")
    last = loaded.model.model.layers[2].self_attn.o_proj
    last.register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))
    found, unknown = find_heads(loaded, find_sites(loaded))
    assert found == {0: 4, 1: 4, 3: 4} and "side by side" in unknown[2]


def test_the_targets_are_what_there_is():
    assert sublayer_targets({"attention": [0, 2], "mixer": [], "mlp": [1]}) == [
        KnockOut("attention", (0, 2)), KnockOut("mlp", (1,)), KnockOut("attention", (0,)), KnockOut("attention", (2,)),
    ]  # fmt: skip
    assert head_targets({3: 2, 1: 1}) == [
        KnockOut("head", (1,), 0),
        KnockOut("head", (3,), 0),
        KnockOut("head", (3,), 1),
    ]
    assert weight_targets(weights_table()) == [] == massive_targets([], {"massive": places()})
    unplaced = MassiveDim(7, None, places((0, 0)))  # without resid_post
    assert massive_targets([unplaced], {"massive": np.ones((N, T), bool)}) == []


def massive_table(*rows):
    """Rows (sequence, layer, token, dim, rule, massive_all)."""
    names = ("sequence", "layer", "token", "dim", "rule", "massive_all")
    return pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows], schema=MASSIVE.schema)


def test_a_dim_is_massive_where_it_is_in_any_layer():
    dims = dims_table(
        ("massive", 5, 900.0, 1, True, "all"), ("massive", 9, 950.0, 2, True, "all"),
        ("massive", 6, 990.0, 2, False, "all"), ("massive", 7, 990.0, 2, True, "without_first"),
        ("dettmers", 8, 990.0, 2, True, "all"),
    )  # fmt: skip
    rows = massive_table(
        (0, 1, 0, 5, "massive", True), (0, 2, 0, 5, "massive", True), (1, 3, 4, 5, "massive", True),
        (1, 3, 5, 5, "massive", False), (3, 1, 0, 5, "massive", True), (0, 1, 16, 5, "massive", True),
        (0, 1, 3, 5, "other", True),
    )  # fmt: skip
    nine, five = massive_dims(dims, rows, ["massive"], (N, T))
    assert (nine.dim, nine.step_up, five.dim, five.step_up) == (9, 2, 5, 1)
    assert np.argwhere(five.places).tolist() == [[0, 0], [1, 4]] and not nine.places.any()


class KnockOutFiles(Files):
    def __init__(self, folder, name="llama", **options):
        super().__init__(folder, name, dims=dims_table(("massive", 5, 900.0, 1, True, "all")), **options)
        rows = massive_table((0, 1, 0, 5, "massive", True), (0, 1, 7, 5, "massive", True))
        write_table(folder / "massive.parquet", rows, MASSIVE, self.provenance)

    def knock_out(self, length=T, cost=1e9):
        names = ("knock_outs", "knock_out_dims", "spikes")
        inputs = ("dims.parquet", "massive.parquet", "super_weights.parquet")
        knock_out(
            self.path("source.json"), self.path("tokens.safetensors"), *map(self.path, inputs),
            *(self.path(f"{name}.parquet") for name in names), sequences=2, length=length, cost=cost, batch_size=2,
            dtype="float32", device="cpu", attention="sdpa", threads=1, trust_remote_code=False,
        )  # fmt: skip
        read = [
            read_table(self.path(f"{name}.parquet"), table)
            for name, table in zip(names, (KNOCK_OUTS, KNOCK_OUT_DIMS, SPIKES), strict=True)
        ]
        return [rows for rows, _ in read], read[0][1]["knock_out"]


def test_the_tables_say_what_was_run(tmp_path):
    files = KnockOutFiles(tmp_path)
    model = zoo.build("llama")
    ids = torch.from_numpy(files.tokens.tokens[:1]).long()
    plant("llama", model, 1, 17, {33: 5.0, 34: 9.0}, ids)
    model.save_pretrained(tmp_path / "model")
    found, _ = files.search()
    assert found.select("layer", "row", "col").rows() == [(1, 34, 17), (1, 33, 17)]
    (rows, dims, spikes), facts = files.knock_out(length=10)
    assert facts["tokens"] == facts["head_tokens"] == 10 and facts["dims"] == [5]
    assert facts["not_tried"] == {"head": {}, "attention": {}, "mixer": {}, "mlp": {}}
    number = {"baseline": 2, "attention": 5, "mlp": 5, "massive_tokens": 6, "weight": 2 * 12, "head": 16}
    assert dict(rows["target"].value_counts().rows()) == number
    assert rows["variant"].to_list() == list(range(len(rows)))
    assert rows.filter(target="baseline")["nll"].n_unique() == 1
    assert len(dims) == len(rows) * zoo.BLOCKS * 2
    assert spikes["layer"].to_list() == list(range(zoo.BLOCKS))
    kept = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_hook(
            lambda m, args, out, layer=layer: kept.update({layer: (args[0][0], out[0])})
        )
    with torch.no_grad():
        model(ids[:, :10])
    for row, (act, down) in zip(spikes.rows(named=True), kept.values(), strict=True):
        for site, tensor, index in (("mlp_act", act, "col"), ("mlp_down", down, "row")):
            position, dim = divmod(int(tensor.abs().argmax()), tensor.shape[1])
            assert (row[f"{site}_token"], row[index]) == (position, dim)
            assert row[site] == pytest.approx(float(tensor[position, dim]), rel=1e-4)
        weight = model.model.layers[row["layer"]].mlp.down_proj.weight
        assert row["weight"] == pytest.approx(weight[row["row"], row["col"]].item())
        assert row["spikes"] == (row["layer"] == 1) == row["found"]


def test_heads_have_a_sample_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("outlier_features.ablate.ablation_sample.ALWAYS", 0)
    monkeypatch.setattr("outlier_features.ablate.ablation_sample.FEWEST", 2)
    monkeypatch.setitem(zoo.CONFIGS, "llama", {**zoo.CONFIGS["llama"], "num_attention_heads": 16})
    files = KnockOutFiles(tmp_path)
    files.search()
    (rows, _, _), facts = files.knock_out(cost=8.0)
    assert 2 < facts["head_tokens"] < facts["tokens"] <= T
    of_heads = rows.filter((pl.col("target") == "head").cum_sum() > 0)
    assert set(of_heads["tokens"]) == {2 * (facts["head_tokens"] - 1)}
    base = rows.filter(target="baseline")
    assert base["tokens"].to_list() == [2 * (facts["tokens"] - 1), 2 * (facts["head_tokens"] - 1)]
    np.testing.assert_allclose(of_heads["nll_change"], of_heads["nll"] - base["nll"][1])


def test_what_cannot_be_had(tmp_path):
    files = KnockOutFiles(tmp_path, "olmoe")
    with pytest.raises(InputError, match="routes tokens"):
        files.search()
    write_table(tmp_path / "super_weights.parquet", weights_table(), SUPER_WEIGHTS, files.provenance)
    leave_out("super_weights", InputError("the MLP routes tokens to experts"), tmp_path)
    (rows, _, spikes), _ = files.knock_out()
    assert spikes.is_empty() and "weight" not in set(rows["target"]) and "mlp" in set(rows["target"])
    (tmp_path / "none").mkdir()
    without = KnockOutFiles(tmp_path / "none", no_loss="a position sees later ones")
    without.search()
    with pytest.raises(InputError, match="a position sees later ones"):
        without.knock_out()
