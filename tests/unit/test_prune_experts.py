"""Losses without experts equal those of plain transformers whose weights are zero, and the tables say what was run."""

import sys
from collections import Counter

import polars as pl
import pytest
import torch

import planted_experts
import zoo
from fake_run import FakeRun, leave_out
from outlier_features.ablate.ablation_effects import ablation_effects, target_name
from outlier_features.ablate.expert_ablation_schema import EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES
from outlier_features.ablate.prune_experts import prune_experts
from outlier_features.ablate.pruned_experts import SHARED, PrunedExperts, random_experts, super_experts
from outlier_features.ablate.pruning_passes import PruningPasses
from outlier_features.ablate.subject import Subject
from outlier_features.errors import InputError
from outlier_features.experts.experts_schema import EXPERTS
from outlier_features.files.artifacts import read_json
from outlier_features.files.missing import MissingInput
from outlier_features.files.tables import read_table, write_table
from outlier_features.summary.ablation_facts import pruning_facts
from test_ablate_dims import close, losses, sample
from test_rank_experts import SETTINGS, TOKEN, Run, filled, location

SHARED_ONES = {"qwen3_next": "shared_expert", "deepseek_v3": "shared_experts"}
LOADING = {key: value for key, value in SETTINGS.items() if key not in ("sequences", "percentile", "share")}


@pytest.mark.parametrize("name", ["olmoe", "qwen3_next", "gpt_oss", "mixtral", "deepseek_v3"])
def test_pruned_experts_write_nothing_as_with_weights_of_zero(name):
    loaded, tokens = zoo.loaded(name), sample(special=[(1, 4)], lengths=(16, 16, 9))
    torch.manual_seed(4)
    for place, parameter in loaded.model.named_parameters():
        if parameter.ndim == 3 or "router" in place:
            parameter.data.normal_(0, 0.3)
    experts = [(1, 2), (1, 5), (3, 0), *([(2, SHARED)] if name in SHARED_ONES else [])]
    layers, numbers = zip(*sorted(experts), strict=True)
    variant = PrunedExperts("expert", "super_expert", layers, numbers)
    table = PruningPasses(Subject(lambda: loaded), tokens, 4).scores([PrunedExperts(), variant])
    again = PruningPasses(Subject(lambda: loaded), tokens, 4).scores(
        [PrunedExperts()]
    )  # nothing is left of the pruning
    assert again.equals(table.filter(variant=0))
    top1 = (table["top1_probability"] * table["tokens"]).to_numpy().reshape(2, -1)
    unchanged, without = zip(table["nll"].to_numpy().reshape(2, -1), top1, strict=True)
    close(unchanged, losses(loaded.model, tokens))
    with torch.no_grad():
        for layer, expert in experts:
            mlp = loaded.model.model.layers[layer].mlp
            if expert == SHARED:
                mlp.get_submodule(SHARED_ONES[name]).down_proj.weight.zero_()
                continue
            mlp.experts.down_proj[expert] = 0
            if hasattr(mlp.experts, "down_proj_bias"):
                mlp.experts.down_proj_bias[expert] = 0
    close(without, losses(loaded.model, tokens))
    assert abs(without[0] - unchanged[0]).max() > 1e-4


def ranks(rows):
    flags = {"part": "expert", "max_abs": 1.0, "super_expert": False}
    return filled([flags | row for row in rows], EXPERTS.schema)


def test_random_experts_are_chosen_ones_of_the_same_layers():
    found = ranks(
        [{"layer": layer, "expert": e, "max_abs": None if e == 7 else 10.0 * layer + e} for layer in (1, 2)
         for e in range(8)]
        + [{"layer": 2, "part": "shared", "max_abs": 99.0, "super_expert": True}]
    ).with_columns(
        super_expert=pl.col("super_expert") | (pl.concat_str("layer", "expert").is_in(["13", "25"])).fill_null(False)
    )  # fmt: skip
    one, every = variants = super_experts(found, "mine")
    assert (one.layers, one.experts, one.rule) == ((2,), (SHARED,), "mine")
    assert (every.layers, every.experts) == ((1, 2, 2), (3, SHARED, 5))
    drawn = list(random_experts(variants, found, seeds=40))
    assert drawn == list(random_experts(variants, found, seeds=40)) and len(drawn) == 80
    for variant in drawn:
        places = set(zip(variant.layers, variant.experts, strict=True))
        assert len(places) == len(variant.experts) and not {(1, 3), (2, 5)} & places
        assert all(0 <= expert < 7 for expert in variant.experts)
    assert Counter(variant.layers for variant in drawn) == {(2,): 40, (1, 2, 2): 40}
    assert {expert for variant in drawn for expert in variant.experts} == set(range(7))
    few = found.filter((pl.col("layer") == 1) | pl.col("super_expert"))
    assert list(random_experts(variants, few, seeds=2)) == []
    assert super_experts(found.with_columns(super_expert=False), "mine") == []


class Pruning(Run):
    def prune(self, **changes):
        files = {name: self.directory / f"{name}.parquet" for name in ("expert_ablation", "expert_ablation_sequences")}
        settings = {"rule": "mine", "length": 12, "seeds": 2, "batch_size": 4, "cost": 1.0, "sequences": 2}
        prune_experts(
            self.directory / "source.json", self.directory / "tokens.safetensors", self.directory / "experts.parquet",
            **files, **settings | LOADING | changes,
        )  # fmt: skip
        (rows, provenance), (each, _) = (
            read_table(files[table.name], table) for table in (EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES)
        )
        return rows, each, provenance["pruning"]


def test_a_planted_super_expert_is_pruned_beside_random_ones(tmp_path):
    planted_experts.planted_moe(tmp_path / "model", TOKEN, vocabulary=128)
    run = Pruning(tmp_path, tmp_path / "model", [location()])
    run.write()
    rows, each, facts = run.prune()
    layer, expert = planted_experts.LAYER, planted_experts.EXPERT
    assert facts == {"has_experts": True, "super_experts": 1, "sequences": 2, "tokens": 12, "seeds": 2,
                     "only_first_excluded": True}  # fmt: skip
    assert rows["target"].to_list() == ["baseline", "expert", "random", "random"] and len(each) == 8
    assert rows["layers"].to_list()[1:] == [str(layer)] * 3 and rows["experts"][1] == str(expert)
    assert str(expert) not in rows["experts"].to_list()[2:] and rows["rule"].to_list() == [None, "mine", None, None]
    base, one = ablation_effects(rows, each)
    assert target_name(one) == f"expert {expert} of layer {layer}" and len(one["random"]) == 2
    harm = abs(one["perplexity"] - base["perplexity"])
    assert all(abs(draw["perplexity"] - base["perplexity"]) < harm for draw in one["random"])


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_without_super_experts_nothing_is_run(name, tmp_path, monkeypatch):
    zoo.save(name, tmp_path / "model")
    run = Pruning(tmp_path, tmp_path / "model", [])
    run.write()
    monkeypatch.setitem(sys.modules, "outlier_features.ablate.pruning_passes", None)  # importing it fails
    rows, each, facts = run.prune()
    assert rows.is_empty() and each.is_empty() and facts == {"has_experts": name == "mixtral", "super_experts": 0}
    rules = {"super_expert": {"kind": "super_expert"}}
    said = [fact.text for fact in pruning_facts(facts | {"effects": []}, rules, None)]
    assert [*map(bool, said)] == [True] * (name == "mixtral") and all("no super expert to prune" in one for one in said)


def test_what_stands_in_the_way_is_said(tmp_path):
    planted_experts.planted_moe(tmp_path / "model", TOKEN, vocabulary=128)
    run = Pruning(tmp_path, tmp_path / "model", [location()])
    found, _, provenance = run.write()
    no_loss = dict(provenance) | {"no_loss": "it predicts no next token"}
    write_table(tmp_path / "experts.parquet", found, EXPERTS, no_loss)
    with pytest.raises(InputError, match="it predicts no next token"):
        run.prune()
    leave_out("experts", "`skip` names experts", tmp_path)
    with pytest.raises(MissingInput) as error:
        run.prune()
    assert error.value.missing.cause == "off" and "`skip` names experts" in error.value.missing.reason


def test_the_report_says_what_pruning_does(tmp_path):
    summary = read_json(FakeRun(experts=3).write(tmp_path / "run") / "summary.json")
    (fact,) = pruning_facts(summary["expert_ablation"], summary["rules"], None)
    (part,) = fact.parts
    assert part.text.startswith(
        "Expert 1 of layer 1 (rule super_expert): perplexity goes from 10.49 to 30.5 (2.908 times)"
    )
    assert "With 1 random expert of the same layers set to zero alike, 2 draws: 90.5 to 270.5." in part.text
