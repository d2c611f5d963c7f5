"""The two halves of an encoder-decoder model, against transformers' own pass over both."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from outlier_features.errors import InputError
from outlier_features.extract.losses import LossRecorder
from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.sites import find_sites, hooked
from outlier_features.model.verify_sites import keep_proven, prove_sites

START, PAD = 1, 0
_SIZES = {"vocab_size": 128, "d_model": 32, "decoder_start_token_id": START, "pad_token_id": PAD}
_BART = dict(
    _SIZES, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CONFIGS = {
    "t5": dict(_SIZES, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4),
    "bart": _BART,
    "mbart": _BART,
}
# (B, T): a start token, then text; the encoder reads the text.
IDS = torch.cat(
    [torch.full((2, 1), START), torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(0))], dim=1
)
PARALLEL = pytest.mark.parametrize("name", CONFIGS)


def build(name):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, **CONFIGS[name]), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def loaded(name, part):
    return LoadedModel.of(build(name), torch.device("cpu"), "eager", part)


def residuals(model, ids, mask=None):
    """resid_post of each block, (B, T, H)."""
    found = {}
    sites = [(n, block.sites["resid_post"]) for n, block in enumerate(find_sites(model))]
    with hooked(sites, lambda n, value: found.update({n: value.clone()})):
        run_blocks(model, ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)
    return found


@torch.inference_mode()
def whole(model, **inputs):
    return model.model(decoder_input_ids=IDS, output_hidden_states=True, **inputs)


@PARALLEL
def test_each_half_has_its_blocks_and_the_other_none(name):
    encoder, decoder = loaded(name, "encoder"), loaded(name, "decoder")
    assert (len(encoder.stack), len(decoder.stack)) == (2, 3)
    assert all("encoder" in block.path for block in encoder.stack.blocks)
    assert all("decoder" in block.path for block in decoder.stack.blocks)
    assert (encoder.causal, decoder.causal) == (False, True)
    assert decoder.has_causal_head and not encoder.has_causal_head


@PARALLEL
def test_residuals_are_transformers_hidden_states(name):
    encoder, decoder = loaded(name, "encoder"), loaded(name, "decoder")
    expected = whole(decoder, input_ids=IDS[:, 1:])
    for half, ids, states in (
        (encoder, IDS[:, 1:], expected.encoder_hidden_states),
        (decoder, IDS, expected.decoder_hidden_states),
    ):
        found = residuals(half, ids)
        for n in range(len(half.stack) - 1):  # the last entry may be behind a final norm
            assert torch.equal(found[n], states[n + 1])


@PARALLEL
def test_padding_of_the_text_is_hidden_from_the_encoder(name):
    decoder = loaded(name, "decoder")
    mask = torch.arange(IDS.shape[1])[None] < torch.tensor([[12], [7]])
    padded = torch.where(mask, IDS, PAD)
    alone, beside = residuals(decoder, IDS[1:, :7]), residuals(decoder, padded, mask)
    for n, value in alone.items():
        torch.testing.assert_close(beside[n][1, :7], value[0], rtol=1e-5, atol=1e-6)


@PARALLEL
def test_the_decoders_loss_is_that_of_labels(name):
    decoder = loaded(name, "decoder")
    recorder = LossRecorder(decoder)
    with recorder.states(), torch.inference_mode():
        decoder.base(IDS)
    nll = recorder.token_losses(IDS, torch.ones_like(IDS, dtype=torch.bool))
    with torch.inference_mode():
        expected = decoder.model(input_ids=IDS[:, 1:], labels=IDS[:, 1:].contiguous()).loss
    if name != "mbart":  # which shifts labels in a way of its own: the last token goes first
        assert float(nll[:, 1:].mean()) == pytest.approx(float(expected), rel=1e-5)
    logits = decoder.model(input_ids=IDS[:, 1:], decoder_input_ids=IDS).logits.detach()
    by_hand = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), IDS[:, 1:], reduction="none")
    torch.testing.assert_close(nll[:, 1:], by_hand, rtol=1e-5, atol=1e-6)


@PARALLEL
def test_what_lies_between_attention_and_mlp_has_cross_attention_in_it(name):
    """resid_mid of a decoder is the stream after both attentions, before the MLP."""
    decoder = loaded(name, "decoder")
    blocks = find_sites(decoder)
    keep_proven(blocks, prove_sites(decoder, blocks))
    found, expected = {}, {}
    by_hand = {
        "t5": lambda block: (block.layer[2].layer_norm, "in"),
        "mbart": lambda block: (block.final_layer_norm, "in"),
        "bart": lambda block: (block.encoder_attn_layer_norm, "out"),
    }[name]
    handles = []
    for n, block in enumerate(decoder.stack.blocks):
        module, side = by_hand(block.module)

        def keep(module, args, output, n=n, side=side):
            expected[n] = (args[0] if side == "in" else output).clone()

        handles.append(module.register_forward_hook(keep))
    with hooked(
        [(n, block.sites["resid_mid"]) for n, block in enumerate(blocks)],
        lambda n, value: found.update({n: value.clone()}),
    ):
        residuals(decoder, IDS)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(found[n], expected[n]) for n in range(3))
    assert all({"attn_out", "mlp_out", "mlp_norm"} <= block.sites.keys() for block in blocks)


@PARALLEL
def test_a_saved_model_is_loaded_by_halves(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    options = {"dtype": "float32", "device": "cpu", "attention": "eager", "trust_remote_code": False}
    with pytest.raises(InputError, match=r"encoder-decoder model, expected its encoder or its decoder"):
        load_model(tmp_path, **options)
    found = residuals(load_model(tmp_path, **options, part="decoder"), IDS)
    for n, value in residuals(loaded(name, "decoder"), IDS).items():
        assert torch.equal(found[n], value)
