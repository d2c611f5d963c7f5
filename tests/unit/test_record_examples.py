"""What is recorded for pages: against every activation from plain hooks, and formulas written for each architecture."""

import hashlib
import json
from functools import cache, cached_property

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import zoo
from gallery_tables import activations, write_ranking
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.missing import MissingInput
from outlier_features.files.tables import read_table, write_table
from outlier_features.gallery.gallery_schema import GALLERY_DIMS, GALLERY_EXAMPLES, GALLERY_NEURONS, GALLERY_VALUES
from outlier_features.gallery.record_examples import record_examples
from outlier_features.gallery.typical_examples import TypicalExamples, interval_bounds
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.origin.origin_schema import ORIGIN_NEURONS
from outlier_features.tokens.tokens import Tokens

LOADING = {"dtype": "float32", "device": "cpu", "attention": "eager", "threads": 1, "trust_remote_code": False,
           "part": None, "placement": "one"}  # fmt: skip
TABLES = (GALLERY_NEURONS, GALLERY_EXAMPLES, GALLERY_VALUES, GALLERY_DIMS)
SEQUENCES, LENGTH, EXAMPLES = 12, 20, 2
RULES = {"massive": {"kind": "massive", "threshold": 100.0, "ratio": 1000.0}}
SELECTED = (7, 3, 30)  # the largest first


class Run:
    """What the rule reads of a tiny model, with sequences of different lengths; `write` makes its tables."""

    def __init__(self, directory, name, **changes):
        self.directory, self.model = directory, zoo.build(name, **changes)
        self.model.config.use_cache = False
        self.model.save_pretrained(directory / "model")
        record = {"location": "model", "origin": "org/tiny", "revision": "abc", "files": {}}
        (directory / "source.json").write_text(json.dumps(record))
        rng = np.random.default_rng(1)
        ids = rng.integers(10, zoo.VOCABULARY, (SEQUENCES, LENGTH)).astype(np.int32)
        mask = np.arange(LENGTH) < rng.integers(8, LENGTH + 1, SEQUENCES)[:, None]
        flags = np.zeros_like(mask)
        provenance = {"model": "tiny", "model_revision": "abc", "rules": RULES, "dtype": "float32"}
        offsets = np.zeros((*ids.shape, 2), np.int32)
        self.texts = [f"text number {n} é".encode() for n in range(SEQUENCES)]
        Tokens(ids, flags, mask, offsets, provenance).write(
            directory / "tokens.safetensors", directory / "texts.parquet", [text.decode() for text in self.texts]
        )
        self.tokens = Tokens.read(directory / "tokens.safetensors")
        self.provenance = dict(self.tokens.provenance)
        self.acts = activations(self.model, self.tokens)
        write_ranking(directory, self.acts, self.provenance, EXAMPLES)
        dims = [{"population": "all", "rule": "massive", "dim": dim, "selected": True, "max_abs": 100.0 - at}
                for at, dim in enumerate(SELECTED)]  # fmt: skip
        self._table("dims", DIMS, dims)
        self._table("origin_neurons", ORIGIN_NEURONS, [])

    def _table(self, name, table, rows):
        frame = pl.DataFrame([dict.fromkeys(table.schema) | row for row in rows], schema=table.schema)
        write_table(self.directory / f"{name}.parquet", frame, table, self.provenance)

    @cached_property
    def written(self):
        """By the settings that most tests are about."""
        return self.write()

    def write(self, to="out", **changes):
        """The four tables by name, and their provenance."""
        names = ("dims", "neurons", "origin_neurons", "texts")
        out = {table.name: self.directory / to / f"{table.name}.parquet" for table in TABLES}
        settings = {"wanted": "selected", "kurtosis": 5, "most_dims": 2, "sequences": 3, "seed": 0}
        record_examples(
            source=self.directory / "source.json", tokens=self.directory / "tokens.safetensors",
            statistics=self.directory / "neuron_statistics.parquet", **out, **settings | LOADING | changes,
            **{name: self.directory / f"{name}.parquet" for name in names},
        )  # fmt: skip
        frames = {table.name: read_table(out[table.name], table) for table in TABLES}
        return {name: frame for name, (frame, _) in frames.items()}, frames["gallery_neurons"][1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return cache(lambda name: Run(tmp_path_factory.mktemp(name), name))


def key_of(row):
    return row["layer"], row["expert"], row["neuron"]


def written(model, key):
    """W_down from a neuron to each dim."""
    layer, expert, neuron = key
    weights = dict(model.named_parameters())
    if expert is not None:
        return weights[f"model.layers.{layer}.mlp.experts.down_proj"][expert, :, neuron].detach().double().numpy()
    for name, transposed in (
        (f"model.layers.{layer}.mlp.down_proj.weight", False),
        (f"model.layers.{layer}.mlp.shared_expert.down_proj.weight", False),
        (f"transformer.h.{layer}.mlp.c_proj.weight", True),
        (f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight", False),
        (f"encoder.layer.{layer}.output.dense.weight", False),
    ):  # fmt: skip
        if name in weights:
            weight = weights[name].detach().double().numpy()
            return weight[neuron] if transposed else weight[:, neuron]
    raise AssertionError(key)


def extreme(values):
    flat = values[~np.isnan(values)].astype(np.float64)
    return max(flat.max(), flat.min(), key=abs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "bert", "olmoe", "qwen2_moe"])
def test_values_are_those_of_plain_hooks(runs, name):
    run = runs(name)
    tables, provenance = run.written
    pages = [key_of(row) for row in tables["gallery_neurons"].rows(named=True)]
    assert pages and pages == sorted(pages, key=lambda key: (key[0], -1 if key[1] is None else key[1], key[2]))
    assert provenance["neurons_that_differ"] == 0
    ranked, _ = read_table(run.directory / "neurons.parquet", NEURONS)
    kept = {}
    for row in tables["gallery_values"].rows(named=True):
        kept.setdefault(key_of(row), {})[row["sequence"]] = np.array(row["values"], np.float32)
    assert set(kept) == set(pages)
    for key, by_sequence in kept.items():
        own = pl.all_horizontal(pl.col("layer") == key[0], pl.col("neuron") == key[2],
                                pl.col("expert").eq_missing(pl.lit(key[1], pl.UInt16)))  # fmt: skip
        needed = {*ranked.filter(own)["sequence"], *tables["gallery_examples"].filter(own)["sequence"].drop_nulls()}
        assert set(by_sequence) == needed
        for sequence, values in by_sequence.items():
            assert np.array_equal(values, run.acts[key][sequence, run.tokens.mask[sequence]], equal_nan=True)


def typical(values, texts, seed):
    """Rows of intervals, one after the other by looking at each value."""
    flat = values[~np.isnan(values)].astype(np.float64)
    low, high = flat.min(), flat.max()
    ends = [low + (high - low) * (n / 10) for n in range(10)] + [high]
    places = [[] for _ in range(10)]
    for sequence, token in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = float(values[sequence, token])
        interval = max(n for n in range(10) if value >= ends[n])
        told = seed.to_bytes(8, "little") + texts[sequence] + int(token).to_bytes(8, "little")
        digest = hashlib.blake2b(told, digest_size=8).digest()
        places[interval].append((int.from_bytes(digest, "little"), int(sequence), int(token), value))
    for n, found in enumerate(places):
        first = (n, ends[n], ends[n + 1], len(found))
        if not found:
            yield (*first, None, None, None, None)
        for rank, (_, sequence, token, value) in enumerate(sorted(found)[:5], start=1):
            yield (*first, rank, value, sequence, token)


@pytest.mark.parametrize(("name", "seed"), [("llama", 0), ("olmoe", 3)])
def test_typical_examples_are_those_of_the_smallest_hash(runs, name, seed):
    run = runs(name)
    tables, _ = run.write(seed=seed)
    parts = tables["gallery_examples"].partition_by("layer", "expert", "neuron", as_dict=True)
    assert len(parts) == len(tables["gallery_neurons"])
    columns = ("interval", "low", "high", "in_interval", "rank", "value", "sequence", "token")
    for key, rows in parts.items():
        assert rows.select(columns).rows() == list(typical(run.acts[key], run.texts, seed))


def test_the_order_of_the_sequences_does_not_matter():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 16, 3)).astype(np.float32)
    keys = rng.integers(0, 2**63, (30, 16)).astype(np.uint64)
    bounds = interval_bounds(values.min((0, 1)), values.max((0, 1)))

    def chosen(order):
        found = TypicalExamples(bounds)
        for n, sequence in enumerate(order):
            found.add(n, np.arange(16), keys[sequence], values[sequence])
        rows = found.rows()
        rows["sequence"] = np.array(order)[rows["sequence"]]
        return rows

    one, other = chosen(np.arange(30)), chosen(rng.permutation(30))
    for name in set(one) - {"sequence"}:
        assert np.array_equal(one[name], other[name])
    there = one["rank"] > 0
    assert np.array_equal(one["sequence"][there], other["sequence"][there])


def test_values_outside_the_range_are_of_the_outer_intervals():
    found = TypicalExamples(interval_bounds(np.array([-1.0], np.float32), np.array([1.0], np.float32)))
    found.add(0, np.arange(3), np.arange(3, dtype=np.uint64), np.array([[-1.5], [0.05], [1.5]], np.float32))
    assert found.chosen.count[0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_dims_and_norms_are_those_of_the_stream(runs, name):
    run = runs(name)
    tables, provenance = run.written
    assert provenance["gallery"]["dims"] == list(SELECTED[:2])
    rows = {
        (row["layer"], row["dim"], row["sequence"]): row["values"] for row in tables["gallery_dims"].rows(named=True)
    }
    assert len(rows) == zoo.BLOCKS * 3 * 3
    streams = {}
    for layer, block in enumerate(run.model.model.layers):
        block.register_forward_hook(
            lambda module, args, output, layer=layer: streams.update(
                {layer: output[0] if isinstance(output, tuple) else output}
            )
        )
    with torch.inference_mode():
        for sequence in range(3):
            run.model(torch.from_numpy(run.tokens.tokens[sequence].astype(np.int64))[None])
            own = run.tokens.mask[sequence]
            for layer, stream in streams.items():
                values = stream.reshape(LENGTH, -1).numpy()[own]
                for dim in SELECTED[:2]:
                    assert rows[layer, dim, sequence] == values[:, dim].tolist()
                assert np.allclose(
                    rows[layer, None, sequence], np.linalg.norm(values.astype(np.float64), axis=1), rtol=1e-6
                )


def test_dims_come_the_largest_first_and_norms_last(runs):
    tables, _ = runs("llama").written
    assert tables["gallery_dims"]["dim"].unique(maintain_order=True).to_list() == [*SELECTED[:2], None]


def logits_by_hand(name, model, key):
    """What a unit of a neuron adds to each logit, written for the architecture, the last norm's division left out."""
    column = torch.from_numpy(written(model, key))
    if name == "gpt2":
        column = (column - column.mean()) * model.transformer.ln_f.weight.double()
        return model.lm_head.weight.double() @ column
    if name == "gpt_neox":
        column = (column - column.mean()) * model.gpt_neox.final_layer_norm.weight.double()
        return model.lm_head.weight.double() @ column
    if name == "gemma3_text":
        column = column * (1 + model.model.layers[key[0]].post_feedforward_layernorm.weight.double())
        return model.lm_head.weight.double() @ (column * (1 + model.model.norm.weight.double()))
    if name == "olmo2":
        column = column * model.model.layers[key[0]].post_feedforward_layernorm.weight.double()
    return model.lm_head.weight.double() @ (column * model.model.norm.weight.double())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text", "olmo2", "olmoe", "qwen2_moe"])
def test_logits_are_moved_as_the_formula_of_the_architecture_says(runs, name):
    run = runs(name)
    tables, provenance = run.written
    assert provenance["no_logits"] is None
    for row in tables["gallery_neurons"].rows(named=True):
        logits = logits_by_hand(name, run.model, key_of(row)).detach().numpy()
        for side, order in (("top", np.argsort(-logits)), ("bottom", np.argsort(logits))):
            assert row[f"{side}_tokens"] == order[:10].tolist()
            assert np.allclose(row[f"{side}_logits"], logits[order[:10]], rtol=1e-4, atol=1e-6)


def test_an_encoder_moves_no_logits_and_the_table_says_why(runs):
    tables, provenance = runs("bert").written
    assert tables["gallery_neurons"]["top_tokens"].null_count() == len(tables["gallery_neurons"])
    assert "no causal model" in provenance["no_logits"] and tables["gallery_neurons"]["writes"].null_count() == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "qwen2_moe"])
def test_pages_are_of_what_feeds_the_dims_and_of_the_largest_kurtosis(runs, name):
    run = runs(name)
    tables, _ = run.written
    expected = {}
    for dim in SELECTED[:2]:
        feeds = {key: abs(extreme(values) * written(run.model, key)[dim]) for key, values in run.acts.items()}
        for key in sorted(feeds, key=lambda key: -feeds[key])[:10]:
            expected.setdefault(key, []).append(f"feeds dim {dim}")
    statistics, _ = read_table(run.directory / "neuron_statistics.parquet", NEURON_STATISTICS)
    for row in (
        statistics.filter(population="all")
        .drop_nulls("kurtosis")
        .sort("kurtosis", descending=True)[:5]
        .rows(named=True)
    ):
        expected.setdefault(key_of(row), []).append("kurtosis")
    rows = tables["gallery_neurons"].rows(named=True)
    assert {key_of(row): row["reasons"] for row in rows} == expected
    for row in rows:
        key = key_of(row)
        writes = {dim: extreme(run.acts[key]) * written(run.model, key)[dim] for dim in SELECTED[:2]}
        order = sorted(writes, key=lambda dim: -abs(writes[dim]))
        assert row["writes_dims"] == order and np.allclose(row["writes"], [writes[dim] for dim in order])
        assert np.allclose(row["writes_weights"], [written(run.model, key)[dim] for dim in order])


def test_traced_dims_name_their_neurons(tmp_path):
    run = Run(tmp_path, "llama")
    rows = [{"target_dim": 50, "layer": 1, "neuron": n, "rank": n + 1} for n in range(30)]
    run._table("origin_neurons", ORIGIN_NEURONS, [*rows, {"target_dim": 50, "layer": 1}])
    tables, _ = run.write(kurtosis=0, most_dims=0)
    assert tables["gallery_neurons"].select("layer", "neuron").rows() == [(1, n) for n in range(20)]
    assert tables["gallery_neurons"]["reasons"].to_list() == [["feeds dim 50"]] * 20
    assert tables["gallery_neurons"]["writes_dims"].to_list() == [[]] * 20


def test_nearest_are_those_of_the_largest_cosine(runs):
    run = runs("llama")
    tables, _ = run.written
    rows = tables["gallery_neurons"].rows(named=True)
    flat = np.array([run.acts[key_of(row)][run.tokens.mask].astype(np.float64) for row in rows])
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosines = unit @ unit.T
    for own, row in enumerate(rows):
        order = [n for n in np.argsort(-cosines[own]) if n != own][:5]
        assert row["nearest"] == [f"L{rows[n]['layer']}N{rows[n]['neuron']}" for n in order]
        assert np.allclose(row["cosines"], cosines[own, order], atol=1e-12)


def test_experts_have_no_nearest(runs):
    assert runs("olmoe").written[0]["gallery_neurons"]["nearest"].null_count() > 0


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_all_neurons_in_parts_or_at_once(runs, name):
    run = runs(name)
    whole, _ = run.write(wanted="all")
    assert [key_of(row) for row in whole["gallery_neurons"].rows(named=True)] == sorted(
        run.acts, key=lambda key: (key[0], key[1] or 0, key[2])
    )
    parts, _ = run.write("parts", wanted="all", at_once=500_000)
    for table, frame in whole.items():
        assert_frame_equal(frame, parts[table])


def test_a_ranking_of_another_model_is_refused(tmp_path):
    run = Run(tmp_path, "llama")
    acts = {key: values * (1.5 if key == (2, None, 5) else 1) for key, values in run.acts.items()}
    write_ranking(tmp_path, acts, run.provenance, EXAMPLES)
    with pytest.raises(InputError, match=r"neuron_statistics.parquet: has .* for neuron L2N5"):
        run.write(wanted="all")


def test_a_pass_that_differs_in_last_bits_is_taken(tmp_path):
    run = Run(tmp_path, "llama")
    acts = {
        key: np.nextafter(values, np.float32(9)) if key == (2, None, 5) else values for key, values in run.acts.items()
    }
    write_ranking(tmp_path, acts, run.provenance, EXAMPLES)
    tables, provenance = run.write(wanted="all")
    assert provenance["neurons_that_differ"] == 1
    counts = (
        tables["gallery_examples"]
        .filter(pl.col("rank").fill_null(1) == 1)
        .group_by("layer", "neuron")
        .agg(pl.col("in_interval").sum())
    )
    assert counts["in_interval"].unique().to_list() == [int(run.tokens.mask.sum())]


def test_without_selected_dims_or_neurons_the_text_has_its_norms(tmp_path):
    run = Run(tmp_path, "llama")
    run._table("dims", DIMS, [])
    tables, _ = run.write(kurtosis=0)
    assert [len(tables[name]) for name in ("gallery_neurons", "gallery_examples", "gallery_values")] == [0, 0, 0]
    assert (
        len(tables["gallery_dims"]) == zoo.BLOCKS * 3 and tables["gallery_dims"]["dim"].null_count() == zoo.BLOCKS * 3
    )


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_weights_that_stay_on_disk_change_no_value(runs, name):
    run = runs(name)
    tables, _ = run.write("layerwise", placement="layerwise")
    for table, frame in run.written[0].items():
        assert_frame_equal(frame, tables[table])


def test_what_is_missing_makes_the_gallery_missing(tmp_path):
    run = Run(tmp_path, "llama")
    record = {"analysis": "neurons", "cause": "off", "reason": "`skip` names neurons", "log": "logs/x.log"}
    write_table(
        tmp_path / "neurons.parquet", pl.DataFrame(schema=NEURONS.schema), NEURONS, run.provenance | {"missing": record}
    )
    with pytest.raises(MissingInput, match="The ranking of neurons is turned off"):
        run.write()
