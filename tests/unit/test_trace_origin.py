"""Origins of traced dims against hooks set by hand, brute force on small tensors, and planted weights."""

import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import zoo
from outlier_features.dims.dims_schema import DIMS, MASSIVE
from outlier_features.errors import InputError
from outlier_features.figures.lifecycle import lifecycle
from outlier_features.figures.origin import origin
from outlier_features.files.tables import read_table, write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.model.sites import find_sites
from outlier_features.origin.block_parts import block_parts
from outlier_features.origin.mlp_ladder import Checkpoint, ladder_rows
from outlier_features.origin.mlp_weights import projection_row, spectrum
from outlier_features.origin.origin_schema import LIFECYCLE
from outlier_features.origin.origin_targets import recorded_targets
from outlier_features.origin.trace_origin import trace_origin
from outlier_features.tokens.texts_schema import TEXTS
from outlier_features.tokens.tokens import tokens_digest
from outlier_features.wording import number
from test_sites import BY_HAND, seen_by_hand

N, T = 3, 10
TEXT = ("a", "\n", "<b>", "\u202e", "é", "x", "y", "z", "!", "?")
OUTPUTS = ("lifecycle", "origin_shares", "origin", "origin_neurons", "origin_weights")
SETTINGS = {
    "max_dims": 3, "dtype": "float32", "device": "cpu", "attention": "eager", "threads": 1, "trust_remote_code": False,
}  # fmt: skip
DENSE = sorted(name for name in BY_HAND if name != "mixtral")


@dataclass
class Run:
    """A tiny saved model and a run's tables for it: `massive` rows (sequence, layer, token, dim, value)."""

    directory: Path
    name: str
    massive: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    steps: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    lengths: tuple[int, ...] = (T,) * N
    plant: object = None

    def __post_init__(self):
        model = zoo.build(self.name)
        if self.plant:
            with torch.no_grad():
                self.plant(model)
        model.save_pretrained(self.directory / "model")
        ids = np.random.default_rng(0).integers(3, zoo.VOCABULARY, (N, T)).astype(np.int32)
        self.mask = np.arange(T) < np.reshape(self.lengths, (N, 1))
        self.ids = np.where(self.mask, ids, 0).astype(np.int32)
        special = np.zeros_like(self.mask)
        ends = np.cumsum([len(piece.encode()) for piece in TEXT])
        offsets = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int32)
        self.provenance = {
            "model": "tiny", "model_revision": "abc", "corpus": "words", "corpus_sha256": "0" * 64, "dtype": "float32",
            "tokens_sha256": tokens_digest(self.ids, special, self.mask), "d_model": zoo.D_MODEL,
            "sites": ["resid_post"], "device": "cpu", "attention": "eager", "rules": {"massive": {"kind": "massive"}},
        }  # fmt: skip
        arrays = {"tokens": self.ids, "special": special, "mask": self.mask, "offsets": np.tile(offsets, (N, 1, 1))}
        fed = {key: value for key, value in self.provenance.items() if key not in ("dtype", "sites")}
        write_tensors(self.directory / "tokens.safetensors", arrays, fed)
        texts = pl.DataFrame({"sequence": range(N), "text": ["".join(TEXT)] * N})
        write_table(self.directory / "texts.parquet", texts, TEXTS, fed)
        self._write_tables()
        record = {"location": "model", "origin": "org/tiny", "revision": "abc", "licence": None, "files": {}}
        (self.directory / "source.json").write_text(json.dumps(record))

    def _write_tables(self):
        keys = ("sequence", "layer", "token", "dim", "value")
        rows = [dict(zip(keys, row, strict=True), rule="massive", massive_all=True) for row in self.massive]
        frame = pl.DataFrame(rows, schema_overrides={"value": pl.Float64}) if rows else pl.DataFrame()
        write_table(self.directory / "massive.parquet", filled(frame, MASSIVE), MASSIVE, self.provenance)
        rows = [
            {"population": "all", "rule": "massive", "dim": dim, "selected": True, "step_up": up, "step_down": down}
            for dim, (up, down) in self.steps.items()
        ]
        frame = filled(pl.DataFrame(rows) if rows else pl.DataFrame(), DIMS)
        write_table(self.directory / "dims.parquet", frame, DIMS, self.provenance)

    def trace(self, wanted="auto", **settings):
        folder = self.directory
        trace_origin(
            folder / "source.json", folder / "tokens.safetensors", folder / "texts.parquet", folder / "dims.parquet",
            folder / "massive.parquet", *(folder / f"{name}.parquet" for name in OUTPUTS), folder / "origin.txt",
            wanted=wanted, **SETTINGS | settings,
        )  # fmt: skip
        return {name: pl.read_parquet(folder / f"{name}.parquet") for name in OUTPUTS}

    @property
    def text(self):
        return (self.directory / "origin.txt").read_text()

    def model(self, dtype="float32"):
        auto_class = AutoModel if self.name in zoo.ENCODERS else AutoModelForCausalLM
        return auto_class.from_pretrained(self.directory / "model", dtype=dtype, attn_implementation="eager").eval()

    def blocks(self, model):
        """The list of the model's blocks, by its length and size."""
        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == zoo.BLOCKS]
        return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))

    def outputs(self, model):
        """What each block returns, (L, N, T, H), by hooks; one sequence at a time, as the rule runs them."""
        seen = []
        hooks = [
            block.register_forward_hook(lambda _, args, out: seen.append((out if torch.is_tensor(out) else out[0])[0]))
            for block in self.blocks(model)
        ]
        for n in range(N):
            mask = {} if self.mask[n].all() else {"attention_mask": torch.from_numpy(self.mask[n : n + 1]).long()}
            with torch.no_grad():
                model.base_model(torch.from_numpy(self.ids[n : n + 1]).long(), **mask)
        for hook in hooks:
            hook.remove()
        return torch.stack(seen).reshape(N, zoo.BLOCKS, T, -1).transpose(0, 1).numpy()


def filled(frame, table):
    if not frame.columns:
        return pl.DataFrame(schema=table.schema)
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in table.schema.items() if name not in frame.columns]
    return frame.with_columns(missing)


def where(frame, dim):
    row = frame.filter(target_dim=dim).row(0, named=True)
    return row["sequence"], row["traced_token"]


@pytest.mark.parametrize("name", zoo.of_every_kind(sorted(set(zoo.CONFIGS) - {"granitemoeshared"})))
def test_parts_sum_to_what_each_block_returns_on_every_architecture(name, tmp_path):
    run = Run(tmp_path, name)
    life = run.trace([3, 40])["lifecycle"]
    after = run.outputs(run.model())
    for dim in (3, 40):
        n, t = where(life, dim)
        peak = np.unravel_index(np.abs(after[..., dim]).argmax(), after.shape[:3])
        assert (n, t) == tuple(peak[1:])
        for layer in range(zoo.BLOCKS):
            rows = life.filter(target_dim=dim, layer=layer)
            values = dict(rows.select("part", "value").iter_rows())
            post = values.pop("resid_post")
            assert post == float(after[layer, n, t, dim])
            assert sum(values.values()) == pytest.approx(post, abs=2e-5 * max(map(abs, values.values())))
            if layer:
                assert values["resid_pre"] == float(after[layer - 1, n, t, dim])
            added = rows.filter(~pl.col("part").is_in(["resid_pre", "resid_post"]))
            assert added["share"].sum() == pytest.approx(1, abs=1e-3)
            assert values.keys() & {"mlp_out", "routed_out"} and values.keys() & {"attn_out", "mixer_out"}


def written_by_experts(model, ids, token, shared, gate):
    """By layer and name, what hooks on the MLP, its experts, the shared one, its gate and the norm after it see."""
    seen = {}

    def keep(at):
        def hook(module, args, out):
            seen[at] = (out if torch.is_tensor(out) else out[0]).reshape(T, -1)[token].double()

        return hook

    for layer, block in enumerate(model.base_model.layers):
        block.mlp.register_forward_hook(keep((layer, "mlp_out")))
        if hasattr(block, "post_feedforward_layernorm"):
            block.post_feedforward_layernorm.register_forward_hook(keep((layer, "post")))
        for key, name in (("experts", "experts"), ("shared", shared), ("gate", gate)):
            if name and hasattr(block.mlp, name):
                block.mlp.get_submodule(name).register_forward_hook(keep((layer, key)))
    with torch.no_grad():
        model.base_model(torch.from_numpy(ids).long())
    return seen


@pytest.mark.parametrize(
    ("name", "shared", "gate"),
    [("olmoe", None, None), ("mixtral", None, None), ("gpt_oss", None, None), ("flex_olmo", None, None),
     ("qwen3_next", "shared_expert", "shared_expert_gate"), ("deepseek_v3", "shared_experts", None),
     ("glm4_moe", "shared_experts", None)],
)  # fmt: skip
def test_what_routed_and_shared_experts_write_is_told_apart(name, shared, gate, tmp_path):
    """Against hooks on the experts' module, the shared expert and its gate, and sums over the blocks by hand."""

    def larger(model):  # random experts write next to nothing
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(0, 0.3)

    run = Run(tmp_path, name, plant=larger)
    tables = run.trace([3, 40])
    life, shares, model = tables["lifecycle"], tables["origin_shares"], run.model()
    for dim in (3, 40):
        n, t = where(life, dim)
        seen = written_by_experts(model, run.ids[n : n + 1], t, shared, gate)
        values = {
            (row["layer"], row["part"]): row["value"] for row in life.filter(target_dim=dim).iter_rows(named=True)
        }
        for layer, block in enumerate(model.base_model.layers):
            added = seen.get((layer, "post"), seen[layer, "mlp_out"])[dim]
            if not hasattr(block.mlp, "experts"):
                assert values[layer, "mlp_out"] == float(added) and (layer, "routed_out") not in values
                continue
            assert (layer, "mlp_out") not in values and ((layer, "shared_out") in values) == bool(shared)
            written = {"routed_out": seen[layer, "experts"][dim] if shared else added}
            if shared:
                scale = 1 / (1 + torch.exp(-seen[layer, "gate"])) if gate else 1
                written["shared_out"] = float((scale * seen[layer, "shared"])[dim])
            for part, value in written.items():
                assert values[layer, part] == pytest.approx(float(value), rel=1e-5)
            assert sum(values[layer, part] for part in written) == pytest.approx(float(added), rel=1e-4, abs=1e-6)
        after = [values[layer, "resid_post"] for layer in range(zoo.BLOCKS)]
        last = int(np.abs(after).argmax())
        expected = {"embeddings": values[0, "resid_pre"]}
        for (layer, part), value in values.items():
            if layer <= last and part not in ("resid_pre", "resid_post"):
                expected[part] = expected.get(part, 0) + value
        rows = {row["part"]: row for row in shares.filter(target_dim=dim).iter_rows(named=True)}
        assert rows.keys() == expected.keys() | {"rounding"} and {row["layer"] for row in rows.values()} == {last}
        for part, value in expected.items():
            assert rows[part]["value"] == pytest.approx(value)
            assert rows[part]["share"] == pytest.approx(value / after[last])
        assert abs(rows["rounding"]["share"]) < 1e-5 and sum(row["share"] for row in rows.values()) == pytest.approx(1)
    ladder = tables["origin"].filter(checkpoint="mlp_out")
    for row in ladder.iter_rows(named=True):
        parts = life.filter(pl.col("part").str.contains("routed|shared|mlp"))
        rows = parts.filter(target_dim=row["target_dim"], layer=row["layer"])
        assert row["share"] == pytest.approx(rows["share"].sum())
    assert "routed experts" in run.text


def test_experts_that_cannot_be_told_apart_leave_the_mlp_whole(tmp_path):
    run = Run(tmp_path, "llama4_text")
    life = run.trace([3])["lifecycle"]
    assert "mlp_out" in life["part"] and not {"routed_out", "shared_out"} & set(life["part"])
    provenance = read_table(tmp_path / "lifecycle.parquet", LIFECYCLE)[1]
    assert "not one module behind transformers' experts interface" in provenance["experts_not_told_apart"]


def test_a_block_that_adds_more_than_attention_and_mlp_is_traced_as_a_whole(tmp_path):
    """Granite's shared experts stand beside the MLP."""
    run = Run(tmp_path, "granitemoeshared")
    life = run.trace([3])["lifecycle"]
    assert set(life["part"]) == {"resid_pre", "block", "resid_post"}
    n, t = where(life, 3)
    after = run.outputs(run.model())[:, n, t, 3]
    assert life.filter(part="resid_post")["value"].to_list() == pytest.approx(after.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", BY_HAND)
def test_parts_are_what_hooks_set_by_hand_see(name, tmp_path):
    run = Run(tmp_path, name)
    life = run.trace([7])["lifecycle"]
    n, t = where(life, 7)
    model = run.model()
    path, places = BY_HAND[name]
    path = path if hasattr(model, path.partition(".")[0]) else path.partition(".")[2]
    seen = seen_by_hand(model, torch.from_numpy(run.ids[n : n + 1]).long(), path, places)
    for row in life.filter(pl.col("part").is_in(["resid_pre", "attn_out", "mlp_out", "resid_post"])).iter_rows(
        named=True
    ):
        assert row["value"] == pytest.approx(float(seen[row["layer"], row["part"]][0, t, 7]), rel=1e-5)


def test_what_the_norms_of_bert_change_is_a_part_of_its_own(tmp_path):
    run = Run(tmp_path, "bert")
    life = run.trace([7])["lifecycle"]
    n, t = where(life, 7)
    model = run.model()
    seen = seen_by_hand(model, torch.from_numpy(run.ids[n : n + 1]).long(), *BY_HAND["bert"])
    values = {(row["layer"], row["part"]): row["value"] for row in life.iter_rows(named=True)}
    for layer in range(zoo.BLOCKS):
        x = {site: seen[layer, site][0, t] for site in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}
        first = x["resid_mid"] - (x["resid_pre"] + x["attn_out"])
        second = x["resid_post"] - (x["resid_mid"] + x["mlp_out"])
        assert values[layer, "norm_after_attn"] == pytest.approx(float(first[7]), abs=1e-5)
        assert values[layer, "norm_after_mlp"] == pytest.approx(float(second[7]), abs=1e-5)


def test_granite_adds_a_multiple_of_what_its_parts_return(tmp_path):
    run = Run(tmp_path, "granite")
    life = run.trace([7])["lifecycle"]
    n, t = where(life, 7)
    ids = torch.from_numpy(run.ids[n : n + 1]).long()
    seen = seen_by_hand(run.model(), ids, *BY_HAND["llama"])
    for row in life.filter(pl.col("part").is_in(["attn_out", "mlp_out"])).iter_rows(named=True):
        assert row["value"] == pytest.approx(0.22 * float(seen[row["layer"], row["part"]][0, t, 7]), rel=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_sums_hold_in_16_bit_formats(name, dtype, tmp_path):
    run = Run(tmp_path, name)
    run.provenance["dtype"] = dtype
    run._write_tables()
    tables = run.trace([7], dtype=dtype)
    assert tables["lifecycle"].filter(part="resid_post")["value"].is_finite().all()
    for _, rows in tables["origin_neurons"].group_by("layer"):
        assert rows["share"].sum() == pytest.approx(1, abs=0.3)


def test_parts_that_do_not_sum_to_the_whole_are_one_part():
    blocks = find_sites(zoo.loaded("llama"))
    rows = {name: torch.randn(zoo.D_MODEL) for name in ("resid_pre", "attn_out", "mlp_out")}
    rows["resid_mid"] = rows["resid_pre"] + rows["attn_out"]
    rows["resid_post"] = rows["resid_mid"] + rows["mlp_out"]
    assert [part.name for part in block_parts(blocks[0], rows)] == ["resid_pre", "attn_out", "mlp_out"]
    for site in rows:
        wrong = {**rows, site: rows[site] + torch.linspace(0, 1e-3, zoo.D_MODEL)}
        before, block = block_parts(blocks[0], wrong)
        assert (before.name, block.name) == ("resid_pre", "block")
        assert torch.equal(block.value, wrong["resid_post"].double() - wrong["resid_pre"].double())


def test_a_block_of_one_sublayer_has_its_output_as_its_part():
    block = find_sites(zoo.loaded("llama"))[0]
    rows = {name: torch.randn(zoo.D_MODEL) for name in ("resid_pre", "mixer_out")}
    rows["resid_post"] = rows["resid_pre"] + rows["mixer_out"]
    assert [part.name for part in block_parts(block, rows)] == ["resid_pre", "mixer_out"]
    del rows["mixer_out"]
    assert [part.name for part in block_parts(block, rows)] == ["resid_pre", "block"]


def test_a_residual_after_the_norm_is_traced_by_whole_blocks(tmp_path, monkeypatch):
    """In BLOOM's variant the sublayers' outputs are not added to resid_pre; what a block adds is known all the same."""
    bloom = {"vocab_size": zoo.VOCABULARY, "hidden_size": zoo.D_MODEL, "n_layer": zoo.BLOCKS, "n_head": zoo.HEADS,
             "apply_residual_connection_post_layernorm": True}  # fmt: skip
    monkeypatch.setitem(zoo.CONFIGS, "bloom", bloom)
    run = Run(tmp_path, "bloom")
    life = run.trace([7])["lifecycle"]
    n, t = where(life, 7)
    after = run.outputs(run.model())[:, n, t, 7]
    assert life.filter(part="resid_post")["value"].to_list() == pytest.approx(after.tolist(), rel=1e-4)
    added = life.filter(part="block")
    assert len(added) == zoo.BLOCKS and life["part"].n_unique() == 3
    assert added["value"].to_list()[1:] == pytest.approx(np.diff(after).tolist(), rel=1e-3, abs=1e-6)
    said = "Of layers 0 to 3 only what the whole block adds is known"
    assert said in run.text and said in lifecycle(life, ["massive"]).text


def test_a_block_without_an_mlp_has_no_ladder(tmp_path, monkeypatch):
    nemotron = {
        "vocab_size": zoo.VOCABULARY, "hidden_size": zoo.D_MODEL, "num_hidden_layers": zoo.BLOCKS, "head_dim": 16,
        "layers_block_type": ["mamba", "mamba", "mlp", "mamba"], "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": zoo.D_MLP, "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 8, "n_groups": 2,
    }  # fmt: skip
    monkeypatch.setitem(zoo.CONFIGS, "nemotron_h", nemotron)
    tables = Run(tmp_path, "nemotron_h").trace([3, 7, 40])
    life, rows = tables["lifecycle"], tables["origin"]
    assert life.filter(part="resid_post")["layer"].n_unique() == zoo.BLOCKS
    without = rows.filter(pl.col("layer") != 2)
    assert len(without) and without["max_abs"].is_null().all() and without["absent"].is_not_null().all()
    drawing = origin(rows, tables["origin_neurons"], ["massive"])
    for layer in without["layer"].unique():
        assert f"In layer {layer} mlp_norm, mlp_pre, mlp_act and mlp_down are absent" in drawing.text
        assert f"In the MLP of layer {layer} " not in drawing.text


@pytest.mark.parametrize("name", DENSE)
def test_the_ladder_is_a_brute_force_over_tensors_seen_by_hand(name, tmp_path):
    run = Run(tmp_path, name)
    origin = run.trace([7])["origin"]
    n, t = where(origin, 7)
    model = run.model()
    path, places = BY_HAND[name]
    path = path if hasattr(model, path.partition(".")[0]) else path.partition(".")[2]
    seen = seen_by_hand(model, torch.from_numpy(run.ids[n : n + 1]).long(), path, places)
    sites = ["mlp_norm" if "mlp_norm" in places else "resid_mid", "mlp_pre", "mlp_act", "mlp_down"]
    sites += ["mlp_out"] if name in ("gemma3_text", "olmo2") else []
    for (layer,), rows in origin.group_by("layer", maintain_order=True):
        way = rows.filter(~pl.col("checkpoint").is_in(["act_gate", "mlp_up"]))
        assert way["checkpoint"].to_list() == sites
        sizes = [np.abs(seen[layer, site][0].double().numpy()) for site in sites]
        largest = [size.max() for size in sizes]
        growths = [b / a for a, b in itertools.pairwise(largest)]
        for i, (row, size) in enumerate(zip(way.iter_rows(named=True), sizes, strict=True)):
            assert row["dims"] == size.shape[1]
            assert row["max_abs"] == pytest.approx(size.max(), rel=1e-6)
            assert (row["token"], row["dim"]) == np.unravel_index(size.argmax(), size.shape)
            assert row["median_abs"] == pytest.approx(np.median(size), rel=1e-5)
            if np.median(size):
                assert row["ratio"] == pytest.approx(size.max() / np.median(size), rel=1e-5)
            else:  # a ReLU's
                assert row["ratio"] is None
            assert row["traced_max_abs"] == pytest.approx(size[t].max(), rel=1e-6)
            assert row["traced_median_abs"] == pytest.approx(np.median(size[t]), rel=1e-5)
            if i:
                assert row["change"] == pytest.approx(largest[i] - largest[i - 1], rel=1e-4)
                assert row["growth"] == pytest.approx(growths[i - 1], rel=1e-5)
        exploding = [int(np.argmax(growths)) + 1] if max(growths) >= 2 else []
        assert [i for i, is_it in enumerate(way["explosion"]) if is_it] == exploding


def test_the_factors_of_a_gated_mlp(tmp_path):
    for name, up in (
        ("llama", lambda mlp, x: mlp.up_proj(x)),
        ("phi3", lambda mlp, x: mlp.gate_up_proj(x).chunk(2, -1)[1]),
    ):
        run = Run(tmp_path / name, name)
        origin = run.trace([7])["origin"]
        n, _ = where(origin, 7)
        model = run.model()
        seen = seen_by_hand(model, torch.from_numpy(run.ids[n : n + 1]).long(), *BY_HAND[name])
        for (layer,), rows in origin.group_by("layer"):
            mlp = model.model.layers[layer].mlp
            with torch.no_grad():
                expected = {
                    "act_gate": torch.nn.functional.silu(seen[layer, "mlp_pre"]),
                    "mlp_up": up(mlp, seen[layer, "mlp_norm"]),
                }
            found = {row["checkpoint"]: row for row in rows.iter_rows(named=True)}
            assert found["act_gate"]["previous"] == "mlp_pre" and found["mlp_up"]["previous"] == "mlp_norm"
            for checkpoint, value in expected.items():
                assert found[checkpoint]["max_abs"] == pytest.approx(float(value.abs().max()), rel=1e-5)
                assert not found[checkpoint]["explosion"]


DOWN = {
    "gpt2": (lambda m, i: m.transformer.h[i].mlp.c_proj, True),
    "llama": (lambda m, i: m.model.layers[i].mlp.down_proj, False),
    "opt": (lambda m, i: m.model.decoder.layers[i].fc2, False),
    "bert": (lambda m, i: m.encoder.layer[i].output.dense, False),
    "gemma3_text": (lambda m, i: m.model.layers[i].mlp.down_proj, False),
}


@pytest.mark.parametrize("name", DOWN)
def test_what_the_neurons_write_sums_to_what_the_last_linear_writes(name, tmp_path):
    """GPT-2's Conv1D keeps its weight as (inputs, outputs); OPT, GPT-2 and BERT have biases."""
    run, dim = Run(tmp_path, name), 7
    neurons = run.trace([dim])["origin_neurons"]
    n, t = where(neurons, dim)
    model = run.model()
    seen = seen_by_hand(model, torch.from_numpy(run.ids[n : n + 1]).long(), *BY_HAND[name])
    find, transposed = DOWN[name]
    for (layer,), rows in neurons.group_by("layer"):
        linear = find(model, layer)
        weight = linear.weight[:, dim] if transposed else linear.weight[dim]
        activation = seen[layer, "mlp_act"][0, t].double()
        expected = (activation * weight.detach().double()).numpy()
        found = rows.drop_nulls("neuron").sort("neuron")
        np.testing.assert_allclose(found["contribution"].to_numpy(), expected, rtol=1e-4, atol=1e-9)
        bias = 0.0 if linear.bias is None else float(linear.bias[dim].detach())
        assert rows.filter(pl.col("neuron").is_null())["contribution"].to_list() == [bias]
        total = float(seen[layer, "mlp_down"][0, t, dim])
        assert rows["contribution"].sum() == pytest.approx(total, rel=1e-4, abs=1e-6)
        assert rows["share"].sum() == pytest.approx(1, abs=1e-3)
        by_contribution = np.argsort(-np.abs(expected), kind="stable")
        assert found.sort("rank")["neuron"].to_list()[:5] == by_contribution[:5].tolist()
        by_weight = np.argsort(-np.abs(weight.detach().double().numpy()), kind="stable")
        assert found.sort("weights_only_rank")["neuron"].to_list()[:5] == by_weight[:5].tolist()


def explode(model):
    """Neuron 17 of block 2 grows with the square of its input and writes into dim 9 alone, as no other weight can."""
    layer = model.model.layers[2]
    layer.mlp.gate_proj.weight[17] = 2 * layer.post_attention_layernorm.weight
    layer.mlp.up_proj.weight[17] = layer.mlp.gate_proj.weight[17]
    layer.mlp.down_proj.weight[:, 17] = 0
    layer.mlp.down_proj.weight[9, 17] = 50


def test_a_planted_neuron_is_found(tmp_path):
    run = Run(tmp_path, "llama", plant=explode)
    after = run.outputs(run.model())
    n, t = np.unravel_index(np.abs(after[2, :, :, 9]).argmax(), (N, T))
    value = float(after[2, n, t, 9])
    assert abs(value) > 50
    other = float(after[2, n, t, 5])
    run.massive = [(0, 3, 1, 9, value / 2), (int(n), 2, int(t), 5, other), (int(n), 2, int(t), 9, value)]
    run.steps = {9: (2, None), 5: (2, None)}
    run._write_tables()
    tables = run.trace(max_dims=1)
    assert tables["lifecycle"]["target_dim"].unique().to_list() == [9]
    assert where(tables["lifecycle"], 9) == (n, t)
    assert tables["origin"]["layer"].unique().to_list() == [2]
    assert set(tables["origin"]["step"]) == {"up"}
    first = tables["origin_neurons"].filter(rank=1).row(0, named=True)
    assert first["neuron"] == 17 and first["weight"] == 50 and first["share"] == pytest.approx(1, abs=0.02)
    part = tables["lifecycle"].filter(layer=2, part="mlp_out").row(0, named=True)
    assert part["share"] == pytest.approx(1, abs=0.05)
    down = tables["origin_weights"].row(-1, named=True)
    assert (down["max_output"], down["max_input"], down["max_abs"]) == (9, 17, 50)
    assert down["singular_values"][0] == pytest.approx(50, rel=1e-2) and down["dim_shares"][0] > 0.99
    assert down["projection"] == pytest.approx(part["value"] / 50, rel=0.05) or down["projection"] < 0
    assert down["projection_share"] == pytest.approx(1, abs=0.05) and down["r2"] > 0.99
    assert down["slope"] == pytest.approx(50, rel=0.05) and "R^2" in run.text
    assert f"The MLP of layer 2 writes {number(part['value'])} into dim 9 at" in run.text
    assert f"after the layer it has {number(value)}." in run.text
    assert "neuron 17 gives" in run.text
    assert "Traced are the dims that rule massive selects over all tokens, at most the 1 largest." in run.text


def test_without_massive_activations_the_dims_that_rise_most(tmp_path):
    run = Run(tmp_path, "bert", lengths=(T, 6, 8))
    tables = run.trace(max_dims=2)
    model = run.model()
    after = np.where(run.mask[None, :, :, None], np.abs(run.outputs(model)), -1)
    entering = []
    hook = run.blocks(model)[0].register_forward_pre_hook(lambda _, args: entering.append(args[0][0]))
    run.outputs(model)
    hook.remove()
    entry = np.abs(torch.stack(entering).numpy())[run.mask].max(axis=0)
    order = np.argsort(-(after.max(axis=(0, 1, 2)) - entry))
    assert tables["lifecycle"]["target_dim"].unique(maintain_order=True).to_list() == order[:2].tolist()
    for dim in order[:2]:
        n, t = np.unravel_index(after[..., dim].max(axis=0).argmax(), (N, T))
        assert where(tables["lifecycle"], int(dim)) == (n, t)
        assert tables["origin"].filter(target_dim=int(dim))["token"].max() < run.mask[n].sum()
    assert set(tables["lifecycle"]["selection"]) == {"largest_rise"}
    assert "By rule massive no dim has massive activations over all tokens" in run.text


def test_padding_is_in_no_maximum_and_no_median(tmp_path):
    run = Run(tmp_path, "bert", lengths=(4, 4, 4))
    origin = run.trace([7])["origin"]
    n, _ = where(origin, 7)
    model, mask = run.model(), torch.from_numpy(run.mask)
    seen = {}
    for i, block in enumerate(model.encoder.layer):
        block.intermediate.dense.register_forward_hook(lambda _, args, out, i=i: seen.update({i: out[0]}))
    with torch.no_grad():
        model(torch.from_numpy(run.ids[n : n + 1]).long(), attention_mask=mask[n : n + 1].long())
    for row in origin.filter(checkpoint="mlp_pre").iter_rows(named=True):
        size = seen[row["layer"]][:4].abs().numpy()
        assert row["max_abs"] == pytest.approx(size.max(), rel=1e-5)
        assert row["median_abs"] == pytest.approx(np.median(size), rel=1e-4)


def test_experts_end_the_ladder_with_a_sentence(tmp_path):
    run = Run(tmp_path, "mixtral")
    tables = run.trace([7])
    rows = tables["origin"].filter(layer=tables["origin"]["layer"][0])
    assert rows.filter(pl.col("absent").is_null())["checkpoint"].to_list() == ["mlp_norm", "mlp_out"]
    assert set(rows["absent"].drop_nulls()) == {"the MLP routes tokens to experts"}
    assert tables["origin_neurons"].is_empty() and tables["origin_weights"].is_empty()
    assert "absent (the MLP routes tokens to experts), so the ladder has mlp_norm and mlp_out alone." in run.text


def test_text_from_the_corpus_cannot_break_the_text(tmp_path):
    run = Run(tmp_path, "gpt2")
    run.trace([1, 2, 3, 4, 5])
    assert "\u202e" not in run.text
    assert all(len(line) < 400 for line in run.text.splitlines())
    assert set(run.text) & set("\r\t\u2028") == set()


def test_the_value_of_the_run_must_come_again(tmp_path):
    run = Run(tmp_path, "llama", massive=[(1, 2, 3, 9, 500.0)], steps={9: (2, None)})
    with pytest.raises(InputError, match=r"massive\.parquet: has 500 in dim 9 of layer 2 at sequence 1, position 3"):
        run.trace()


def test_a_dim_that_the_model_lacks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"trace_origin\.dims: found 64, expected dims below 64, the width of tiny"):
        Run(tmp_path, "llama").trace([64])


def test_a_model_of_another_revision_is_refused(tmp_path):
    run = Run(tmp_path, "llama")
    run.provenance["model_revision"] = "other"
    run._write_tables()
    with pytest.raises(InputError, match="model_revision"):
        run.trace([7])


def test_no_dims_leave_empty_tables(tmp_path):
    run = Run(tmp_path, "llama")
    assert all(table.is_empty() for table in run.trace([]).values())
    assert "No dim is traced." in run.text


def test_targets_are_the_largest_massive_activations():
    rows = [(2, 1, 0, 5, -300.0), (1, 1, 4, 5, 200.0), (0, 3, 0, 8, 250.0), (0, 3, 0, 2, 900.0), (0, 1, 0, 1, 150.0)]
    keys = ("sequence", "layer", "token", "dim", "value")
    massive = filled(pl.DataFrame([dict(zip(keys, row, strict=True)) for row in rows]), MASSIVE)
    massive = massive.with_columns(massive_all=pl.col("dim") != 2)  # massive only by the other population's median
    steps = [
        {"population": "all", "rule": "massive", "dim": dim, "selected": True, "step_up": 1, "step_down": 3}
        for dim in (5, 8, 1)
    ]
    dims = filled(pl.DataFrame(steps), DIMS)
    found = recorded_targets("auto", 2, massive, dims)
    assert [(t.dim, t.sequence, t.position, t.layer, t.value) for t in found.values()] == [
        (5, 2, 0, 1, -300.0), (8, 0, 0, 3, 250.0),
    ]  # fmt: skip
    named = recorded_targets([8, 30], 1, massive, dims)
    assert list(named) == [8, 30] and named[8].selection == "named" and named[30] is None


@pytest.mark.parametrize(
    ("maxima", "expected"),
    [([1, 3, 3, 5.9], "mlp_pre"), ([10, 2, 3.9, 7], None), ([1, 1, 2, 2], "mlp_act"), ([20, 60, 60, 2300], "mlp_down")],
)
def test_the_explosion_point_is_the_largest_growth_of_at_least_2(maxima, expected):
    names = ("mlp_norm", "mlp_pre", "mlp_act", "mlp_down")
    chain = [
        Checkpoint(name, np.float32([[0.1, -largest]]), names[i - 1] if i else None)
        for i, (name, largest) in enumerate(zip(names, maxima, strict=True))
    ]
    rows = ladder_rows(chain, 0, 1)
    assert [row["checkpoint"] for row in rows if row["explosion"]] == ([expected] if expected else [])
    assert rows[0]["value"] == pytest.approx(-maxima[0]) and rows[1]["value"] is None


def test_the_spectrum_is_that_of_a_full_decomposition():
    weight = torch.randn(40, 9000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 40)[:, None]
    u, s, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    found = spectrum(weight)
    np.testing.assert_allclose(found.values, s[:5].numpy(), rtol=1e-8)
    np.testing.assert_allclose(found.dim_shares, u[:, :5].square().numpy(), atol=1e-8)
    assert math.isclose(found.dim_shares[:, 0].sum(), 1)
    assert abs(found.written @ u[:, 0].numpy()) == pytest.approx(1)


@pytest.mark.parametrize("dim", [3, 17])
def test_the_projection_is_that_on_the_right_singular_vector(dim):
    generator = torch.Generator().manual_seed(1)
    weight, neurons = torch.randn(40, 5000, generator=generator), torch.randn(12, 5000, generator=generator)
    written = neurons @ weight.T + 0.5
    row = projection_row(spectrum(weight), neurons, written, 7, dim)
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    x = neurons.double().numpy() @ vh[0] * np.sign(u[dim, 0])
    y = written[:, dim].double().numpy()
    slope, intercept = np.polyfit(x, y, 1)
    assert row["projection"] == pytest.approx(x[7], rel=1e-6)
    assert row["projection_share"] == pytest.approx(s[0] * abs(u[dim, 0]) * x[7] / y[7], rel=1e-6)
    assert row["slope"] == pytest.approx(slope, rel=1e-6)
    residual = y - slope * x - intercept
    assert row["r2"] == pytest.approx(1 - residual @ residual / ((y - y.mean()) @ (y - y.mean())), rel=1e-6)
    alike = projection_row(spectrum(weight), neurons[:1].repeat(3, 1), written[:1].repeat(3, 1), 0, dim)
    assert alike["slope"] is None and alike["r2"] is None
