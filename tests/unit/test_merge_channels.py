"""The statistics of a run's linear layers and its prefix tokens, compared with brute force on what plain hooks see."""

import json
import math
from collections import Counter
from statistics import median_low

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

import zoo
from outlier_features.channels.merge_channels import LAYERS, PREFIX, merge_channels
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.channels.prefix_tokens import Prefix, outlier_tokens
from outlier_features.errors import DamagedFile
from outlier_features.files.missing import MissingInput
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import TensorFile
from test_extract_activations import Run
from test_plan_run import config_of
from test_plan_run import planned as plan_of
from test_record_channels import LENGTHS, hooked_inputs, record
from tiny_project import byte_tokenizer

STATISTICS = ("absmax", "min", "max", "mean", "mean_square", "count")


class Merged:
    """What the rule writes of a run."""

    def __init__(self, run, folder, cuts=(0, None), **settings):
        self.run = run
        byte_tokenizer(run.directory / "model", template=False)
        self.chunks = [file.path for file in record(run, folder, cuts, **settings)]
        self.stats, self.prefix = folder / "channel_stats.safetensors", folder / "prefix_tokens.parquet"
        merge_channels(self.chunks, run.tokens, run.source, self.stats, self.prefix)
        self.provenance = TensorFile(self.stats).provenance
        self.rows, self.facts = read_table(self.prefix, PREFIX_TOKENS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "olmoe"])
def test_statistics_of_every_layer(name, tmp_path):
    run = Run(tmp_path, name, lengths=LENGTHS)
    merged = Merged(run, tmp_path / "run", (0, 2, None))
    found, read = load_file(merged.stats), hooked_inputs(run)
    described = {one["name"]: one for one in merged.provenance[LAYERS]}
    assert {layer for layer, _ in read if not layer.startswith("pooler")} == described.keys()
    assert len(found) == len(described) * len(STATISTICS) * 2
    for (layer, expert), calls in read.items():
        if layer not in described:
            continue
        one = described[layer]
        assert (one["experts"] > 0) == (expert is not None)
        for suffix, first in (("", 0), (".without_first", 1)):
            values = np.concatenate([values[at >= first] for values, at in calls]).astype(np.float64)
            of = {key: found[f"{layer}.{key}{suffix}"] for key in STATISTICS}
            shape = (one["width"],) if expert is None else (one["experts"], one["width"])
            assert all(of[key].shape == shape for key in STATISTICS[:-1])
            if expert is not None:
                of = {key: value[expert] for key, value in of.items()}
            assert of["count"] == len(values)
            if not len(values):
                assert all(np.isnan(of[key]).all() for key in STATISTICS[:-1])
                continue
            room = 1e-5 * np.abs(values).max()
            expected = {
                "absmax": np.abs(values).max(0), "min": values.min(0), "max": values.max(0), "mean": values.mean(0),
                "mean_square": (values**2).mean(0),
            }  # fmt: skip
            for key, value in expected.items():
                np.testing.assert_allclose(of[key], value, rtol=1e-4, atol=room)
    for one in described.values():
        for key in STATISTICS:
            assert np.array_equal(found[f"{one['name']}.{key}"], found[f"{one['reads']}.{key}"], equal_nan=True)


def test_an_expert_that_reads_nothing(tmp_path):
    run = Run(tmp_path, "olmoe", shape=(1, 3))
    merged = Merged(run, tmp_path / "run")
    found = load_file(merged.stats)
    count = found["model.layers.0.mlp.experts.down_proj.count"]
    assert count.shape == (zoo.EXPERTS,) and count.min() == 0 and count.sum() == 3 * 2
    empty = np.isnan(found["model.layers.0.mlp.experts.down_proj.absmax"])
    assert np.array_equal(empty.all(1), count == 0) and np.array_equal(empty.any(1), count == 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe"])
def test_a_plan_has_the_size_of_the_files_of_a_run(name, tmp_path):
    run = Run(tmp_path, name)
    merged = Merged(run, tmp_path / "run", (0, 2, 4, None))
    (tmp_path / "text.txt").touch()
    config = config_of(tmp_path) | {
        "models": [name], "corpora": ["text"], "extract": {"chunk_sequences": 2},
        "catalog": {"models": {name: {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}},
        "sample": {"sequences": 5, "tokens": 24},
    }  # fmt: skip
    found = plan_of(tmp_path, config)["runs"][0]["channels"]
    statistics, chunk = (
        sum(entry.nbytes for key, entry in TensorFile(path).entries.items() if ".count" not in key)
        for path in (merged.stats, merged.chunks[0])
    )
    assert found["chunks"] == 3 and found["bytes_of_statistics"] == statistics
    assert chunk <= found["bytes_of_chunk"] <= 2.5 * chunk  # of layers that read the same, one is kept
    config["skip"] = ["channels"]
    assert "not recorded" in plan_of(tmp_path, config)["runs"][0]["channels"]["unknown"]


@pytest.mark.parametrize("change", ["not recorded", "another chunk left out"])
def test_files_that_do_not_belong_together(change, tmp_path):
    run = Run(tmp_path, "llama")
    merged = Merged(run, tmp_path / "run", (0, 2, None))
    chunks = merged.chunks
    if change == "not recorded":
        chunks = [chunks[0], record(run, tmp_path / "off", (2, None), recording=False)[0].path]
    else:
        chunks = chunks[1:]
    with pytest.raises(DamagedFile):
        merge_channels(chunks, run.tokens, run.source, merged.stats, merged.prefix)


def test_a_missing_chunk_says_why(tmp_path, monkeypatch):
    run = Run(tmp_path, "llama")
    monkeypatch.setattr("outlier_features.extract.passes.find_linear_inputs", lambda *_: [][1])
    with pytest.raises(MissingInput, match="statistics of the inputs of linear layers"):
        Merged(run, tmp_path / "run")


def test_a_layer_whose_input_is_not_finite_is_absent_alone(tmp_path, monkeypatch):
    """As in float16, where an MLP's neurons may overflow and nothing of the stream does."""
    from outlier_features.channels.record_channels import ChannelRecorder

    run, receive = Run(tmp_path, "llama"), ChannelRecorder._receive

    def overflows(self, one, rows):
        if one.name == "model.layers.2.mlp.down_proj":
            changed = rows.values.clone()
            changed[3, 5] = torch.inf
            rows = type(rows)(changed, rows.positions, rows.experts)
        receive(self, one, rows)

    monkeypatch.setattr(ChannelRecorder, "_receive", overflows)
    merged = Merged(run, tmp_path / "run")
    assert list(merged.provenance["absent_layers"]) == ["model.layers.2.mlp.down_proj"]
    assert "model.layers.2.mlp.down_proj" not in {one["name"] for one in merged.provenance[LAYERS]}
    assert set(merged.facts[PREFIX]["mean_counts"]) == {"0", "1", "3"}


def planted(tmp_path, name="llama", **changes):
    """Tokens 7 and 9 are massive in the first neuron of layers 1 and 2 (9 in layer 2 alone), 11 once in layer 2."""
    run = Run(tmp_path, name, shape=(12, 24), lengths=[24] * 10 + [17, 5])
    model = run.model()
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        for dim, token in enumerate((7, 9, 11)):
            embedding[token] = 0
            embedding[token, dim] = 100
        for layer in (1, 2):
            mlp = model.model.layers[layer].mlp
            model.model.layers[layer].post_attention_layernorm.weight[:3] = 1
            for dim in range(3) if layer == 2 else (0,):
                mlp.gate_proj.weight[0, dim] = mlp.up_proj.weight[0, dim] = 0.8
    model.save_pretrained(run.directory / "model")
    generator = np.random.default_rng(1)
    ids = generator.integers(20, 60, run.ids.shape)
    ids[:, 0] = 7
    ids[:8, 4], ids[2, 11], ids[:5, 9], ids[3, 20] = 7, 7, 9, 11
    run.ids = np.where(run.mask, ids, 0).astype(np.int32)
    run.write_tokens()
    return run


def by_brute_force(run):
    """Length, and of each id count, sequences, layers and largest value, from hooks and the standard library."""
    counts, sequences, layers, largest, means = Counter(), {}, {}, {}, []
    for layer in range(zoo.BLOCKS):
        found = 0
        for n, (values, _) in enumerate(hooked_inputs(run)[f"model.layers.{layer}.mlp.down_proj", None]):
            of_tokens = np.abs(values).max(1).tolist()
            middle = median_low(of_tokens)
            for t, value in enumerate(of_tokens):
                if value > 64 * middle:
                    found += 1
                    token = int(run.ids[n, t])
                    if t:
                        counts[token] += 1
                        sequences.setdefault(token, set()).add(n)
                        layers.setdefault(token, set()).add(layer)
                        largest[token] = max(largest.get(token, 0), value)
        means.append(found / len(run.ids))
    return math.ceil(max(means)), means, counts, sequences, layers, largest


@pytest.mark.parametrize("cuts", [(0, None), (0, 5, 11, None)])
def test_prefix_tokens_by_brute_force(cuts, tmp_path):
    run = planted(tmp_path)
    (run.directory / "model" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[CLS]"}))
    merged = Merged(run, tmp_path / "run", cuts)
    length, means, counts, sequences, layers, largest = by_brute_force(run)
    assert {7, 9, 11} == counts.keys() and length >= 2
    assert merged.facts[PREFIX]["length"] == length
    assert list(merged.facts[PREFIX]["mean_counts"].values()) == means
    own = merged.rows.filter(~pl.col("appended"))
    assert own["token_id"].to_list() == [token for token, _ in counts.most_common()]
    for row in own.iter_rows(named=True):
        token = row["token_id"]
        assert (row["count"], row["sequences"], row["layers"]) == (
            counts[token], len(sequences[token]), len(layers[token]),
        )  # fmt: skip
        assert row["max_abs"] == pytest.approx(largest[token], rel=1e-5)
    expected = [token for token, _ in counts.most_common(length)]
    assert merged.facts[PREFIX]["ids"] == [*expected, 0]
    chosen = merged.rows.filter("chosen").sort("prefix_position")
    assert chosen["token_id"].to_list() == [*expected, 0]
    assert chosen["prefix_position"].to_list() == list(range(len(chosen)))
    assert merged.rows["text"].to_list()[-1] == "[CLS]" and all(merged.rows["text"])


def test_the_median_is_the_lower_middle_value_of_a_sequence_without_its_padding():
    largest = np.array([[1, 1, 64, 65, 1000, 1000], [2, 2, 3, 129, 0, 0]], np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]], bool)
    assert outlier_tokens(largest, mask).tolist() == [
        [False, False, False, True, False, False],
        [False] * 3 + [True] + [False] * 2,
    ]


def prefix_of(counts, sequences=20, first=True):
    """Of one layer whose sequences have an outlier token at each of some places: (sequence, position) by id."""
    ids, largest = np.full((sequences, 8), 50), np.ones((sequences, 8), np.float32)
    if first:
        largest[:, 0] = 100
    for token, places in counts.items():
        for n, t in places:
            ids[n, t], largest[n, t] = token, 100
    return Prefix.of({0: [(largest, ids, np.ones_like(ids, bool))]})


def test_an_only_id_in_few_sequences_is_dropped_and_the_beginning_stays():
    rare, often = prefix_of({3: [(0, 4)]}), prefix_of({3: [(0, 4), (1, 4)]})
    assert rare.length == often.length == 2 and rare.ids == [] and often.ids == [3]
    frame = rare.frame(0)
    assert frame.filter("chosen")["token_id"].to_list() == [0] and frame["prefix_position"].to_list() == [None, 0]
    assert prefix_of({3: [(0, 4)], 4: [(1, 4)]}).ids == [3, 4]  # two are kept, however rare


def test_without_outlier_tokens_there_is_no_prefix():
    none = prefix_of({}, first=False)
    assert none.length == 0 and none.frame(0).is_empty()
    assert prefix_of({}).frame(0)["token_id"].to_list() == [0]  # those of first positions alone
    assert prefix_of({}).frame(None).is_empty()


@pytest.mark.parametrize(("name", "why"), [("bert", "not causal"), ("olmoe", "no block has a dense MLP")])
def test_models_without_a_prefix_say_why(name, why, tmp_path):
    merged = Merged(Run(tmp_path, name), tmp_path / "run")
    assert merged.rows.is_empty() and why in merged.facts[PREFIX]["absent"]
