"""The rank of experts: flags against brute force, a planted super expert, and models without experts."""

import json
import sys

import numpy as np
import polars as pl
import pytest

import planted_experts
import zoo
from outlier_features.dims.dims_schema import DIMS, MASSIVE
from outlier_features.errors import InputError
from outlier_features.experts import rank_experts as module
from outlier_features.experts.experts_schema import EXPERTS, ROUTING
from outlier_features.experts.rank_experts import massive_targets, rank_experts, routing_of, with_flags, with_published
from outlier_features.experts.record_experts import MAXIMA, PARTS
from outlier_features.experts.summarize_experts import kurtosis_of_maxima
from outlier_features.files.tables import read_table, write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.tokens.tokens import tokens_digest

TOKEN = 77
SETTINGS = {
    "sequences": 2, "dtype": "float32", "device": "cpu", "attention": "sdpa", "threads": 1, "trust_remote_code": False,
    "percentile": 99.5, "share": 0.1,
}  # fmt: skip


class Run:
    """What the rule reads, with the massive activations given; `write` makes both tables."""

    def __init__(self, directory, location, massive, blocks=4):
        self.directory = directory
        record = {"location": str(location), "origin": "org/tiny", "revision": "abc", "files": {}}
        (directory / "source.json").write_text(json.dumps(record))
        ids = np.random.default_rng(1).integers(100, 128, (3, 12)).astype(np.int32)
        ids[:, 5] = TOKEN
        flags = np.zeros_like(ids, bool)
        digest = tokens_digest(ids, flags, ~flags)
        self.provenance = {
            "tokens_sha256": digest, "model_revision": "abc", "dtype": "float32", "blocks": blocks, "absent": {},
            "no_loss": None, "parameters": 1000,
            "rules": {"massive": {"kind": "massive"}},
        }  # fmt: skip
        arrays = {"tokens": ids, "special": flags, "mask": ~flags, "offsets": np.zeros((*ids.shape, 2), np.int32)}
        write_tensors(directory / "tokens.safetensors", arrays, self.provenance)
        write_table(directory / "massive.parquet", massive_rows(massive), MASSIVE, self.provenance)
        dims = [{"population": "all", "rule": "massive", "dim": row["dim"], "selected": True, "step_up": 1}
                for row in massive]  # fmt: skip
        write_table(directory / "dims.parquet", filled(dims, DIMS.schema), DIMS, self.provenance)
        (directory / "published.csv").write_text("quantity,hub_id,layer,layer_base,expert,expert_kind\n")

    def write(self, **changes):
        names = ("massive", "dims", "experts", "routing", "expert_load", "expert_balance")
        files = {name: self.directory / f"{name}.parquet" for name in names}
        rank_experts(
            source=self.directory / "source.json", tokens=self.directory / "tokens.safetensors",
            published=self.directory / "published.csv", **files, **SETTINGS | changes,
        )  # fmt: skip
        experts, provenance = read_table(files["experts"], EXPERTS)
        return experts, read_table(files["routing"], ROUTING)[0], provenance


def filled(rows, schema):
    return pl.DataFrame([dict.fromkeys(schema) | row for row in rows], schema=schema)


def massive_rows(rows):
    return filled([{"rule": "massive", "massive_all": True} | row for row in rows], MASSIVE.schema)


def location(**changes):
    return {"sequence": 0, "layer": 2, "token": 5, "dim": 7, "value": -900.0} | changes


def percentile_by_hand(values):
    """99.5 %, with a sorted list and no percentile function."""
    values = sorted(values)
    rank = 0.995 * (len(values) - 1)
    below = int(rank)
    return values[below] + (rank - below) * (values[min(below + 1, len(values) - 1)] - values[below])


def flags_by_hand(maxima, forming, blocks):
    text = [row["max_abs"] for row in maxima if row["part"] == "expert" and row["max_abs"] is not None]
    for row in maxima:
        if row["max_abs"] is None:
            yield (None,) * 5
            continue
        three = (row["max_abs"] > percentile_by_hand(text), row["max_abs"] > max(text) / 10, row["layer"] in forming)
        yield (*three, 4 * row["layer"] < 3 * blocks, all(three))


def flags_of_the_code(maxima, blocks):
    """As `_super_experts_analysis` and `_identify_super_experts` of the authors' code go through their entries."""
    include_layers = round(blocks * 0.75)
    entries = [(row["max_abs"] or 0.0) for row in maxima if row["layer"] < include_layers]
    for row in maxima:
        if row["max_abs"] is None:
            yield (None,) * 4
            continue
        above = bool(entries) and row["max_abs"] > percentile_by_hand(entries)
        tenth = bool(entries) and row["max_abs"] > max(entries) // 10
        yield above, tenth, row["layer"] < include_layers, above and tenth and row["layer"] < include_layers


@pytest.mark.parametrize("count", [1, 8, 64, 300])
def test_flags_are_those_of_the_definition(count):
    random = np.random.default_rng(count)
    values = np.exp(random.normal(0, 3, (5, count + 1)))
    maxima = [
        {"layer": layer, "part": "expert" if e < count else "shared", "expert": e if e < count else None,
         "max_abs": None if random.random() < 0.1 and e and e < count else values[layer, e]}
        for layer in range(5) for e in range(count + 1)
    ]  # fmt: skip
    found = with_flags(filled(maxima, MAXIMA), {1, 4}, blocks=5)
    expected = zip(flags_by_hand(maxima, {1, 4}, blocks=5), flags_of_the_code(maxima, blocks=5), strict=True)
    assert found.select(module.FLAGS).rows() == [(*text, *code) for text, code in expected]
    if count == 300:
        assert found["super_expert"].sum() > 0 and found.filter("above_percentile")["super_expert"].sum() < 8


@pytest.mark.parametrize("blocks", range(1, 33))
def test_three_quarters_round_half_to_even_in_the_code(blocks):
    """2 blocks: 1.5 rounds to 2; 6: 4.5 to 4; 14: 10.5 to 10. 0.75 L as it stands has one more in the last two."""
    maxima = [{"layer": layer, "part": "expert", "expert": 0, "max_abs": 1.0} for layer in range(blocks)]
    found = with_flags(filled(maxima, MAXIMA), set(), blocks)
    by_code, exact = found["first_three_quarters_code"].sum(), found["first_three_quarters"].sum()
    whole, rest = divmod(3 * blocks, 4)
    assert by_code == whole + (rest == 3 or (rest == 2 and whole % 2 == 1))
    assert exact == whole + (rest > 0)
    assert (exact != by_code) == (blocks % 4 == 3 or blocks % 8 == 6)


def test_both_readings_of_a_planted_mixtral():
    """8 blocks of 8 experts: the largest maximum lies in block 7, which the code does not rank; (1, 3) follows."""
    maxima = [
        {"layer": layer, "part": "expert", "expert": e, "max_abs": {(1, 3): 300.0, (7, 6): 900.0}.get((layer, e), 1.0)}
        for layer in range(8) for e in range(8)
    ]  # fmt: skip
    found = with_flags(filled(maxima, MAXIMA), {1, 7}, blocks=8)
    where = ("layer", "expert")
    assert found.filter("super_expert").select(where).rows() == [(7, 6)]
    assert found.filter("super_expert_code").select(where).rows() == [(1, 3)]


@pytest.mark.parametrize(
    ("largest", "others", "found"),
    [
        (29.0, 2.5, {0, 1}),  # 29 // 10 = 2: above a tenth by the code, not by the text
        (29.0, 2.0, {0}),
        (30.0, 2.5, {0}),
    ],
)
def test_a_tenth_is_rounded_down_in_the_code(largest, others, found):
    """1,000 experts, most of which no token chose: as 0 they make room above the percentile."""
    maxima = [
        {"layer": 0, "part": "expert", "expert": e, "max_abs": {0: largest, 1: others}.get(e)} for e in range(1000)
    ]
    flags = with_flags(filled(maxima, MAXIMA), {0}, blocks=4)
    assert set(flags.filter("super_expert_code")["expert"]) == found
    assert flags.filter("above_tenth")["expert"].to_list() == [0]
    assert flags.filter("above_percentile")["expert"].to_list() == [0]


def test_dense_blocks_count_as_blocks_and_are_not_ranked():
    """Experts in blocks 3 to 7 of 8: the first three quarters are blocks 0 to 5, of which 3 to 5 are ranked."""
    maxima = [
        {"layer": layer, "part": "expert", "expert": e, "max_abs": 10.0 * layer + e} for layer in range(3, 8)
        for e in range(4)
    ]  # fmt: skip
    flags = with_flags(filled(maxima, MAXIMA), set(), blocks=8)
    assert set(flags.filter("first_three_quarters_code")["layer"]) == {3, 4, 5}
    assert flags.filter("super_expert_code").select("layer", "expert").rows() == [(5, 3)]


def test_a_planted_super_expert_is_found(tmp_path):
    planted_experts.planted_moe(tmp_path / "model", TOKEN, vocabulary=128)
    run = Run(tmp_path, tmp_path / "model", [location(), location(sequence=2, token=5, value=-950.0)])
    experts, routing, provenance = run.write()
    assert len(experts) == 32 and provenance["absent"] == {}
    found = experts.filter("super_expert")
    layer, expert = planted_experts.LAYER, planted_experts.EXPERT
    assert found.select("layer", "expert", "dim", "token").rows() == [(layer, expert, planted_experts.DIM, 5)]
    assert found["tokens_routed"].item() == 2  # the token stands once in each of the two sequences that are ranked
    assert found["max_abs"].item() > 10 * experts["max_abs"].sort()[-2]
    assert experts["published"].is_null().all()
    # The largest lies in sequence 2, which is run for it, though it is not ranked.
    assert set(routing.select("sequence", "token", "dim", "layer").rows()) == {(2, 5, 7, 1)}
    assert routing["forms_massive"].all() and routing["steps_up"].all() and set(routing["activation"]) == {-950.0}
    largest = routing.row(0, named=True)
    assert (largest["part"], largest["expert"]) == ("expert", expert) and largest["share"] > 0.99
    assert routing["weighted"].sum() == pytest.approx(largest["whole"], rel=1e-5)
    assert largest["weighted"] == pytest.approx(largest["weight"] * largest["value"])


def test_a_dense_model_leaves_empty_tables_and_is_not_loaded(tmp_path, monkeypatch):
    zoo.save("llama", tmp_path / "model")
    monkeypatch.setitem(sys.modules, "outlier_features.experts.record_experts", None)  # importing it fails
    experts, routing, provenance = Run(tmp_path, tmp_path / "model", [location()]).write()
    assert experts.is_empty() and routing.is_empty()
    assert not provenance["has_experts"] and "missing" not in provenance


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "deepseek_v3", "granitemoeshared", "llama4_text"])
@pytest.mark.parametrize("config", [True, False])
def test_experts_are_known_by_the_config_or_by_the_weights(name, config, tmp_path):
    zoo.save(name, tmp_path)
    if not config:
        (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    else:
        (tmp_path / "model.safetensors").unlink()
    assert module.names_experts(tmp_path) or (name == "granitemoeshared" and not config)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "opt"])
def test_dense_models_name_no_experts(name, tmp_path):
    assert not module.names_experts(zoo.save(name, tmp_path))


def test_experts_that_cannot_be_recorded_are_refused(tmp_path):
    zoo.save("llama4_text", tmp_path / "model")
    with pytest.raises(InputError, match=r"^the experts of block 0 \(Llama4TextExperts\) are not one module"):
        Run(tmp_path, tmp_path / "model", [location()]).write(attention="eager")


def test_files_of_another_run_are_refused(tmp_path):
    run = Run(tmp_path, zoo.save("olmoe", tmp_path / "model"), [location()])
    with pytest.raises(InputError, match="its dtype is 'float32', expected 'bfloat16'"):
        run.write(dtype="bfloat16")


def test_targets_are_the_largest_of_each_dim():
    rows = [
        location(dim=7, value=-900.0), location(dim=7, value=901.0, token=3, layer=1), location(dim=2, value=5000.0),
        location(dim=9, value=150.0, massive_all=False),
    ]  # fmt: skip
    dims = [
        {"population": population, "rule": rule, "dim": dim, "selected": True, "step_up": step}
        for population, rule, dim, step in [
            ("all", "massive", 7, 1), ("without_first", "massive", 7, 3), ("without_first", "massive", 9, 2),
            ("all", "dettmers", 2, 3),
        ]
    ]  # fmt: skip
    targets = massive_targets(massive_rows(rows), filled(dims, DIMS.schema).filter(rule="massive"))
    assert [(t.dim, t.value, t.location, t.layer, t.step_up) for t in targets] == [
        (2, 5000.0, (0, 5, 2), 2, None), (7, 901.0, (0, 3, 7), 1, 1), (9, 150.0, (0, 5, 9), 2, 2),
    ]  # fmt: skip


def test_a_layer_forms_an_activation_by_its_sign_and_a_tenth_up_to_its_largest():
    """Layer 0 gives too little, 1 forms it, 2 takes away, 3 forms it, 4 comes later; 2 is where it steps up."""
    rows = massive_rows([location(value=-1000.0, layer=3)])
    dims = [{"population": "all", "rule": "massive", "dim": 7, "selected": True, "step_up": 2}]
    added = [-99.0, -100.0, 300.0, -1000.0, -1000.0]
    parts = [
        {"layer": layer, "sequence": 0, "token": 5, "dim": 7, "part": part, "expert": expert, "weight": 0.5,
         "value": 2 * share * value, "weighted": share * value, "whole": value, "mlp_out": value}
        for layer, value in enumerate(added) for part, expert, share in [("expert", 4, 0.25), ("shared", None, 0.75)]
    ]  # fmt: skip
    elsewhere = [row | {"token": 6} for row in parts]
    targets = massive_targets(rows, filled(dims, DIMS.schema))
    routing = routing_of(filled(parts + elsewhere, PARTS), targets)
    assert routing.select("layer", "part", "share", "forms_massive", "steps_up").rows() == [
        (1, "shared", 0.75, True, False), (1, "expert", 0.25, True, False),
        (2, "shared", 0.75, False, True), (2, "expert", 0.25, False, True),
        (3, "shared", 0.75, True, False), (3, "expert", 0.25, True, False),
    ]  # fmt: skip
    assert set(routing["token"]) == {5}


def test_what_was_published_stands_beside_the_same_model():
    experts = filled(
        [{"layer": layer, "part": "expert", "expert": e} for layer in (1, 2) for e in (68, 92)]
        + [{"layer": 1, "part": "shared"}],
        MAXIMA,
    )
    rows = [
        ("super_expert", "a/one", 1, 0, 68, "routed"), ("super_expert", "a/one", 3, 1, 92, "routed"),
        ("super_expert", "a/one", 1, 0, None, "shared"), ("perplexity", "a/one", 1, 0, 92, None),
        ("super_expert", "a/unclear", 1, None, 68, "routed"), ("super_expert", "a/other", 1, 0, 92, "routed"),
    ]  # fmt: skip
    names = ["quantity", "hub_id", "layer", "layer_base", "expert", "expert_kind"]
    published = pl.DataFrame(rows, schema=names, orient="row")
    assert with_published(experts, published, "a/one")["published"].to_list() == [True, False, False, True, True]
    for origin in ("a/unclear", "a/none"):
        assert with_published(experts, published, origin)["published"].null_count() == 5


def test_the_published_list_has_the_models_it_names():
    path = module.__file__.replace("outlier_features/experts/rank_experts.py", "published/super_experts.csv")
    published = pl.read_csv(path, infer_schema_length=None)
    experts = filled([{"layer": 2, "part": "expert", "expert": e} for e in range(128)], MAXIMA)
    found = with_published(experts, published, "Qwen/Qwen3-30B-A3B").filter("published")
    assert found["expert"].to_list() == [92]
    assert with_published(experts, published, "deepseek-ai/DeepSeek-R1")["published"].is_null().all()


def test_kurtosis_of_maxima_by_layer_and_by_expert():
    maxima = {(0, 0): 1.0, (0, 1): 2.0, (0, 2): 9.0, (1, 0): 4.0, (1, 1): 4.0, (1, 2): None}
    rows = [
        {"layer": layer, "part": "expert", "expert": expert, "max_abs": value}
        for (layer, expert), value in maxima.items()
    ]
    rows.append({"layer": 0, "part": "shared", "max_abs": 100.0})

    def fisher(*values):
        off = np.array(values) - np.mean(values)
        return np.mean(off**4) / np.mean(off**2) ** 2 - 3

    experts = filled(rows, EXPERTS.schema)
    assert kurtosis_of_maxima(experts, "layer").rows() == [(0, 3, pytest.approx(fisher(1, 2, 9))), (1, 2, None)]
    by_expert = [(0, 2, pytest.approx(fisher(1, 4))), (1, 2, pytest.approx(fisher(2, 4))), (2, 1, None)]
    assert kurtosis_of_maxima(experts, "expert").rows() == by_expert
