"""Attention sinks against loops over queries and keys, and the rule against plain transformers."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

import zoo
from outlier_features.attention.kept_patterns import AttentionMaps, layers_of_interest
from outlier_features.attention.map_attention import map_attention
from outlier_features.attention.sink_counts import SinkCounter, alpha
from outlier_features.attention.sinks_schema import SINKS
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import write_json
from outlier_features.files.tables import read_table, write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.tokens.tokens import tokens_digest

RNG = np.random.default_rng(0)


def random_pattern(heads, length, visible, learned=False):
    """Rows that sum to 1 over what is visible."""
    weights = RNG.exponential(size=(heads, length, length + learned)) ** 3
    weights[..., :length] *= visible
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def looped_alpha(pattern, visible):
    heads, length, keys = pattern.shape
    found = np.zeros((heads, keys))
    for head in range(heads):
        for key in range(keys):
            queries = [q for q in range(length) if key == length or visible[q, key]]
            found[head, key] = sum(float(pattern[head, q, key]) for q in queries) / len(queries)
    return found


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("window", [3, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_alpha_is_the_mean_over_queries_that_see_the_key(causal, window, learned):
    distance = np.subtract.outer(np.arange(9), np.arange(9))
    visible = (abs(distance) < window) & ((distance >= 0) | (not causal))
    pattern = random_pattern(5, 9, visible, learned)
    np.testing.assert_allclose(alpha(pattern, visible), looped_alpha(pattern, visible), rtol=1e-6)


def test_planted_sinks_are_counted_over_sequences_and_padding_is_not():
    """Head 0 gives key 0 a half, in the two longer sequences only; head 1 gives key 2 all it can."""
    lengths = (6, 6, 4)
    parts = np.array([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2]], np.uint8)
    counter = SinkCounter(parts, 0.3)
    for n, size in enumerate(lengths):
        pattern = np.zeros((2, size, size), np.float32)
        for query in range(size):
            pattern[0, query, 0] = 1 if query == 0 else 0.5 if n < 2 else 0.0
            pattern[0, query, query] += 1 - pattern[0, query].sum()
            pattern[1, query, min(query, 2)] = 1
        counter.add(4, (0, 1), pattern, np.tril(np.ones((size, size), bool)))
    table = counter.table()
    assert table.schema == SINKS.schema and len(table) == 2 * 6
    rows = {(row["head"], row["token"]): row for row in table.iter_rows(named=True)}
    assert [rows[0, k]["sequences"] for k in range(6)] == [3, 3, 3, 3, 2, 2]
    assert [rows[0, k]["excluded"] for k in range(6)] == [3, 1, 0, 0, 0, 0]
    # Sequences of 6: (1 + 5 * 0.5) / 6; the one of 4: 1 / 4.
    assert rows[0, 0]["alpha"] == pytest.approx((2 * 3.5 / 6 + 0.25) / 3)
    assert rows[0, 0]["sink_rate"] == pytest.approx(2 / 3)
    assert rows[1, 2]["alpha"] == 1 and rows[1, 2]["sink_rate"] == 1
    assert rows[1, 3]["alpha"] == 0 and rows[1, 3]["sink_rate"] == 0
    # Key 5 is seen by query 5 alone, which gives itself a half.
    assert rows[0, 5]["alpha"] == pytest.approx(0.5)
    assert set(table["layer"]) == {4} and table["kv_head"].to_list() == table["head"].to_list()


def test_the_threshold_itself_is_no_sink_and_a_learned_sink_is_a_row_of_its_own():
    counter = SinkCounter(np.ones((1, 2), np.uint8), 0.25)
    pattern = np.array([[[0.25, 0, 0.75], [0.25, 0.5, 0.25]]], np.float32)
    counter.add(0, None, pattern, np.tril(np.ones((2, 2), bool)))
    table = counter.table()
    assert table.select("token", "learned", "alpha", "sink_rate", "kv_head").rows() == [
        (0, False, 0.25, 0.0, None), (1, False, 0.5, 1.0, None), (None, True, 0.5, 1.0, None),
    ]  # fmt: skip


def test_keys_that_something_unknown_hides_stop_the_count():
    length = 8
    causal = np.tril(np.ones((length, length), bool))
    window = causal & ~np.tril(causal, -3)
    counter = SinkCounter(np.ones((1, length), np.uint8), 0.3)
    counter.add(2, None, random_pattern(3, length, window), window)
    counter.require_seen()
    counter.add(5, None, random_pattern(3, length, window), causal)
    with pytest.raises(InputError, match="layer 5: no query gives anything to the key 3 positions before it"):
        counter.require_seen()


def sink_rows(rates):
    rows = [
        {"layer": layer, "head": head, "token": token, "learned": False, "alpha": rate / 2, "sink_rate": rate,
         "sequences": 1, "excluded": 0}
        for layer, of_heads in rates.items() for head, rate in enumerate(of_heads) for token in (0,)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=SINKS.schema)


@pytest.mark.parametrize(
    ("magnitudes", "rates", "layers"),
    [
        ({0: 1, 1: 60, 2: 100, 3: 20}, {0: [0, 0], 1: [0, 0.1], 2: [0.5, 0.5], 3: [0.9, 0.9]}, [1, 2, 3]),
        ({0: 1, 1: 60, 2: 100, 3: 20}, {0: [0, 0], 1: [0, 0.1], 2: [0.9, 0.9], 3: [0.5, 0.5]}, [1, 2]),
        ({0: 1, 1: 2, 2: 3, 3: 100}, {layer: [0.1 * layer] for layer in range(4)}, [3]),
        ({}, {0: [0.4, 0.2], 1: [0.1, 0.4]}, [0]),
        ({0: 1, 1: 60, 2: 100, 3: 20}, {3: [0.0]}, [3]),
        ({0: 1}, {}, []),
    ],
)
def test_layers_of_interest(magnitudes, rates, layers):
    assert list(layers_of_interest(sink_rows(rates), magnitudes)) == layers


LENGTHS = (10, 10, 6)


@pytest.fixture
def run(tmp_path):
    """What the rule reads, for a model of the zoo: three sequences, the last of them shorter."""

    def make(name, **changes):
        zoo.save(name, tmp_path / "model", **changes)
        write_json(
            tmp_path / "source.json",
            {"location": "model", "origin": "zoo", "revision": "r", "files": {}},
        )
        tokens = np.arange(20, 50, dtype=np.int32).reshape(3, 10)
        mask = np.arange(10) < np.array(LENGTHS)[:, None]
        special = np.zeros_like(mask)
        special[0, 3] = True
        provenance = {"tokens_sha256": tokens_digest(tokens, special, mask), "special_tokens": {}}
        arrays = {"tokens": tokens, "special": special, "mask": mask, "offsets": np.zeros((3, 10, 2), np.int32)}
        write_tensors(tmp_path / "tokens.safetensors", arrays, provenance)
        columns = dict.fromkeys(LAYERS.schema) | {"population": "all", "site": "resid_post"}
        rows = [columns | {"layer": layer, "max": 10.0**layer} for layer in range(4)]
        write_table(tmp_path / "layers.parquet", pl.DataFrame(rows, schema=LAYERS.schema), LAYERS, provenance)
        return tokens

    return make


def map_run(folder: Path, **changes):
    options = {
        "sequences": 16, "positions": 8, "threshold": 0.3, "kept_sequences": 3, "kept_layers": [], "dtype": "float32",
        "device": "cpu", "threads": 1, "trust_remote_code": False,
    }  # fmt: skip
    paths = [folder / f"{name}" for name in ("source.json", "tokens.safetensors", "layers.parquet")]
    map_attention(*paths, folder / "sinks.parquet", folder / "attention.safetensors", **options | changes)
    return read_table(folder / "sinks.parquet", SINKS), AttentionMaps.read(folder / "attention.safetensors")


@pytest.mark.parametrize("name", ["llama", "bert", "gpt_oss", "gemma3_text", "qwen3_next"])
def test_the_rule_counts_what_plain_transformers_gives(name, run, tmp_path):
    tokens = run(name)
    (table, provenance), maps = map_run(tmp_path, threshold=0.12)
    model = zoo.build(name)
    expected = {}
    for n, length in enumerate((8, 8, 6)):
        with torch.inference_mode():
            # Alone and without padding; the base model has no head, and an encoder is its own base.
            found = model.base_model(torch.from_numpy(tokens[n : n + 1, :length]).long(), output_attentions=True)
        layers = [3] if name == "qwen3_next" else range(4)
        for layer, pattern in zip(layers, [a for a in found.attentions if a is not None], strict=True):
            pattern = pattern[0].numpy()
            if name == "gpt_oss":
                pattern = np.concatenate([pattern, 1 - pattern.sum(-1, keepdims=True)], axis=-1)
            seen = (pattern[..., :length] > 0).any(0)
            expected[layer, n] = pattern, looped_alpha(pattern, seen)
    assert sorted(set(table["layer"])) == sorted({layer for layer, _ in expected})
    for row in table.iter_rows(named=True):
        values = []
        for n, length in enumerate((8, 8, 6)):
            key = length if row["learned"] else row["token"]
            if row["learned"] or key < length:
                values.append(expected[row["layer"], n][1][row["head"], key])
        assert row["sequences"] == len(values)
        assert row["alpha"] == pytest.approx(np.mean(values), rel=1e-5)
        assert row["sink_rate"] == pytest.approx(np.mean([value > 0.12 for value in values]))
        assert row["kv_head"] == (None if name == "bert" else row["head"] // 2)
        assert row["excluded"] == {0: 3, 3: 1}.get(row["token"], 0)
    assert table["sink_rate"].sum() > 0
    assert table.filter("learned").height == (16 if name == "gpt_oss" else 0)
    assert provenance["short_sequences"] == 1 and provenance["attention"] == "eager"
    assert provenance["layers_without_patterns"] == ([0, 1, 2] if name == "qwen3_next" else [])
    assert maps.positions == (8, 8, 6) and set(maps.patterns) <= {layer for layer, _ in expected}
    assert 3 in maps.patterns  # the largest |x| is there
    for layer, patterns in maps.patterns.items():
        assert patterns.dtype == np.float32
        for n, length in enumerate((8, 8, 6)):
            whole = np.zeros(patterns.shape[1:])
            whole[:, :length, :length] = expected[layer, n][0][..., :length]
            whole[:, :length, 8:] = expected[layer, n][0][..., length:]
            np.testing.assert_allclose(patterns[n], whole, atol=1e-6)


def test_layers_can_be_chosen(run, tmp_path):
    run("llama")
    _, maps = map_run(tmp_path, kept_layers=[2, 0], kept_sequences=1, sequences=2)
    assert sorted(maps.patterns) == [0, 2] and maps.sequences == (0,)
    assert load_file(tmp_path / "attention.safetensors")["pattern.2"].shape == (1, 4, 8, 8)
    assert json.loads(json.dumps(maps.provenance["maps"])) == maps.provenance["maps"]
    with pytest.raises(InputError, match=r"attention_maps.kept_layers: found 7, expected layers .* in 0, 1, 2, 3"):
        map_run(tmp_path, kept_layers=[7])


def test_a_model_without_attention_has_nothing_to_map(run, tmp_path):
    run("qwen3_next", layer_types=["linear_attention"] * 4)
    with pytest.raises(InputError, match="no layer of this model has attention"):
        map_run(tmp_path)
