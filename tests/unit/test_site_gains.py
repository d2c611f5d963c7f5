"""The gains behind sites are what plain torch multiplies by, and extraction puts them beside the activations."""

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from outlier_features.extract.activations import Activations
from outlier_features.model.bases import SITES
from outlier_features.model.sites import find_sites, hooked
from outlier_features.norms.site_gains import site_gains
from outlier_features.tokens.tokens import Tokens
from test_extract_activations import Run

ONE_PLUS = {"gemma2", "gemma3_text"}
MADE = {
    "llama": {"attn_norm", "mlp_norm"},
    "gpt2": {"attn_norm", "mlp_norm"},
    "gptj": {"attn_norm", "mlp_norm"},
    "gemma2": {"attn_norm", "mlp_norm", "attn_out", "mlp_out"},
    "olmo2": {"attn_out", "mlp_out"},
    "bert": {"resid_mid", "mlp_norm", "resid_post"},
}


@pytest.mark.parametrize("name", list(MADE))
def test_the_output_is_the_normalised_input_times_the_gain(name):
    loaded = zoo.loaded(name)
    blocks = find_sites(loaded)
    gains = site_gains(loaded, blocks, SITES)
    assert gains.keys() == MADE[name]
    inputs, outputs = {}, {}
    norms = [module for module in loaded.model.modules() if "Norm" in type(module).__name__]
    for norm in norms:
        norm.register_forward_hook(lambda module, args, output: inputs.update({module: (args[0], output)}))
    sites = {(site, index): block.sites[site] for site in gains for index, block in enumerate(blocks)}
    with hooked(sites.items(), lambda key, value: outputs.setdefault(key, value.clone())), torch.no_grad():
        loaded.base(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]))
    for (site, index), output in outputs.items():
        (module,) = (m for m, (_, made) in inputs.items() if torch.equal(made, output))
        row = gains[site][index]
        np.testing.assert_array_equal(row, module.weight.detach().numpy() + np.float32(name in ONE_PLUS))
        read, layer_norm = inputs[module][0], isinstance(module, nn.LayerNorm)
        normalise = nn.functional.layer_norm if layer_norm else nn.functional.rms_norm
        normed = normalise(read, read.shape[-1:], eps=getattr(module, "eps", None) or module.variance_epsilon)
        bias = module.bias if layer_norm else torch.zeros(())
        torch.testing.assert_close(output - bias, normed * torch.from_numpy(row), rtol=1e-4, atol=1e-5)


def test_a_norm_without_gain_has_ones_and_one_that_is_not_understood_has_none(monkeypatch):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.5, 2, zoo.D_MODEL))

        def forward(self, x):
            return torch.tanh(nn.functional.rms_norm(x, x.shape[-1:])) * self.weight

    monkeypatch.setitem(zoo.CONFIGS, "olmo", zoo.CONFIGS["llama"])
    loaded = zoo.loaded("olmo")
    loaded.model.model.layers[1].input_layernorm = Odd()
    gains = site_gains(loaded, find_sites(loaded), ["attn_norm", "mlp_norm", "resid_post"])
    assert gains.keys() == {"attn_norm", "mlp_norm"} and (gains["mlp_norm"] == 1).all()
    assert np.isnan(gains["attn_norm"][1]).all() and (np.delete(gains["attn_norm"], 1, axis=0) == 1).all()


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("gemma2", "bfloat16")])
def test_extraction_puts_them_beside_the_activations(tmp_path, name, dtype):
    run = Run(tmp_path, name)
    file, _ = run.extract(sites=["attn_norm", "resid_post"], dtype=dtype)
    gains = Activations.open(file.path, Tokens.read(run.tokens)).gains
    assert gains.keys() == {"attn_norm"}
    layers = run.model(dtype).model.layers
    expected = [layer.input_layernorm.weight.detach().float().numpy() + (name in ONE_PLUS) for layer in layers]
    np.testing.assert_array_equal(gains["attn_norm"], np.stack(expected))
