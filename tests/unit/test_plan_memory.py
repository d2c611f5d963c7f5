"""What placements need, compared with what `auto` takes there, and with tensors counted by hand."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import zoo
from outlier_features.model.memory import Weights, need_of, stored_weights
from outlier_features.model.models import empty_model
from outlier_features.model.placement import Machine, device_map, placed
from outlier_features.plan.model_size import size_of

GB = 10**9
LARGE = Weights(total=240 * GB, largest_block=3 * GB, outside=4 * GB)
SMALL = Weights(total=GB, largest_block=GB // 10, outside=GB // 10)


def fetched(folder, config=None):
    record = folder / "source.json"
    record.write_text(json.dumps({"location": "model"}))
    if config is not None:
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text(json.dumps(config))
    return record


@pytest.mark.parametrize("weights", [SMALL, LARGE])
def test_what_one_needs_is_what_auto_finds_enough(weights):
    memory = need_of("one", weights).memory
    assert placed("auto", "cpu", weights.total, 0, Machine({}, memory)).kind == "one"
    assert placed("auto", "cpu", weights.total, 0, Machine({}, memory - GB)).kind == "layerwise"


def test_gpus_of_a_large_model_hold_it():
    need = need_of("spread", LARGE, gpu=80 * GB)
    assert need.gpus == 4 and need.gpu_memory <= 80 * GB
    assert need.gpus * need.gpu_memory * 0.8 >= LARGE.total
    assert need_of("spread", SMALL).gpus == 2
    assert need_of("one", SMALL).gpus == need_of("auto", SMALL).gpus == need_of("layerwise", LARGE).gpus == 1


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3_text"])
@pytest.mark.parametrize("share", [0.4, 0.6, 3])
def test_gpus_that_spread_asks_for_are_enough_for_its_device_map(name, share, tmp_path):
    zoo.build(name).config.save_pretrained(tmp_path)
    model, _ = empty_model(tmp_path, dtype="float32")
    weights = size_of(model).weights
    gpu = int(share * weights.total / 0.8)
    need = need_of("spread", weights, gpu)
    if weights.largest_block < 0.4 * gpu:
        assert need.gpu_memory <= gpu
    found = device_map(model, dict.fromkeys(range(need.gpus), gpu), sorted(model._no_split_modules or ()))
    assert {*found.values()} <= {*range(need.gpus)}


def test_auto_asks_for_several_gpus_where_one_is_too_small():
    assert need_of("auto", LARGE) == need_of("spread", LARGE)
    assert need_of("auto", SMALL) == need_of("one", SMALL)


def test_layerwise_needs_two_blocks_and_what_is_in_none():
    assert need_of("layerwise", LARGE).memory * 0.8 == pytest.approx((2 * 3 + 4 + 2) * GB)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "opt"])
def test_a_checkpoint_and_the_model_of_its_config_have_the_same_bytes(name, tmp_path):
    zoo.save(name, tmp_path / "model", tie_word_embeddings=False)
    stored = stored_weights(fetched(tmp_path), "bfloat16")
    assert stored == size_of(empty_model(tmp_path / "model", dtype="bfloat16")[0]).weights
    assert stored.total * 2 == stored_weights(fetched(tmp_path), "float32").total


def test_blocks_by_hand(tmp_path):
    record = fetched(tmp_path, {})
    tensors = {"embed": 100, "h.0.a": 5, "h.0.b.7.c": 20, "h.1.a": 5, "h.10.a": 40, "head": 30}
    save_file({name: torch.zeros(n, dtype=torch.float16) for name, n in tensors.items()},
              tmp_path / "model" / "model.safetensors")  # fmt: skip
    assert stored_weights(record, "float32") == Weights(total=800, largest_block=160, outside=520)


def test_packed_weights_are_counted_unpacked(tmp_path):
    record = fetched(tmp_path, {"quantization_config": {"bits": 4}})
    save_file({"h.0.qweight": torch.zeros(8, 16, dtype=torch.int32)}, tmp_path / "model" / "model.safetensors")
    assert stored_weights(record, "float32").total == 8 * 8 * 16 * 4


@pytest.mark.parametrize("damage", [None, "{", "[]", '{"location": 3}', '{"location": "elsewhere"}'])
def test_what_is_not_there_or_damaged_is_not_known(damage, tmp_path):
    if damage is not None:
        (tmp_path / "source.json").write_text(damage)
    assert stored_weights(tmp_path / "source.json", "float32") is None


def test_a_damaged_checkpoint_is_not_known_and_a_new_one_is_read_anew(tmp_path):
    record, file = fetched(tmp_path, {}), tmp_path / "model" / "model.safetensors"
    file.write_bytes(b"no")
    assert stored_weights(record, "float32") is None
    save_file({"a": torch.zeros(5)}, file)
    assert stored_weights(record, "float32").total == 20
    record.write_text(record.read_text() + "\n")  # as a new fetch does
    save_file({"a": torch.zeros(500)}, file)
    assert stored_weights(record, "float32").total == 2000


def test_the_rules_functions_import_no_torch():
    code = "import sys, outlier_features.model.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
