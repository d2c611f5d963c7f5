"""The neurons of whole models, ranked in the extraction's pass, against hooks in plain torch."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import zoo
from outlier_features.errors import InputError
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.files.missing import MissingInput
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.neurons import record_neurons
from outlier_features.neurons.merge_stores import merge_stores
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.neurons.rank_neurons import rank_neurons
from outlier_features.neurons.ranked_at import serving_ranking
from test_extract_activations import SETTINGS, Run, bits
from test_moe_layers import neurons_by_hand
from test_neurons import list_by_hand, statistics_by_hand

RANKING = {"examples": 3, "high_norm": 1.02}
POPULATIONS = ("all", "without_first", "without_high_norm")
# What reads the neurons of a block's dense MLP; and of blocks with experts, the module that holds these.
DOWN = {
    "llama": "model.layers.{}.mlp.down_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "bert": "encoder.layer.{}.output.dense",
    "deepseek_v3": "model.layers.{}.mlp.down_proj",
}
SHARED = {
    "deepseek_v3": "model.layers.{}.mlp.shared_experts.down_proj",
    "qwen2_moe": "model.layers.{}.mlp.shared_expert.down_proj",
}
EXPERTS = {
    "qwen2_moe": "model.layers.{}.mlp.experts",
    "olmoe": "model.layers.{}.mlp.experts",
    "deepseek_v3": "model.layers.{}.mlp.experts",
}
BLOCKS = {
    "llama": "model.layers.{}",
    "gpt_neox": "gpt_neox.layers.{}",
    "gpt2": "transformer.h.{}",
    "bert": "encoder.layer.{}",
    "olmoe": "model.layers.{}",
    "deepseek_v3": "model.layers.{}",
    "qwen2_moe": "model.layers.{}",
}


class Ranked:
    """A run's neurons, of chunks that begin at `cuts`."""

    def __init__(self, run, name, cuts=(0,), examples=RANKING["examples"], **settings):
        self.run, self.folder, ends = run, run.directory / name, (*cuts, len(run.ids))
        self.folder.mkdir(exist_ok=True)
        self.chunks = [self.folder / f"neurons{start}" for start in cuts]
        for (start, stop), chunk in zip(pairwise(ends), self.chunks, strict=True):
            self.extract(chunk, start, stop, **settings)
        self.store = self.folder / "neurons.safetensors"
        self.tables = {one: self.folder / f"{one.name}.parquet" for one in (NEURONS, NEURON_STATISTICS)}
        rank_neurons(self.chunks, run.tokens, *self.tables.values(), self.store, examples=examples)

    def extract(self, chunk, start, stop, **settings):
        files = (self.folder / f"{kind}{start}" for kind in ("activations", "losses"))
        extract_activations(
            self.run.source, self.run.tokens, *files, chunk, self.folder / f"channels{start}", start=start, stop=stop,
            **{"ranking": RANKING, **SETTINGS, **settings},
        )  # fmt: skip

    def rows(self, table):
        return read_table(self.tables[table], table)[0]


def hooked_values(run):
    """Of each sequence, by block: neurons (T, M), or of each expert positions and values; and norms (T,)."""
    model, name, seen = run.model(), run.name, []
    handles, here = [], {}
    for layer in range(zoo.BLOCKS):

        def output(module, args, out, layer=layer):
            here["norm", layer] = (out[0] if isinstance(out, tuple) else out)[0].double().norm(dim=-1).numpy()

        def down(module, args, layer=layer):
            here["neurons", layer] = args[0].reshape(-1, args[0].shape[-1]).numpy().copy()

        def experts(module, args, out, layer=layer):
            hidden, chosen = args[0], args[1]
            for expert in range(zoo.EXPERTS):
                rows = (chosen == expert).any(dim=-1).nonzero()[:, 0]
                if len(rows):
                    values = neurons_by_hand(module, expert, hidden[rows])
                    here["expert", layer, expert] = (rows.numpy(), values.numpy())

        handles.append(model.get_submodule(BLOCKS[name].format(layer)).register_forward_hook(output))
        routed = EXPERTS.get(name, "").format(layer)
        if routed in dict(model.named_modules()) and routed:
            handles.append(model.get_submodule(routed).register_forward_hook(experts))
            dense = SHARED.get(name, "").format(layer)
        else:
            dense = DOWN[name].format(layer)
        if dense:
            handles.append(model.get_submodule(dense).register_forward_pre_hook(down))
    for ids, mask in zip(run.ids, run.mask, strict=True):
        here.clear()
        padded = (
            {} if mask.all() or name not in zoo.ENCODERS else {"attention_mask": torch.from_numpy(mask)[None].long()}
        )
        with torch.no_grad():
            model(torch.from_numpy(ids.astype(np.int64))[None], **padded)
        seen.append(dict(here))
    return seen


def cells_of(run, seen, population, layer, expert):
    """Sequence, positions and values of a population."""
    for sequence, here in enumerate(seen):
        own = run.mask[sequence].copy()
        norms = here["norm", layer]
        if population == "without_high_norm":
            own &= ~(norms > RANKING["high_norm"] * np.median(norms[run.mask[sequence]]))
        if population == "without_first":
            own[0] = False
        if expert is None:
            yield sequence, np.flatnonzero(own), here["neurons", layer][own]
        elif ("expert", layer, expert) in here:
            rows, values = here["expert", layer, expert]
            yield sequence, rows[own[rows]], values[own[rows]]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "bert", "olmoe", "deepseek_v3", "qwen2_moe"])
def test_against_hooks(name, tmp_path):
    run = Run(tmp_path, name, lengths=[24, 7, 24, 1, 13])
    found = Ranked(run, "ranked", cuts=(0, 2))
    seen = hooked_values(run)
    lists = found.rows(NEURONS).partition_by("population", "layer", "expert", "neuron", "side", as_dict=True)
    statistics = found.rows(NEURON_STATISTICS).rows_by_key(
        ("population", "layer", "expert", "neuron"), named=True, unique=True
    )
    high = 0
    for population in POPULATIONS:
        for layer in range(zoo.BLOCKS):
            has_experts = any(key[:2] == ("expert", layer) for here in seen for key in here)
            dense = [None] if ("neurons", layer) in seen[0] else []
            for expert in [*dense, *(range(zoo.EXPERTS) if has_experts else [])]:
                is_dense = expert is None
                cells = list(cells_of(run, seen, population, layer, expert))
                high += sum(len(tokens) for _, tokens, _ in cells) if population == "without_high_norm" else 0
                width = seen[0]["neurons", layer].shape[1] if is_dense else 32
                for neuron in (0, 1, width - 1):
                    key = (population, layer, expert, neuron)
                    for side in ("max", "min"):
                        expected = list_by_hand(cells, neuron, side, RANKING["examples"])
                        rows = lists.pop((*key, side)) if expected else []
                        for row, (value, *place) in zip(
                            rows.rows(named=True) if expected else [], expected, strict=True
                        ):
                            assert row["value"] == (value if is_dense else pytest.approx(value, rel=1e-4))
                            assert [row["sequence"], row["token"]] == place
                    row = statistics.pop(key)
                    if not any(len(tokens) for _, tokens, _ in cells):
                        assert row["tokens"] == 0 and row["max"] is None and row["histogram"] is None
                        continue
                    expected = statistics_by_hand(cells, neuron)
                    for column in ("tokens", "active_share", "mean", "std", "kurtosis"):
                        wanted = expected[column]
                        if wanted is None:
                            assert row[column] is None
                            continue
                        precision = 1e-9 if is_dense else 1e-4
                        assert row[column] == pytest.approx(wanted, rel=precision, abs=precision * expected["std"]), (
                            column
                        )
                    if is_dense:
                        assert {one: row[one] for one in expected if one[:1] in "h" or one in ("min", "max")} == {
                            one: expected[one] for one in expected if one[:1] in "h" or one in ("min", "max")
                        }
    assert 0 < high < zoo.BLOCKS * run.mask.sum() * (1 + 2 * (name in EXPERTS))
    assert not {key[1:4] for key in lists} & {(0, None, 0)} and len(statistics)


def tables(ranked):
    """All but the moments, whose last bits depend on the order of sums."""
    inexact = ("mean", "std", "kurtosis")
    return (
        ranked.rows(NEURONS),
        ranked.rows(NEURON_STATISTICS).drop(inexact),
        ranked.rows(NEURON_STATISTICS).select(inexact),
    )


def require_same(one, other):
    for exact in range(2):
        assert tables(one)[exact].equals(tables(other)[exact])
    for column in tables(one)[2].columns:
        a, b = (tables(each)[2][column].to_numpy() for each in (one, other))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "bert", "olmoe"])
def test_the_same_whatever_the_chunks_and_threads(name, tmp_path):
    run = Run(tmp_path, name, lengths=[24, 7, 24, 1, 13])
    whole = Ranked(run, "whole")
    # Products of few rows depend on torch's threads.
    require_same(Ranked(run, "cut", (0, 1, 4), threads=1 if name == "olmoe" else 2, batch_size=3), whole)
    assert bits(TensorFile(whole.folder / "activations0")) == bits(TensorFile(plain(run, tmp_path / "plain")))


def plain(run, folder):
    """Activations of a pass that ranks nothing."""
    folder.mkdir()
    files = [folder / kind for kind in ("activations", "losses", "neurons", "channels")]
    extract_activations(run.source, run.tokens, *files, start=0, stop=len(run.ids), **SETTINGS)
    assert not TensorFile(files[2]).entries
    return files[0]


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_block_by_block(name, tmp_path):
    run = Run(tmp_path, name)
    require_same(Ranked(run, "layerwise", placement="layerwise"), Ranked(run, "whole"))


def test_a_chunk_that_was_broken_off_goes_on_with_what_it_ranked(tmp_path, monkeypatch, capfd):
    run, taken = Run(tmp_path, "llama"), []
    take = record_neurons.NeuronRecorder._take

    def until_the_third_of_block_2(self, index, output):
        taken.append(index)
        if taken.count(2) == 3:
            raise KeyboardInterrupt
        take(self, index, output)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(record_neurons.NeuronRecorder, "_take", until_the_third_of_block_2)
        Ranked(run, "ranked", placement="layerwise")
    resumed = Ranked(run, "ranked", placement="layerwise")
    assert "2 of 4 were finished before" in capfd.readouterr().err
    require_same(resumed, Ranked(run, "whole"))


class Part(Run):
    """Some of a run's sequences as a corpus of their own."""

    def __init__(self, run, name, rows):
        self.directory, self.name, self.source = run.directory / name, run.name, run.source
        self.directory.mkdir()
        self.ids, self.mask = run.ids[rows], run.mask[rows]
        self.write_tokens()


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_stores_of_two_corpora_are_those_of_one_run_over_both(name, tmp_path):
    run = Run(tmp_path, name, lengths=[24, 7, 24, 1, 13])
    whole = Ranked(run, "whole")
    parts = [Ranked(Part(run, f"corpus{n}", rows), "ranked") for n, rows in enumerate((slice(2), slice(2, 5)))]
    merge_stores([part.store for part in parts], tmp_path / "merged")
    merged, expected = TensorFile(tmp_path / "merged"), TensorFile(whole.store)
    assert list(merged.entries) == list(expected.entries)
    for tensor in expected.entries:
        found, wanted = merged.array(tensor), expected.array(tensor)
        if tensor.endswith("moments"):
            np.testing.assert_allclose(found[[0, 1, 3]], wanted[[0, 1, 3]], rtol=1e-9, atol=1e-15)
        else:
            assert np.array_equal(found, wanted), tensor
    said = merged.provenance
    assert [(one["first"], one["sequences"]) for one in said["corpora"]] == [(0, 2), (2, 3)]
    assert said["sequences"] == 5 and said["banks"] == expected.provenance["banks"]


def test_stores_that_were_ranked_otherwise_are_not_merged(tmp_path):
    run = Run(tmp_path, "llama")
    one = Ranked(run, "one")
    other = Ranked(run, "other", ranking={"examples": 3, "high_norm": 5.0})
    with pytest.raises(InputError, match="high_norm"):
        merge_stores([one.store, other.store], tmp_path / "merged")


def test_longer_lists_serve_shorter_ones(tmp_path):
    run = Run(tmp_path, "llama")
    longer, shorter = {"examples": 4, "high_norm": 1.02}, {"examples": 2, "high_norm": 1.02}
    found = Ranked(run, "long", cuts=(0, 2), examples=2, ranking=longer)
    require_same(found, Ranked(run, "short", examples=2, ranking=shorter))
    chunk = found.chunks[0]
    with pytest.raises(InputError, match="expected 9"):
        rank_neurons(found.chunks, run.tokens, *found.tables.values(), found.store, examples=9)
    for wanted, serving in (
        (longer, longer),
        (shorter, longer),
        (None, longer),
        ({"examples": 5, "high_norm": 1.02}, {"examples": 5, "high_norm": 1.02}),
        ({"examples": 2, "high_norm": 3.0}, {"examples": 2, "high_norm": 3.0}),
    ):
        assert serving_ranking(wanted, chunk) == serving
    assert serving_ranking(shorter, tmp_path / "none") == shorter and serving_ranking(None, tmp_path / "none") is None
    plain(run, tmp_path / "plain")
    assert serving_ranking(None, tmp_path / "plain/neurons") is None
    assert serving_ranking(shorter, tmp_path / "plain/neurons") == shorter


def test_a_model_whose_neurons_are_not_seen(tmp_path):
    with pytest.raises(MissingInput, match="2 parts that treat each token alone"):
        Ranked(Run(tmp_path, "granitemoeshared"), "ranked")


def test_a_chunk_without_sequences(tmp_path):
    run = Run(tmp_path, "llama")
    whole = Ranked(run, "whole")
    whole.extract(whole.folder / "neurons5", 5, 9)
    assert not TensorFile(whole.folder / "neurons5").entries
    before = tables(whole)
    rank_neurons(
        [*whole.chunks, whole.folder / "neurons5"], run.tokens, *whole.tables.values(), whole.store, examples=3
    )
    assert all(one.equals(other) for one, other in zip(tables(whole), before, strict=True))
