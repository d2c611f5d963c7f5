"""The identities hold on every architecture and in every number format, and a wrong site does not pass."""

from dataclasses import replace

import pytest
import torch

import zoo
from outlier_features.errors import InputError
from outlier_features.model.bases import SITES
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import Site, find_sites, hooked
from outlier_features.model.verify_sites import verify_sites

# A site of llama's block 1 put in another place of the same shape.
WRONG = {
    "resid_pre": ("input_layernorm", "out"),
    "resid_mid": ("", "in"),
    "resid_post": ("post_attention_layernorm", "in"),
    "attn_norm": ("post_attention_layernorm", "out"),
    "mlp_norm": ("input_layernorm", "out"),
    "attn_heads": ("self_attn.q_proj", "in"),
    "attn_out": ("mlp", "out"),
    "mlp_out": ("self_attn.o_proj", "out"),
    "mlp_pre": ("mlp.up_proj", "out"),
    "mlp_act": ("mlp.act_fn", "out"),
    "mlp_down": ("self_attn.o_proj", "out"),
}
LLAMA_SITES = tuple(WRONG)


def misplace(blocks, index, site, path, side):
    block = blocks[index]
    module = block.sites["resid_post"].module.get_submodule(path)
    block.sites[site] = Site(f"{block.path}.{path}", module, side, block.sites[site].width)


EVERY = sorted(set(zoo.CONFIGS) - {"granite", "granitemoeshared"})


@pytest.mark.parametrize("name", EVERY)
def test_every_site_of_every_architecture_is_proven(name, dtype="float32"):
    loaded = zoo.loaded(name, dtype)
    blocks = find_sites(loaded)
    proven = verify_sites(loaded, blocks, list(SITES))
    assert set(proven) == {site for block in blocks for site in block.sites}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", zoo.of_every_kind(EVERY))
def test_so_it_is_in_16_bit(name, dtype):
    test_every_site_of_every_architecture_is_proven(name, dtype)


def test_the_summary_names_the_identities():
    loaded = zoo.loaded("llama")
    proven = verify_sites(loaded, find_sites(loaded), ["resid_post"])
    assert "attn_norm is read by q_proj, k_proj, v_proj (4 of 4 blocks)" in proven["attn_norm"]
    assert "mlp_act == act(mlp_pre) * up (4 of 4 blocks)" in proven["mlp_pre"]
    assert "resid_pre[0] == hidden_states[0] (1 of 4 blocks)" in proven["resid_pre"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("site", LLAMA_SITES)
def test_a_wrong_site_is_refused(site, dtype):
    loaded = zoo.loaded("llama", dtype)
    blocks = find_sites(loaded)
    misplace(blocks, 1, site, *WRONG[site])
    with pytest.raises(InputError, match=f"{site} of block 1 was found at .* fails by"):
        verify_sites(loaded, blocks, [site])


def test_a_wrong_site_that_nobody_asked_for_stops_nothing():
    loaded = zoo.loaded("llama")
    blocks = find_sites(loaded)
    misplace(blocks, 1, "mlp_pre", *WRONG["mlp_pre"])
    verify_sites(loaded, blocks, ["resid_post", "attn_norm", "mlp_norm"])


def test_a_middle_before_attention_is_refused_without_a_norm_to_tell():
    loaded = zoo.loaded("olmo2")
    blocks = find_sites(loaded)
    misplace(blocks, 1, "resid_mid", "", "in")
    with pytest.raises(InputError, match="resid_mid of block 1"):
        verify_sites(loaded, blocks, ["resid_mid"])


@pytest.mark.parametrize(
    ("site", "path"),
    [
        ("mlp_norm", "post_attention_layernorm"),
        ("attn_out", "self_attn.o_proj"),
        ("mlp_out", "mlp.down_proj"),
    ],
)
def test_gemmas_names_do_not_mislead(site, path):
    loaded = zoo.loaded("gemma3_text")
    blocks = find_sites(loaded)
    misplace(blocks, 2, site, path, "out")
    with pytest.raises(InputError, match=f"{site} of block 2"):
        verify_sites(loaded, blocks, [site])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_scaled_branch_is_not_what_is_added(dtype):
    loaded = zoo.loaded("granite", dtype)
    blocks = find_sites(loaded)
    others = [site for site in SITES if site not in ("attn_out", "mlp_out")]
    proven = verify_sites(loaded, blocks, others)
    assert "resid_mid == resid_pre + c * attn_out (4 of 4 blocks)" in proven["resid_mid"]
    for site in ("attn_out", "mlp_out"):
        with pytest.raises(InputError, match=f"{site} of block 0"):
            verify_sites(loaded, blocks, [site])


def test_a_module_that_several_blocks_share_is_told_by_its_call():
    model = zoo.build("llama")
    layers = model.model.layers
    for layer in layers:
        layer.mlp.act_fn = layers[0].mlp.act_fn
    loaded = LoadedModel.of(model, torch.device("cpu"), "eager")
    blocks = find_sites(loaded)
    verify_sites(loaded, blocks, ["mlp_pre"])
    found, expected = {}, {}
    hand = [
        layer.mlp.gate_proj.register_forward_hook(
            lambda module, args, output, n=n: expected.update({n: output.clone()})
        )
        for n, layer in enumerate(layers)
    ]
    with hooked(
        [(n, block.sites["mlp_pre"]) for n, block in enumerate(blocks)],
        lambda n, value: found.update({n: value.clone()}),
    ):
        for _ in range(2):  # calls are counted from pass to pass
            loaded.base(probe_ids(model))
            assert len(hand) == zoo.BLOCKS and all(torch.equal(found[n], expected[n]) for n in range(zoo.BLOCKS))


def test_another_number_format_inside_the_model_is_refused():
    loaded = zoo.loaded("llama", "bfloat16")
    blocks = find_sites(loaded)
    with pytest.raises(InputError, match=r"torch\.bfloat16 in a model of torch\.float32"):
        verify_sites(replace(loaded, model=Pretending(loaded.model)), blocks, ["resid_post"])


class Pretending:
    """A model that says it is float32."""

    dtype = torch.float32

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)
