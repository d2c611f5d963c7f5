"""Every ablation equals plain transformers with hooks set by hand, and the tables say what was run."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional

import zoo
from fake_run import leave_out
from outlier_features.ablate.ablate_dims import AblationRun, Variant, ablate_dims, ablation_rows
from outlier_features.ablate.ablation_effects import ablation_effects, target_name
from outlier_features.ablate.ablation_sample import PassCost, affordable_length, search_cost
from outlier_features.ablate.ablation_schema import ABLATION, ABLATION_SEQUENCES
from outlier_features.ablate.ablation_targets import AblationTarget, random_targets, selected_targets
from outlier_features.ablate.find_super_weights import find_super_weights
from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.tables import read_table, write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.model.interventions import Edit, edited
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites
from outlier_features.rules.kinds import followed
from outlier_features.tokens.tokens import Tokens, tokens_digest
from test_sites import BY_HAND
from test_super_weights import plant

N, T = 3, 16
BOUND = 1e-6  # relative, of variants that share a batch, in float32; found: none, 5e-8 with experts
PUBLISHED = Path(__file__).parents[2] / "workflow/published/super_weights.csv"
PATHS = {name: path for name, (path, _) in BY_HAND.items()} | {
    "olmoe": "model.layers", "qwen3_next": "model.layers", "gpt_oss": "model.layers", "falcon": "transformer.h",
    "gptj": "transformer.h", "deepseek_v3": "model.layers",
}  # fmt: skip
CAUSAL = [name for name in PATHS if name not in zoo.ENCODERS]


def sample(lengths=(T, T, T), special=()):
    rng = np.random.default_rng(0)
    mask = np.arange(T) < np.array(lengths)[:, None]
    tokens = np.where(mask, rng.integers(3, zoo.VOCABULARY, (N, T)), 0).astype(np.int32)
    marked = np.zeros((N, T), bool)
    for place in special:
        marked[place] = True
    offsets = np.tile(np.stack([np.arange(T) * 2, np.arange(T) * 2 + 2], -1).astype(np.int32), (N, 1, 1))
    digest = tokens_digest(tokens, marked, mask)
    return Tokens(tokens, marked, mask, offsets, {"tokens_sha256": digest, "model": "m", "corpus": "c"})


def losses(model, tokens, hooks=()):
    """Sums of nll and of the largest probability (N,) over predicted tokens, with hooks (module, function)."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    ids, nll, top1 = torch.from_numpy(tokens.tokens).long(), [], []
    for row, mask in zip(ids, torch.from_numpy(tokens.mask), strict=True):
        with torch.no_grad():
            logits = model(row[None]).logits[0, :-1].double()
        nll.append(float((functional.cross_entropy(logits, row[1:], reduction="none") * mask[1:]).sum()))
        top1.append(float((logits.softmax(-1).amax(-1) * mask[1:]).sum()))
    for handle in handles:
        handle.remove()
    return np.array(nll), np.array(top1)


def first(output):
    return output if torch.is_tensor(output) else output[0]


def with_dims(tokens, dims, values, positions):
    """A hook that returns a changed copy; it counts the sequences that it has seen."""
    parts = {"excluded": (0,), "rest": (1,), "all": (0, 1)}[positions]
    where = torch.from_numpy(np.isin(tokens.parts, parts))
    seen = []

    def hook(module, args, output):
        x = first(output).clone()
        rows = x.view(T, -1)  # a sequence alone, whether it has a batch axis or not
        for dim, value in zip(dims, values, strict=True):
            rows[where[len(seen)], dim] = value
        seen.append(1)
        return x if torch.is_tensor(output) else (x, *output[1:])

    return hook


def states(model, tokens, module):
    kept = []
    handle = module.register_forward_hook(lambda m, a, out: kept.append(first(out).detach().clone().view(T, -1)))
    losses(model, tokens)
    handle.remove()
    return torch.stack(kept)


def scores(loaded, tokens, variants):
    rows = AblationRun(Subject(lambda: loaded), tokens, batch_size=2).scores(variants)
    nll = rows["nll"].to_numpy().reshape(len(variants), N)
    top1 = (rows["top1_probability"] * rows["tokens"]).to_numpy().reshape(len(variants), N)
    return list(zip(nll, top1, strict=True))


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", zoo.of_every_kind(CAUSAL))
def test_dims_at_a_blocks_output_are_set_as_by_hand(name):
    loaded, tokens = zoo.loaded(name), sample(special=[(1, 4)], lengths=(T, T, 9))
    block = loaded.model.get_submodule(f"{PATHS[name]}.1")
    other = loaded.model.get_submodule(f"{PATHS[name]}.2")
    with torch.no_grad():
        embeddings = loaded.model.get_input_embeddings().weight
        embeddings[:, 5] += 8 * embeddings.std()  # a dim that is worth something
    target = AblationTarget("dims", "massive", "resid_post", (1, 2, 1), (5, 9, 7))
    variants = [Variant(None), *(Variant(target, where, value) for where, value in target.treatments)]
    found = scores(loaded, tokens, variants)
    plain = losses(loaded.model, tokens)
    close(found[0], plain)
    means = {}
    for positions, part in (("excluded", 0), ("rest", 1)):
        where = torch.from_numpy(tokens.parts == part)
        means[positions] = [
            float(states(loaded.model, tokens, module)[where][:, dim].double().mean())
            for module, dim in ((block, 5), (block, 7), (other, 9))
        ]
    for variant, here in zip(variants[1:], found[1:], strict=True):
        values = means[variant.positions] if variant.value == "mean" else [0.0] * 3
        hooks = [
            (block, with_dims(tokens, (5, 7), values[:2], variant.positions)),
            (other, with_dims(tokens, (9,), values[2:], variant.positions)),
        ]
        close(here, losses(loaded.model, tokens, hooks))
    assert len({round(float(nll.sum()), 3) for nll, _ in found}) == len(variants)  # each changes something


@pytest.mark.parametrize("name", [name for name in BY_HAND if name in CAUSAL and "attn_norm" in BY_HAND[name][1]])
def test_dims_of_all_linear_inputs_are_set_as_by_hand(name):
    loaded, tokens = zoo.loaded(name), sample()
    path, places = BY_HAND[name]
    target = AblationTarget("dims", "dettmers", "attn_norm+mlp_norm", (), (5, 9))
    (found,) = scores(loaded, tokens, [Variant(target, "all", "zero")])
    hooks = []
    for block in loaded.model.get_submodule(path):
        for site in ("attn_norm", "mlp_norm"):
            module, _, side = places[site].rpartition(" ")
            assert side == "out"
            hooks.append((block.get_submodule(module), with_dims(tokens, (5, 9), (0.0, 0.0), "all")))
    close(found, losses(loaded.model, tokens, hooks))
    assert abs(found[0] - losses(loaded.model, tokens)[0]).max() > 1e-3


@pytest.mark.parametrize(("name", "down"), [("llama", "mlp.down_proj"), ("gpt2", "mlp.c_proj")])
def test_weights_are_zero_while_they_are_measured(name, down):
    loaded, tokens = zoo.loaded(name), sample()
    modules = [loaded.model.get_submodule(f"{PATHS[name]}.{layer}.{down}") for layer in (0, 2)]
    with torch.no_grad():
        for module in modules:
            module.weight[4, 6] = 20.0
    row, col = (6, 4) if name == "gpt2" else (4, 6)  # Conv1D keeps [in, out]
    target = AblationTarget("weight", "super_weight", "mlp_down.weight", (0, 2), (row, row), (col, col))
    found, again = scores(loaded, tokens, [Variant(target, "all", "zero"), Variant(None)])
    close(again, losses(loaded.model, tokens))
    with torch.no_grad():
        for module in modules:
            assert module.weight[4, 6] == 20.0
            module.weight[4, 6] = 0
    close(found, losses(loaded.model, tokens))


def test_the_same_twice():
    tokens, target = sample(), AblationTarget("dims", "massive", "resid_post", (1,), (5,))
    variants = [Variant(None), Variant(target, "rest", "mean")]
    one, two = (AblationRun(Subject(lambda: zoo.loaded("llama")), tokens, 2).scores(variants) for _ in range(2))
    assert one.equals(two)


def every_kind(loaded, tokens):
    """The unchanged model and variants that begin at every block."""
    targets = [
        *(AblationTarget("dims", "massive", "resid_post", (layer,), (5,)) for layer in range(len(loaded.stack))),
        AblationTarget("dims", "massive", "resid_post", (1, 2, 1), (5, 9, 7)),
        *(AblationTarget("dims", "dettmers", site, (), (5, 9)) for site in ("attn_norm", "mlp_norm")),
    ]
    if (dense := [n for n, block in enumerate(find_sites(loaded)) if "mlp_down" in block.sites])[1:]:
        layers, rows, cols = dense[1:], [4] * len(dense[1:]), [6] * len(dense[1:])
        targets.append(AblationTarget("weight", "super_weight", "mlp_down.weight", *map(tuple, (layers, rows, cols))))
    return AblationRun(Subject(lambda: loaded), tokens, 1).variants(targets)


@pytest.mark.parametrize("name", zoo.of_every_kind(CAUSAL))
def test_passes_that_begin_at_a_block_give_what_whole_passes_give(name, monkeypatch):
    tokens, loaded = sample(special=[(1, 4)], lengths=(T, T, 9)), zoo.loaded(name)
    variants = every_kind(loaded, tokens)
    found = AblationRun(Subject(lambda: loaded), tokens, 1).scores(variants)
    monkeypatch.setattr(Prefixes, "start", lambda self, wanted: 0)
    assert found.equals(AblationRun(Subject(lambda: loaded), tokens, 1).scores(variants))


@pytest.mark.parametrize("name", zoo.of_every_kind(CAUSAL))
def test_variants_that_share_a_batch_differ_by_rounding(name):
    tokens, loaded = sample(), zoo.loaded(name)
    variants = every_kind(loaded, tokens)
    alone = AblationRun(Subject(lambda: loaded), tokens, 1)
    together = AblationRun(Subject(lambda: loaded), tokens, 1)
    together._batch_size = 12  # as on a GPU: four variants of three sequences
    assert len([*together._groups(variants, [0] * len(variants), 4)]) < len(variants) // 2
    one, other = alone.scores(variants), together.scores(variants)
    assert one.drop("nll", "top1_probability").equals(other.drop("nll", "top1_probability"))
    np.testing.assert_allclose(other["nll"], one["nll"], rtol=BOUND)
    np.testing.assert_allclose(other["top1_probability"], one["top1_probability"], rtol=BOUND)


def test_as_many_sequences_are_kept_as_the_limit_allows(monkeypatch):
    tokens, loaded = sample(), zoo.loaded("llama")
    target = AblationTarget("dims", "massive", "resid_post", (1,), (5,))
    passes, found = AblationRun(Subject(lambda: loaded), tokens, 1), []
    passes._batch_size = N
    loaded.model.model.layers[3].mlp.register_forward_hook(lambda module, args, output: found.append(len(output)))
    # Of two starts: all sequences, two, and one in any case.
    passes.scores([Variant(None), Variant(target, "rest", "zero")])  # tries where passes may begin
    found.clear()
    for limit, sizes in ((2**30, {3}), (2 * 2 * T * zoo.D_MODEL * 4, {2, 1}), (0, {1})):
        monkeypatch.setattr("outlier_features.ablate.variant_passes.KEPT_BYTES", limit)
        passes.scores([Variant(None), Variant(target, "rest", "zero")])
        assert set(found) == sizes
        found.clear()


def test_a_model_whose_blocks_read_more_is_run_whole(capsys):
    tokens, loaded = sample(), zoo.loaded("llama")
    first, *_, last = loaded.model.model.layers
    returned, forward = [], last.forward
    first.register_forward_hook(lambda module, args, output: returned.append(output.clone()))
    last.forward = lambda *args, **kwargs: forward(*args, **kwargs) + returned[-1]
    target = AblationTarget("dims", "massive", "resid_post", (1,), (5,))
    (found,) = scores(loaded, tokens, [Variant(target, "rest", "zero")])
    assert "passes from block 2 on: all blocks are run" in capsys.readouterr().err
    close(
        found, losses(loaded.model, tokens, [(loaded.model.model.layers[1], with_dims(tokens, (5,), (0.0,), "rest"))])
    )


def test_the_cost_of_a_token_is_the_weights_that_it_meets():
    price = PassCost(zoo.loaded("llama"))
    head = zoo.VOCABULARY * zoo.D_MODEL
    block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * zoo.D_MLP + 2 * 64  # q, o; k, v; MLP; norms
    assert price.token() == 4 * block + head
    assert price.token(3) == block + head and price.token(4) == head and price.token(0, 2) == 2 * block


@pytest.mark.parametrize(
    ("run", "cost", "length"),
    [
        (4e12, 1.5, 96),  # 2 sequences x 96 tokens x 30e9 are 5.76e12
        (2e12, 1.5, 50),
        (2e12, 0.75, 25),
        (1e12, 1e-9, 16),  # 10^12 in any case
        (1e9, 1.5, 16),
    ],
)
def test_as_many_tokens_as_the_cost_allows(run, cost, length):
    assert affordable_length(96, 2, [10e9, 20e9], run, cost) == length
    assert affordable_length(12, 2, [10e9, 20e9], run, cost) == min(length, 12)


def test_what_the_search_took_is_not_there_for_ablations():
    assert affordable_length(96, 2, [10e9, 20e9], 2e12, 1.5, spent=1.2e12) == 30
    assert affordable_length(96, 2, [10e9, 20e9], 1e9, 1.5, spent=5e12) == 16  # as few as there may be
    subject = Subject(lambda: zoo.loaded("llama"))
    head, whole = PassCost(subject.loaded).token(4), PassCost(subject.loaded).token()
    block = (whole - head) / 4
    assert search_cost(subject, []) == 4 * block and search_cost(subject, [1, 1, 2]) == (2 + 1 + 2 + 2) * block


def test_small_models_and_runs_are_not_cut():
    assert affordable_length(96, 2, [5e6] * 50, 1e6, 1.5) == 96


def test_a_costly_sample_is_cut_and_the_files_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("outlier_features.ablate.ablation_sample.ALWAYS", 0)
    monkeypatch.setattr("outlier_features.ablate.ablation_sample.FEWEST", 2)
    files = Files(tmp_path, dims=SELECTED)
    files.search()
    rows, _, facts = files.ablate(cost=4.0)
    assert 2 < facts["tokens"] < T and set(rows["tokens"]) == {2 * (facts["tokens"] - 1)}
    assert f"sample: {facts['tokens']} of {T} tokens of each sequence, by `ablate.cost`" in capsys.readouterr().err


def test_an_edit_leaves_other_dims_and_positions_alone():
    loaded = zoo.loaded("llama")
    site = find_sites(loaded)[1].sites["resid_post"]
    seen, where = [], torch.arange(12).reshape(2, 6) % 3 == 1
    ids = torch.arange(12).reshape(2, 6) + 10
    for edits in ([], [Edit(site, (3, 60), (1.5, -2.0))]):
        with torch.no_grad(), edited(edits, where):
            handle = site.module.register_forward_hook(lambda m, a, out: seen.append(first(out).clone()))
            loaded.model(ids)
            handle.remove()
    plain, changed = seen
    plain[..., 3][where], plain[..., 60][where] = 1.5, -2.0
    assert torch.equal(plain, changed)


def dims_table(*rows):
    """Rows (rule, dim, max_abs, step_up, selected, population)."""
    sites = {"massive": "resid_post", "dettmers": "attn_norm+mlp_norm", "dettmers_heads": "attn_heads"}
    names = ("rule", "dim", "max_abs", "step_up", "selected", "population")
    return pl.DataFrame(
        [dict(zip(names, row, strict=True)) | {"sites": sites[row[0]]} for row in rows], schema=DIMS.schema
    )


def weights_table(*rows):
    """Rows (layer, row, col, mlp_down)."""
    columns = ("layer", "row", "col", "mlp_down")
    return pl.DataFrame([dict(zip(columns, row, strict=True)) for row in rows], schema=SUPER_WEIGHTS.schema)


DIM_ROWS = dims_table(
    ("massive", 507, 24000.0, 3, True, "all"), ("massive", 247, 1800.0, 2, True, "all"),
    ("massive", 9, 150.0, None, False, "all"), ("dettmers", 247, 12.0, 2, True, "all"),
    ("dettmers", 11, 13.0, None, True, "without_first"), ("dettmers_heads", 1, 30.0, None, True, "all"),
)  # fmt: skip


RULES = {
    "dettmers": {"kind": "systematic", "sites": ["attn_norm", "mlp_norm"]},
    "dettmers_heads": {"kind": "systematic", "sites": ["attn_heads"]},
    "massive": {"kind": "massive"},
}


def test_the_targets_are_what_was_selected():
    weights = weights_table((2, 507, 90, 600.0), (11, 507, 1229, -24000.0))
    assert selected_targets(DIM_ROWS, followed(RULES), weights) == [
        AblationTarget("dims", "massive", "resid_post", (3,), (507,)),
        AblationTarget("dims", "massive", "resid_post", (2, 3), (247, 507)),
        AblationTarget("dims", "dettmers", "resid_post", (2,), (247,)),
        AblationTarget("dims", "dettmers", "attn_norm+mlp_norm", (), (247,)),
        AblationTarget("weight", "super_weight", "mlp_down.weight", (11,), (507,), (1229,)),
        AblationTarget("weight", "super_weight", "mlp_down.weight", (2, 11), (507, 507), (90, 1229)),
    ]
    assert selected_targets(dims_table(), followed(RULES), weights_table()) == []
    unplaced = dims_table(("dettmers", 5, 12.0, None, True, "all"))  # without resid_post
    assert [target.layers for target in selected_targets(unplaced, followed(RULES), weights_table())] == [()]


def test_random_targets_are_as_many_and_others():
    targets = selected_targets(DIM_ROWS, followed(RULES), weights_table((1, 3, 6, 99.0)))
    found = list(random_targets(targets, 600, {1: 8}, seeds=3))
    shapes = [(target.site, target.layers, len(target.dims)) for target in targets]
    assert [(one.site, one.layers, len(one.dims), one.seed) for one in found] == [
        (*shape, seed) for shape in dict.fromkeys(shapes) for seed in range(3)
    ]
    dims = [one.dims for one in found if one.site != "mlp_down.weight"]
    assert not {507, 247} & {dim for some in dims for dim in some}
    assert all(len(set(some)) == len(some) for some in dims)
    pairs = [one.dims for one in found if len(one.dims) == 2]
    assert len(set(pairs)) == 3
    weights = [one for one in found if one.site == "mlp_down.weight"]
    assert all(one.dims != (3,) and 0 <= one.cols[0] < 8 for one in weights)
    assert found == list(random_targets(targets, 600, {1: 8}, seeds=3))


def test_every_dim_can_be_drawn_and_none_where_there_are_too_few():
    target = AblationTarget("dims", "massive", "resid_post", (1,), (0,))
    drawn = {one.dims[0] for one in random_targets([target], 5, {}, seeds=200)}
    assert drawn == {1, 2, 3, 4}
    many = AblationTarget("dims", "massive", "resid_post", (1, 1, 1), (0, 1, 2))
    assert list(random_targets([many], 5, {}, seeds=3)) == []


class Files:
    """A model's directory and what earlier rules leave of a run on it."""

    def __init__(self, folder, name="llama", tokens=None, dims=None, no_loss=None):
        self.folder = folder
        location = zoo.save(name, folder / "model")
        files = {path.name: {"bytes": path.stat().st_size} for path in location.iterdir()}
        source = {"kind": "path", "location": str(location), "origin": "model", "revision": "0", "files": files}
        (folder / "source.json").write_text(json.dumps(source))
        self.tokens = tokens or sample()
        arrays = {key: getattr(self.tokens, key) for key in ("tokens", "special", "mask", "offsets")}
        write_tensors(folder / "tokens.safetensors", arrays, self.tokens.provenance)
        self.provenance = self.tokens.provenance | {
            "model_revision": "0",
            "dtype": "float32",
            "no_loss": no_loss,
            "rules": RULES,
        }
        write_table(folder / "dims.parquet", dims_table() if dims is None else dims, DIMS, self.provenance)

    def path(self, name):
        return self.folder / name

    def subject(self):
        return Subject.fetched(
            self.path("source.json"), dtype="float32", device="cpu", attention="eager", threads=1,
            trust_remote_code=False,
        )  # fmt: skip

    def search(self, length=T, published=PUBLISHED):
        find_super_weights(
            self.subject(), self.path("source.json"), self.path("tokens.safetensors"), self.path("dims.parquet"),
            published, self.path("super_weights.parquet"), length=length, threshold=50.0, rounds=20,
        )  # fmt: skip
        return read_table(self.path("super_weights.parquet"), SUPER_WEIGHTS)

    def ablate(self, sequences=2, length=T, seeds=2, cost=1.5):
        ablate_dims(
            self.subject(), self.path("source.json"), self.path("tokens.safetensors"), self.path("dims.parquet"),
            self.path("super_weights.parquet"), self.path("ablation.parquet"),
            self.path("ablation_sequences.parquet"), sequences=sequences, length=length, seeds=seeds,
            cost=cost, batch_size=2,
        )  # fmt: skip
        rows, provenance = read_table(self.path("ablation.parquet"), ABLATION)
        by_sequence, _ = read_table(self.path("ablation_sequences.parquet"), ABLATION_SEQUENCES)
        return rows, by_sequence, provenance["ablate"]


SELECTED = dims_table(("massive", 5, 900.0, 1, True, "all"), ("dettmers", 9, 12.0, 2, True, "all"))


def test_the_tables_say_what_was_run(tmp_path):
    files = Files(tmp_path, dims=SELECTED)
    found, searched = files.search()
    assert found.is_empty() and searched["not_searched"] == {} and searched["published"] == []
    rows, by_sequence, facts = files.ablate(length=10)
    assert facts == {"sequences": 2, "tokens": 10, "seeds": 2, "only_first_excluded": True, "weights_searched": True}
    assert rows["variant"].to_list() == list(range(1 + (4 + 4 + 1) * 3))
    columns = ("target", "rule", "site", "layers", "dims", "positions", "value")
    described = rows.filter(pl.col("target") != "random").select(columns).rows()
    four = [(positions, value) for positions in ("excluded", "rest") for value in ("zero", "mean")]
    assert described == [
        ("baseline", None, None, None, None, None, None),
        *(("dims", "massive", "resid_post", "1", "5", *treatment) for treatment in four),
        *(("dims", "dettmers", "resid_post", "2", "9", *treatment) for treatment in four),
        ("dims", "dettmers", "attn_norm+mlp_norm", None, "9", "all", "zero"),
    ]
    assert set(rows["tokens"]) == {18}
    model = zoo.load("llama", tmp_path / "plain").model
    short = files.tokens.head(2, 10)
    nll = [
        functional.cross_entropy(model(row[None]).logits[0, :-1].double(), row[1:], reduction="sum").item()
        for row in torch.from_numpy(short.tokens).long()
    ]
    base = rows.row(0, named=True)
    assert base["perplexity"] == pytest.approx(math.exp(sum(nll) / 18), rel=1e-5)
    assert base["bits_per_byte"] == pytest.approx(sum(nll) / math.log(2) / 36, rel=1e-5)  # two bytes a token
    assert by_sequence.filter(variant=0)["nll"].to_list() == pytest.approx(nll, rel=1e-5)
    effects = ablation_effects(rows, by_sequence)
    assert [len(effect["random"]) for effect in effects] == [0] + [2] * 9
    for effect in effects[1:]:
        assert effect["ratio"] == pytest.approx(effect["perplexity"] / base["perplexity"])
        own = by_sequence.filter(variant=effect["variant"])["nll"] - by_sequence.filter(variant=0)["nll"]
        assert effect["ratios"] == pytest.approx([math.exp(change / 9) for change in own])
        for draw in effect["random"]:
            assert all(draw[key] == effect[key] for key in ("site", "layers", "number", "positions", "value"))


def test_padding_and_special_tokens(tmp_path):
    files = Files(tmp_path, tokens=sample(lengths=(T, 5, 1), special=[(0, 7)]), dims=SELECTED)
    files.search()
    rows, by_sequence, facts = files.ablate(sequences=3)
    assert not facts["only_first_excluded"]
    assert by_sequence.filter(variant=0)["tokens"].to_list() == [15, 4, 0]
    assert rows["perplexity"].is_not_null().all() and rows["perplexity"].is_not_nan().all()
    assert all(len(effect["sequences"]) == 2 for effect in ablation_effects(rows, by_sequence))


def test_a_model_that_predicts_no_next_token_has_nothing_to_ablate(tmp_path):
    files = Files(tmp_path, dims=SELECTED, no_loss="a position sees later ones")
    found, _ = files.search()  # the search needs no head
    assert found.is_empty()
    with pytest.raises(InputError, match="a position sees later ones"):
        files.ablate()


def test_ablations_need_no_search(tmp_path):
    files = Files(tmp_path, dims=SELECTED)
    leave_out("super_weights", "`skip` names super_weights", tmp_path)
    rows, _, facts = files.ablate()
    assert facts["weights_searched"] is False and len(rows) > 1


def test_a_mixture_of_experts_is_not_searched(tmp_path):
    with pytest.raises(InputError, match="the MLP routes tokens to experts"):
        Files(tmp_path, "olmoe").search()
    (tmp_path / "part").mkdir()
    _, partly = Files(tmp_path / "part", "glm4_moe").search()
    assert partly["not_searched"] == {"the MLP routes tokens to experts": [1, 2, 3]}


def test_published_weights_are_compared(tmp_path):
    table = tmp_path / "published.csv"
    header = PUBLISHED.read_text().splitlines()[0]
    rows = [f"m,some/MODEL,{layer},,33,{col},mlp.down_proj,,,,,a rule,a paper,read" for layer, col in ((1, 17), (3, 2))]
    table.write_text("\n".join([header, *rows]) + "\n")
    files = Files(tmp_path)
    model = zoo.build("llama")
    plant("llama", model, 1, 17, {33: 5.0, 34: 9.0}, torch.from_numpy(files.tokens.tokens[:1]).long())
    model.save_pretrained(tmp_path / "model")
    found, provenance = files.search(published=table)
    assert found.select("layer", "row", "col", "published").rows() == [(1, 34, 17, False), (1, 33, 17, True)]
    assert [(row["layer"], row["source"]) for row in provenance["published"]] == [(1, "a paper"), (3, "a paper")]


def test_a_perplexity_beyond_all_numbers_is_null():
    by_sequence = pl.DataFrame(
        {"variant": [0, 1], "sequence": [0, 0], "tokens": [2, 2], "bytes": [4, 0], "nll": [2.0, 1600.0],
         "top1_probability": [0.5, 1.0]},
        schema=ABLATION_SEQUENCES.schema,
    )  # fmt: skip
    target = AblationTarget("dims", "massive", "resid_post", (1,), (5,))
    rows = ablation_rows([Variant(None), Variant(target, "rest", "zero")], by_sequence)
    assert rows.select("nll", "perplexity", "bits_per_byte").rows() == [
        (1.0, pytest.approx(math.e), pytest.approx(1 / math.log(2) / 2)), (800.0, None, None)
    ]  # fmt: skip
    assert ablation_effects(rows, by_sequence)[1]["sequences"] == [None]


def test_a_loss_that_is_not_finite_is_null():
    by_sequence = pl.DataFrame(
        {"variant": [0, 0, 1, 1], "sequence": [0, 1, 0, 1], "tokens": [2] * 4, "bytes": [4] * 4,
         "nll": [2.0, 4.0, None, 1.0], "top1_probability": [0.5, 0.25, None, 0.5]},
        schema=ABLATION_SEQUENCES.schema,
    )  # fmt: skip
    target = AblationTarget("dims", "massive", "resid_post", (1,), (5,))
    rows = ablation_rows([Variant(None), Variant(target, "rest", "zero")], by_sequence)
    assert rows["nll"].to_list() == [1.5, None] and rows["perplexity"].to_list() == [math.exp(1.5), None]
    assert rows["top1_probability"].to_list() == [0.375, None]
    effect = ablation_effects(rows, by_sequence)[1]
    assert effect["ratio"] is None and effect["ratios"] == [None, math.exp(0.5 - 2.0)]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "dimension 5 on resid_post of layer 3"),
        ({"dims": "5+6", "layers": "3+3"}, "dimensions 5 and 6 on resid_post of layer 3"),
        ({"dims": "1+2+3+4+5+6", "layers": "1+2+3+4+5+6"},
         "dimensions 1, 2, 3, 4 and 2 more on resid_post of layers 1, 2, 3, 4 and 2 more"),
        ({"layers": None, "site": "attn_norm+mlp_norm"}, "dimension 5 in every attn_norm and mlp_norm"),
        ({"target": "weight", "cols": "8"}, "weight W_down[5, 8] of layer 3"),
        ({"target": "weight", "cols": "8+9", "dims": "5+6", "layers": "3+4"}, "all 2 super weights"),
    ],
)  # fmt: skip
def test_targets_in_words(changes, name):
    effect = {"target": "dims", "site": "resid_post", "layers": "3", "dims": "5", "cols": None} | changes
    assert target_name(effect) == name
