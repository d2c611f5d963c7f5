"""How many neurons a model has and what is kept of them, on paper, compared with what a run records."""

import json
from collections import Counter

import numpy as np
import pytest

import zoo
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.memory import stored_neurons
from outlier_features.model.models import empty_model
from outlier_features.model.neuron_count import neurons_of_blocks
from outlier_features.model.sites import find_sites
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.neurons import store_size
from outlier_features.neurons.kept_neurons import BankShape, KeptNeurons
from outlier_features.neurons.neurons_kernel import new_store
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.neurons.position_classes import CLASSES
from outlier_features.neurons.record_neurons import NeuronRecorder
from outlier_features.plan.model_size import size_of
from test_extract_activations import Run
from test_plan_run import config_of, planned
from test_rank_neurons import Ranked


def recorded(name):
    """Neurons of each block that a recorder would take, those of a shared expert beside the routed ones."""
    loaded = zoo.loaded(name)
    blocks = find_sites(loaded)
    keep_proven(blocks, prove_sites(loaded, blocks))
    recorder = NeuronRecorder(
        loaded, blocks, np.ones((1, 4), np.uint8), sequences=1, examples=1, high_norm=10.0, threads=1
    )
    found = Counter[int]()
    for shape in BankShape.all_of(recorder.provenance):
        found[shape.layer] += shape.rows
    recorder.close()
    return [*found.values()]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "phi3", "opt", "olmoe", "gpt_oss", "glm4_moe", "qwen3_next"])
def test_shapes_say_how_many_neurons_are_recorded(name, tmp_path):
    expected = recorded(name)
    zoo.save(name, tmp_path / "model")
    (tmp_path / "source.json").write_text(json.dumps({"location": "model"}))
    assert list(size_of(empty_model(tmp_path / "model", dtype="float32")[0]).neurons) == expected
    assert stored_neurons(tmp_path / "source.json") == expected


def test_what_is_no_mlp_is_no_neuron():
    block = {"h.0.attn.q.weight": (96, 8), "h.0.attn.o.weight": (8, 96), "h.0.router.weight": (4, 8), "h.0.norm": (8,)}
    assert neurons_of_blocks({**block, "embed.weight": (100, 8), "head.weight": (8, 100)}, 8) == []
    mlp = {"h.0.up.weight": (20, 8), "h.0.gate.weight": (20, 8), "h.0.down.weight": (8, 20)}
    experts = {f"h.1.experts.{n}.{one.split('.')[2]}.weight": shape for n in range(3) for one, shape in mlp.items()}
    assert neurons_of_blocks({**block, **mlp, **experts}, 8) == [20, 60]
    square = {"h.2.gate_up": (4, 8, 16), "h.2.down": (4, 8, 8), "h.3.up.weight": (8, 8), "h.3.down.weight": (8, 8)}
    assert neurons_of_blocks({**block, **square}, 8) == [32, 8]


@pytest.mark.parametrize("damage", [None, "{}", '{"hidden_size": 64}'])
def test_a_model_that_is_not_there_or_is_packed_has_no_known_number(damage, tmp_path):
    if damage is not None:
        (tmp_path / "config.json").write_text(damage)
        (tmp_path / "source.json").write_text(json.dumps({"location": "."}))
    assert stored_neurons(tmp_path / "source.json") is None


@pytest.mark.parametrize("examples", [1, 20])
def test_bytes_are_those_of_the_arrays(examples):
    rows, shape = 96, BankShape("0", 0, 0, 96)
    kept = KeptNeurons.nothing(shape, examples).arrays("0", 0).values()
    assert sum(array.nbytes for array in kept) - 8 == rows * store_size.stored(examples)
    assert sum(array.nbytes for array in new_store(rows, examples)) == rows * store_size.held(examples)
    assert len(CLASSES) == store_size.MOST_CLASSES


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_a_plan_has_the_size_of_the_stores_of_a_run(name, tmp_path):
    run = Run(tmp_path, name)
    ranked = Ranked(run, "ranked", (0, 2, 4), ranking={"examples": 4, "high_norm": 10.0}, examples=4)
    (tmp_path / "text.txt").touch()
    config = config_of(tmp_path) | {
        "models": [name], "corpora": ["text"], "neurons": {"examples": 4},
        "catalog": {"models": {name: {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}},
    }  # fmt: skip
    found = planned(tmp_path, config)["runs"][0]["neurons"]
    assert found["chunks"] == len(ranked.chunks)
    for path, said in ((ranked.store, found["bytes_of_store"]), (ranked.chunks[0], found["bytes_of_chunk"])):
        file = TensorFile(path)
        classes = len([key for key in file.entries if key.endswith(".low")])
        shapes = BankShape.all_of(file.provenance)
        assert found["count"] == sum(shape.rows for shape in shapes)
        real = sum(entry.nbytes for key, entry in file.entries.items() if not key.endswith(".count"))
        assert said * classes == real * store_size.USUAL_CLASSES * len(shapes)
        assert real <= found["memory"]
    rows = [len(ranked.rows(table)) for table in (NEURONS, NEURON_STATISTICS)]
    most = found["count"] * 3 * np.array([2 * 4, 1])
    assert (rows <= most).all() and rows[1] == most[1]
    assert found["bytes_of_tables"] == pytest.approx(most @ [store_size.ROW, store_size.STATISTICS_ROW], abs=1)


def test_nothing_is_planned_where_neurons_are_left_out(tmp_path):
    zoo.save("llama", tmp_path / "model")
    (tmp_path / "text.txt").touch()
    config = config_of(tmp_path) | {
        "models": ["llama"], "corpora": ["text"], "skip": ["neurons", "gallery"],
        "catalog": {"models": {"llama": {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}},
    }  # fmt: skip
    assert "not ranked" in planned(tmp_path, config)["runs"][0]["neurons"]["unknown"]
