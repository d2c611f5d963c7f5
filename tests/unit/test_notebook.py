"""`import outlier_features`: a run as an object, and modules of any kind measured."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification

import outlier_features as of
import zoo
from fake_run import FakeRun
from outlier_features.figures import run_figures


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return of.open(FakeRun().write(tmp_path_factory.mktemp("fake") / "model/corpus"))


def test_importing_it_imports_nothing_that_is_slow():
    code = (
        "import sys, outlier_features as of; assert {'open', 'measure'} <= {*dir(of)} and of.__version__;"
        "print({'torch', 'polars', 'numpy', 'plotly', 'transformers', 'numba'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="has no attribute 'measures'"):
        _ = of.measures


def test_a_run_has_its_tables_figures_and_dims(fake):
    assert set(fake.tables) == set(fake.summary["tables"]) - {"locations"}
    assert {"dims", "layers"} <= {*dir(fake.tables)} and fake.tables.dims is fake.tables["dims"]
    selected = fake.tables.dims.filter("selected", rule="dettmers", population="all")
    assert sorted(fake.dims("dettmers")) == sorted(selected["dim"].to_list()) != []
    figure = fake.figure("magnitude-by-layer", "without_first")
    figure.data = []  # the caller's own
    assert fake.figure("magnitude-by-layer", "without_first").data and "magnitude_by_layer" in dir(fake.figures)
    assert fake.figures.magnitude_by_layer.title in repr(fake.figures)


def test_a_figure_is_drawn_alone(fake, monkeypatch):
    drawn = []
    for name in ("magnitude_by_layer", "surface_figures", "lifecycle", "sensitivity"):
        draw = getattr(run_figures, name)
        monkeypatch.setattr(run_figures, name, lambda *a, name=name, draw=draw: drawn.append(name) or draw(*a))
    run = of.open(fake.directory)
    assert drawn == [] and "surface-map" in run.figures
    assert run.figure("lifecycle").data and drawn == ["lifecycle"]
    assert run.figure("surface-map").data and run.figure("surface").data
    assert drawn == ["lifecycle", "surface_figures"]  # once for both
    assert {name: drawing.name for name, drawing in run.figures.items()} == {name: name for name in run.figures}


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda run: run.tables["dim"], "found no table 'dim', expected one of .*layers.*did you mean 'dims'"),
        (lambda run: run.figure("lifecycles"), "found no figure 'lifecycles', expected one of .*lifecycle"),
        (lambda run: run.figure("magnitude-by-layer", "rest"), "'rest', expected all or without_first"),
        (lambda run: run.dims("dettmer"), "found no rule 'dettmer' .*expected one of dettmers, massive"),
        (lambda run: run.dims("dettmers", "rest"), "found population 'rest', expected all or without_first"),
        (lambda run: run.hits("attn_out"), "found no site 'attn_out' .*expected one of attn_norm"),
        (lambda run: run.hits("attn_norm"), "has the hits of 0 of"),
        (lambda run: of.open(run.directory.parents[1]), "expected a finished run, as .*model/corpus"),
        (lambda run: of.open(run.directory / "nothing"), "nothing is no directory, expected one with a finished run"),
    ],
)
def test_what_is_not_there_is_one_sentence_that_says_what_is(fake, ask, sentence):
    with pytest.raises(of.InputError, match=sentence) as raised:
        ask(fake)
    assert "\n" not in str(raised.value)


def test_a_damaged_table_is_not_read(tmp_path):
    run = of.open(FakeRun().write(tmp_path / "model/corpus"))
    path = run.directory / "dims.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(of.InputError, match=r"dims\.parquet"):
        _ = run.tables.dims


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=32,
                       patch_size=8, num_labels=5)  # fmt: skip
    return ViTForImageClassification(config)


def seen_by_hooks(model, blocks, run) -> np.ndarray:
    """What each block returns, (L, N, T, H)."""
    found: list[list[torch.Tensor]] = [[] for _ in blocks]

    def keep(to):
        return lambda module, args, output: to.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep(to)) for block, to in zip(blocks, found, strict=True)]
    with torch.no_grad():
        run(model.eval())
    for handle in handles:
        handle.remove()
    return np.stack([torch.cat(values).numpy() for values in found])


def test_a_vision_transformer():
    model, images = vit(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.vit.embeddings.cls_token.data[..., 7] = 500.0  # at the first position alone
    run = of.measure(model.train(), {"pixel_values": images})
    assert model.training and all(module.training for module in model.modules())
    stream = seen_by_hooks(model, model.vit.layers if hasattr(model.vit, "layers") else model.vit.encoder.layer,
                           lambda it: [it(images[n : n + 1]) for n in range(4)])  # fmt: skip
    assert run.summary["sites"]["present"] == ["attn_norm", "mlp_norm", "resid_post"]
    for population, first in (("all", 0), ("without_first", 1)):
        expected = np.abs(stream[:, :, first:]).max(axis=(1, 2))
        assert np.array_equal(run.statistics.resid_post.max_abs(population), expected.astype(np.float64))
    assert run.dims("massive") == [7] and run.dims("massive", "without_first") == []
    layers = run.tables.layers.filter(site="resid_post", population="all")
    assert layers["positions"].to_list() == [4 * 17] * 3 and layers["attention"].all()
    assert run.summary["missing"] == {} and run.figure("kurtosis").data
    assert len(run.tables.norms) == 7  # two a block and the last


def test_torch_s_own_layers_have_attention():
    """Which they compute in one operation of theirs: it is no mixer of another kind."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    states = torch.randn(3, 10, 32)
    run = of.measure(encoder, states, blocks="layers", first_token="ordinary")
    stream = seen_by_hooks(encoder, encoder.layers, lambda it: [it(states[n : n + 1]) for n in range(3)])
    expected = np.abs(stream).max(axis=(1, 2))
    assert np.allclose(run.statistics.resid_post.max_abs("all"), expected, rtol=1e-5)
    assert run.tables.layers["attention"].all()
    assert "softmax attention" in run.summary["sites"]["absent"]["mixer_norm"]


class Stack(nn.Module):
    """Blocks that no list of modules holds as such: named by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (
            nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, states, hidden=None):
        padding = None if hidden is None else ~hidden
        return self.head(self.second(self.first(states, src_key_padding_mask=padding), src_key_padding_mask=padding))


def test_blocks_that_are_named_and_padding():
    model, states = Stack(), torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[9], [5], [9]])
    run = of.measure(
        model, {"states": states, "hidden": mask}, mask=mask, blocks=["first", "second"], first_token="ordinary"
    )
    assert run.populations == ["all"] and run.summary["model"]["blocks"] == 2
    stream = seen_by_hooks(model, [model.first, model.second],
                           lambda it: [it(states[n : n + 1], mask[n : n + 1]) for n in range(3)])  # fmt: skip
    counted = np.where(mask.numpy()[None, ..., None], np.abs(stream), 0).max(axis=(1, 2))
    assert np.array_equal(run.statistics.resid_post.max_abs("all"), counted.astype(np.float64))
    assert run.tables.layers["positions"].unique().to_list() == [23]


def test_the_model_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model = zoo.build("llama").train()
    model.model.layers[1].eval()  # as who freezes a part of it does
    model.config.use_cache = True
    model(torch.tensor([[3, 4]]), output_hidden_states=True)  # transformers' own hooks are there from the first time on
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: (len(one._forward_hooks), len(one._forward_pre_hooks)) for name, one in model.named_modules()}
    run = of.measure(model, np.random.default_rng(0).integers(2, 100, (2, 12)))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {n: (len(one._forward_hooks), len(one._forward_pre_hooks)) for n, one in model.named_modules()} == hooks
    assert model.config.use_cache and "HF_HUB_OFFLINE" not in os.environ
    place = run.directory
    assert place.is_dir()
    del run
    assert not place.exists()


def test_what_a_tokenizer_returns_beside_the_ids():
    """Types of one text are what a model takes by itself; those of two make it a module that is called with them."""
    model, ids = zoo.build("bert"), [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    plain = of.measure(model, ids)
    types = torch.zeros(2, 5, dtype=torch.int64)
    same = of.measure(model, {"input_ids": ids, "token_type_ids": types.tolist()})
    assert same.tables.layers.equals(plain.tables.layers)
    types[:, 3:] = 1
    other = of.measure(model, {"input_ids": torch.tensor(ids), "token_type_ids": types})
    first, without = (run.statistics.resid_post.max_abs("all") for run in (other, plain))
    assert first.shape == without.shape and not np.array_equal(first, without)


def test_half_of_an_encoder_decoder_model():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    ids = np.random.default_rng(0).integers(2, 60, (2, 10))
    run = of.measure(model, ids, part="encoder")
    assert run.summary["model"]["blocks"] == 2
    with pytest.raises(of.InputError, match=r"part: found None for T5For.*, an encoder-decoder model"):
        of.measure(model, ids)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inputs": [[3, 4], []]}, "inputs: found other than rows, expected token ids"),
        ({"inputs": torch.zeros(2, 3, 64)}, "LlamaForCausalLM does not run on the inputs, found "),
        ({"inputs": [[3, 400]]}, "found token id 400, expected ids below 128"),
        ({"inputs": np.full((1, 3), -100)}, "found token id -100, expected ids from 0 on"),
        ({"mask": np.ones((1, 2))}, r"mask: found shape \[1, 2\], expected \[2, 3\]"),
        ({"mask": [[0, 1, 1], [1, 1, 1]]}, "found padding before tokens, expected it at the end"),
        ({"config": {"models": ["a"]}}, "found 'models', expected keys among sites, rules, detect, sensitivity"),
        ({"config": {"rules": {"dettmers": {"treshold": 2.0}}}}, "unknown key 'treshold' in rules.dettmers"),
        ({"blocks": "model.layer"}, "blocks: found 'model.layer', expected the path of a list of modules"),
        ({"part": "encoder"}, "no encoder-decoder model"),
        ({"tokenizer": "gpt2"}, "tokenizer: found str, expected a fast one"),
    ],
)
def test_a_mistake_is_one_sentence(changes, sentence):
    model = zoo.build("llama")
    arguments = {"inputs": [[3, 4, 5], [6, 7, 8]], **changes}
    with pytest.raises(of.InputError, match=sentence) as raised:
        of.measure(model, **arguments)
    assert "\n" not in str(raised.value)


def test_a_directory_that_is_not_empty_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(of.InputError, match="which is not empty, expected a new one"):
        of.measure(zoo.build("llama"), [[3, 4]], directory=tmp_path)
    run = of.measure(zoo.build("llama"), [[3, 4, 5]], directory=tmp_path / "new")
    assert of.open(tmp_path / "new").tables.layers.equals(run.tables.layers)
