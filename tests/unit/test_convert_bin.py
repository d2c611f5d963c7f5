"""Pickled weights turned into safetensors: every tensor kept, and nothing run."""

import json
import os
import pickle
import stat
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from hub_server import running_hub
from outlier_features.errors import InputError
from outlier_features.fetch.fetch_model import fetch_model
from outlier_features.files.artifacts import read_json
from outlier_features.files.model_source import source_of
from outlier_features.model.models import load_model
from rule_process import run_rules

CONFIG = b'{"model_type": "bert"}'


def written(directory: Path, content: object, **how: object) -> Path:
    """A directory with a configuration and `content`, as torch saves it."""
    directory.mkdir()
    (directory / "config.json").write_bytes(CONFIG)
    torch.save(content, directory / "pytorch_model.bin", **how)
    return directory


def converted(source: Path, directory: Path) -> dict[str, torch.Tensor]:
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    fetch_model({"path": str(source), "weights": "bin"}, directory)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before  # nothing is written there
    return load_file(directory / "model.safetensors")


def tensors() -> "OrderedDict[str, torch.Tensor]":
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 5, generator=generator)
    return OrderedDict(
        {
            "embed.weight": table,
            "head.weight": table,  # tied
            "first.weight": table[:3],  # a view, and one that is not contiguous
            "turned.weight": table.T,
            "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
            "half": torch.randn(4, 2, generator=generator).half(),
            "brain": torch.randn(4, 2, generator=generator).bfloat16(),
            "position_ids": torch.arange(6).expand((1, -1)),
            "mask": torch.ones(1, 1, 4, 4).tril().bool(),
            "scalar": torch.tensor(3.5, dtype=torch.float64),
            "none": torch.zeros(0, 3),
        }
    )


@pytest.mark.parametrize("modern", [True, False])
def test_every_tensor_is_kept(tmp_path, modern):
    """Of files as torch writes them, and as it did before 1.6."""
    source = written(tmp_path / "mine", tensors(), _use_new_zipfile_serialization=modern)
    assert zipfile.is_zipfile(source / "pytorch_model.bin") is modern
    found = converted(source, tmp_path / "model")
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor.detach()), name
    record = source_of(tmp_path / "model/source.json")
    assert record["location"] == str(tmp_path / "model") and record["files"].keys() == {
        "config.json",
        "model.safetensors",
    }
    assert record["converted"].keys() == {"config.json", "pytorch_model.bin"}
    readable = stat.S_IMODE((tmp_path / "model/config.json").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "model/model.safetensors").stat().st_mode) == readable


def test_an_edit_to_the_pickle_changes_the_revision(tmp_path):
    revisions = []
    for value in (0.0, 1.0, 0.0):
        source = tmp_path / f"mine{len(revisions)}"
        converted(written(source, {"a": torch.full((2,), value)}), tmp_path / "model")
        revisions.append(read_json(tmp_path / "model/source.json")["revision"])
    assert revisions[0] == revisions[2] != revisions[1]


def sharded(directory: Path, model: torch.nn.Module) -> Path:
    """A model saved as two .bin files and their index."""
    names = list(model.state_dict())
    halves = {"pytorch_model-00001-of-00002.bin": names[: len(names) // 2]}
    halves["pytorch_model-00002-of-00002.bin"] = names[len(names) // 2 :]
    model.config.save_pretrained(directory)
    for shard, keys in halves.items():
        torch.save({key: model.state_dict()[key] for key in keys}, directory / shard)
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in halves.items() for key in keys}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return directory


def test_shards_become_a_model_that_transformers_reads(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, vocab_size=32)).eval()
    fetch_model({"path": str(sharded(tmp_path / "mine", model)), "weights": "bin"}, tmp_path / "model")
    loaded = load_model(tmp_path / "model", dtype="float32", device="cpu", attention="eager", trust_remote_code=False)
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 2
    (tmp_path / "mine/pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"lacks pytorch_model-00002-of-00002\.bin, which pytorch_model\.bin\.index"):
        fetch_model({"path": str(tmp_path / "mine"), "weights": "bin"}, tmp_path / "model")


def test_hub_model_is_converted_beside_the_cache(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).eval()
    model.config.save_pretrained(tmp_path / "mine")
    torch.save(model.state_dict(), tmp_path / "mine/pytorch_model.bin")
    files = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    with running_hub() as hub:
        repository = hub.model("org/old", {**files, "model.msgpack": b"x", "README.md": b"---\nlicense: mit\n---\n"})
        asked = {tmp_path / "model": {"hub": "org/old", "weights": "bin"}, tmp_path / "other": {"hub": "org/old"}}
        done, refused = (outcome.error for outcome in run_rules("fetch_model", asked, hub.url, tmp_path / "home"))
    assert done == "" and "weights: bin" in refused
    assert "found model.msgpack, pytorch_model.bin: expected weights as safetensors" in refused
    record = source_of(tmp_path / "model/source.json")
    assert (record["revision"], record["licence"]) == (repository.revisions["main"], "mit")
    loaded = AutoModel.from_pretrained(record["location"])
    for name, tensor in loaded.state_dict().items():
        assert name.startswith("pooler") or torch.equal(tensor, model.state_dict()[f"bert.{name}"])


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


PICKLES = {
    "code in a pickle": (lambda ran: pickle.dumps({"a": Payload(ran)}, 2), r"a pickle that asks for (posix|os)\.mkdir"),
    "code in a newer pickle": (lambda ran: pickle.dumps({"a": Payload(ran)}, 4), "a pickle of other things"),
    "nothing": (lambda ran: b"", "none that torch can read"),
    "no pickle": (lambda ran: b"GGUF" + bytes(100), "a pickle of other things"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_other_files_are_refused_and_run_nothing(tmp_path, case):
    make, found = PICKLES[case]
    source = written(tmp_path / "mine", {})
    (source / "pytorch_model.bin").write_bytes(make(tmp_path / "ran"))
    with pytest.raises(InputError, match=rf"^weights: pytorch_model\.bin is refused, .*{found}") as error:
        fetch_model({"path": str(source), "weights": "bin"}, tmp_path / "model")
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists() and os.listdir(tmp_path / "model") == []


CONTENTS = {
    "code in a file of torch": (lambda ran: {"a": torch.zeros(2), "b": Payload(ran)}, r"asks for (posix|os)\.mkdir"),
    "a module": (lambda ran: torch.nn.Linear(2, 2), r"asks for torch\.nn\.modules\.linear\.Linear"),
    "a tensor": (lambda ran: torch.zeros(2), "a Tensor"),
    "a training state": (lambda ran: {"model": {"a": torch.zeros(2)}}, "'model', which is a dict"),
    "a number": (lambda ran: {"a": torch.zeros(2), "step": 3}, "'step', which is a int"),
    "a key": (lambda ran: {3: torch.zeros(2)}, "3, which is a Tensor"),
    "a sparse tensor": (lambda ran: {"a": torch.eye(2).to_sparse()}, "'a', which is sparse_coo float32"),
    "complex numbers": (lambda ran: {"a": torch.zeros(2, dtype=torch.complex128)}, "'a', which is strided complex128"),
}


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("case", CONTENTS)
def test_anything_but_tensors_by_name_is_refused(tmp_path, monkeypatch, case, modern):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's own switch does not open the door
    make, found = CONTENTS[case]
    source = written(tmp_path / "mine", make(tmp_path / "ran"), _use_new_zipfile_serialization=modern)
    with pytest.raises(InputError, match=rf"^weights: pytorch_model\.bin is refused, .*{found}"):
        fetch_model({"path": str(source), "weights": "bin"}, tmp_path / "model")
    assert not (tmp_path / "ran").exists() and os.listdir(tmp_path / "model") == []


def test_the_payload_is_one(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_file_that_is_cut_is_refused(tmp_path):
    source = written(tmp_path / "mine", {"a": torch.zeros(1000)})
    whole = (source / "pytorch_model.bin").read_bytes()
    (source / "pytorch_model.bin").write_bytes(whole[:2000])
    with pytest.raises(InputError, match="none that torch can read"):
        fetch_model({"path": str(source), "weights": "bin"}, tmp_path / "model")


ANTIBERTY = {
    "pypi": "antiberty==0.1.3",
    "path": "antiberty/trained_models/AntiBERTy_md_smooth",
    "sha256": "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
    "weights": "bin",
}
RXNFP = {
    "pypi": "rxnfp==0.1.0",
    "path": "rxnfp/models/transformers/bert_ft_10k_25s",
    "sha256": "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
    "weights": "bin",
}


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(("source", "tensors", "blocks"), [(ANTIBERTY, 149, 8), (RXNFP, 201, 12)])
def test_real_checkpoints_are_converted(tmp_path, source, tensors, blocks):
    """A file of torch's format and one of that before 1.6, both of float32; the model gets every value of the file."""
    fetch_model(source, tmp_path / "model")
    saved = load_file(tmp_path / "model/model.safetensors")
    assert len(saved) == tensors
    assert {tensor.dtype for name, tensor in saved.items() if "position_ids" not in name} == {torch.float32}
    loaded = load_model(tmp_path / "model", dtype="float32", device="cpu", attention="eager", trust_remote_code=False)
    assert loaded.blocks == blocks
    state = {f"bert.{name}": tensor for name, tensor in loaded.base.state_dict().items()}
    for name, tensor in saved.items():
        if name.startswith("bert.") and "position_ids" not in name and "pooler" not in name:
            np.testing.assert_array_equal(state[name].numpy(), tensor.numpy(), name)
    if source is RXNFP:
        assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 591
