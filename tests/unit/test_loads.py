"""How often a run loads the model, counted as its jobs run, is what `rules_that_load` says."""

from collections import Counter
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import zoo
from outlier_features.files.tables import provenance_of, public_tables
from outlier_features.model.models import LoadedModel
from outlier_features.run.config import read_schema, resolve_config
from outlier_features.run.loads import rules_that_load
from rule_jobs import inside, plans

ROOT = Path(__file__).parents[2]
ABLATE = ("super_weights", "ablation", "ablation_sequences")
KINDS = {"llama": (False, True), "olmoe": (True, True), "bert": (False, False)}  # experts, a loss of the next token
CHUNKS = 2


def config(keep_activations):
    catalog = {"models": {"tiny": {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}}
    return {
        "models": ["tiny"],
        "corpora": ["text"],
        "catalog": catalog,
        "sample": {"sequences": CHUNKS, "tokens": 24},
        "extract": {"chunk_sequences": 1, "keep_activations": keep_activations},
        "ablate": {"knock_outs": True, "tokens": 6},
        "quantize": {"losses": True, "schemes": ["int4_token"], "remedied": ["int4_token"], "tokens": 6},
        "gallery": {"attribution": True},
    }


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """By whether activations are kept, the folder of a run and its jobs, whatever its model is."""
    folders = {keep: tmp_path_factory.mktemp("run") for keep in (True, False)}
    for folder in folders.values():
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "text.txt").write_text("A lazy dog, dozing in the sun. " * 20)
    found = plans({folder: config(keep) for keep, folder in folders.items()})
    return dict(zip(folders, zip(folders.values(), found, strict=True), strict=True))


NO_ABLATION = {"ablation": "model", "ablation_sequences": "model"}
OFF = dict.fromkeys(NO_ABLATION, "off")


def missing(folder):
    """Why tables of rule ablate_dims are missing."""
    found = {
        name: provenance_of(folder / f"results/tiny/text/{name}.parquet", public_tables()[name]) for name in ABLATE
    }
    return {name: provenance["missing"]["cause"] for name, provenance in found.items() if "missing" in provenance}


def save(name, folder):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    zoo.save(name, folder, vocab_size=len(letters) + 4)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("olmoe", True),
        ("llama", False),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("bert", True, marks=pytest.mark.slow),
    ],
)
def test_loads_of_a_run(name, keep, planned, tmp_path, monkeypatch):
    _, jobs = planned[keep]
    save(name, tmp_path / "model")
    (tmp_path / "text.txt").write_text("A lazy dog, dozing in the sun. " * 20)
    loads = Counter()
    whole = LoadedModel.of

    def counted(*args, **kwargs):
        loads[rule] += 1
        return whole(*args, **kwargs)

    monkeypatch.setattr(LoadedModel, "of", counted)  # what every load comes to
    with inside(tmp_path):
        for job in jobs:
            rule = job.rule
            assert job.run() is None
    schema = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    resolved = resolve_config(yaml.safe_load((ROOT / "config.yaml").read_text()) | config(keep), schema)
    has_experts, has_loss = KINDS[name]
    rules = rules_that_load(resolved, has_experts=has_experts, has_loss=has_loss)
    assert loads == Counter({rule: CHUNKS if number == 0 else 1 for number, rule in enumerate(rules)})
    assert loads["check_norms"] == 0 and loads["rank_experts"] == has_experts
    lost = provenance_of(
        tmp_path / "results/tiny/text/quantization_loss.parquet", public_tables()["quantization_loss"]
    ).get("missing")
    assert bool(lost) == (not has_loss)
    # One load for the search and the ablations, of which one can be had without the other.
    assert missing(tmp_path) == {"llama": {}, "olmoe": {"super_weights": "model"}, "bert": NO_ABLATION}[name]
    if name == "llama" and keep:
        (job,) = [job for job in jobs if job.rule == "ablate_dims"]
        for analysis, left in (("super_weights", {"super_weights": "off"}), ("ablation", OFF)):
            told = SimpleNamespace(**vars(job.snakemake) | {"params": copy(job.snakemake.params)})
            told.params.off = {**told.params.off, analysis: "`skip` names it"}
            with inside(tmp_path):
                assert replace(job, snakemake=told).run() is None
            assert missing(tmp_path) == left


def test_what_is_off_loads_nothing():
    schema = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    off = ["origin", "attention_maps", "super_weights", "knock_outs", "experts", "attribution", "quantization",
           "quantization_losses"]  # fmt: skip
    skip = {"skip": [*off, "ablation", "gallery"]}
    resolved = resolve_config(yaml.safe_load((ROOT / "config.yaml").read_text()) | config(True) | skip, schema)
    assert rules_that_load(resolved, has_experts=True, has_loss=True) == ["extract_activations"]
    resolved["skip"].remove("super_weights")
    assert rules_that_load(resolved, has_experts=True, has_loss=False) == ["extract_activations", "ablate_dims"]
    resolved["skip"] = [*off, "neurons"]
    assert rules_that_load(resolved, has_experts=True, has_loss=False) == ["extract_activations"]
    assert rules_that_load(resolved, has_experts=True, has_loss=True) == ["extract_activations", "ablate_dims"]
