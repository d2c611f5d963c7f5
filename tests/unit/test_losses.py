"""Token losses from blocks of tokens equal those from the full logits."""

import pytest
import torch
from torch.nn import functional

import zoo
from outlier_features.errors import InputError
from outlier_features.extract import losses
from outlier_features.extract.losses import LossRecorder

N, T = 3, 20


def some_ids():
    return torch.randint(3, zoo.VOCABULARY, (N, T), generator=torch.Generator().manual_seed(2))


def from_full_logits(model, ids):
    with torch.inference_mode():
        logits = model(ids).logits.float()
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def recorded(loaded, ids, mask):
    recorder = LossRecorder(loaded)
    with recorder.states(), torch.inference_mode():
        loaded.base(ids)
    return recorder.token_losses(ids, mask)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt_oss", "gpt2", "granite"])
def test_losses_equal_cross_entropy_of_the_full_logits(name, block, monkeypatch):
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", block * zoo.VOCABULARY)
    loaded, ids = zoo.loaded(name), some_ids()
    nll = recorded(loaded, ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(nll[:, 1:], from_full_logits(loaded.model, ids), rtol=1e-6, atol=2e-6)
    assert nll.dtype == torch.float32
    assert not nll[:, 0].any()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_largest_probability_is_that_of_the_full_logits(name, monkeypatch):
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 7 * zoo.VOCABULARY)
    loaded, ids = zoo.loaded(name), some_ids()
    mask = torch.arange(T) < torch.tensor([[T], [5], [1]])
    recorder = LossRecorder(loaded)
    with recorder.states(), torch.inference_mode():
        loaded.base(ids)
    _, top1 = recorder.token_scores(ids, mask)
    with torch.inference_mode():
        expected = loaded.model(ids).logits.softmax(-1).amax(-1)
    torch.testing.assert_close(top1[:, 1:], expected[:, :-1] * mask[:, 1:], rtol=1e-5, atol=1e-6)
    assert not top1[:, 0].any()


def test_the_head_is_the_models_own():
    loaded, ids = zoo.loaded("gemma2", final_logit_softcapping=0.01), some_ids()
    nll = recorded(loaded, ids, torch.ones_like(ids, dtype=torch.bool))
    assert (nll[:, 1:] - torch.tensor(zoo.VOCABULARY).log()).abs().max() < 0.03  # capped logits are all about 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_logits_are_normalized_in_float32(dtype):
    loaded, ids = zoo.loaded("llama", dtype), some_ids()
    nll = recorded(loaded, ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(nll[:, 1:], from_full_logits(loaded.model, ids), rtol=1e-3, atol=1e-3)


def test_padding_has_no_loss_and_changes_none():
    loaded, ids = zoo.loaded("llama"), some_ids()
    mask = torch.arange(T) < torch.tensor([[T], [5], [1]])
    padded = torch.where(mask, ids, 0)
    nll = recorded(loaded, padded, mask)
    assert not nll[~mask].any()
    full = from_full_logits(loaded.model, ids)
    torch.testing.assert_close(nll[:, 1:], full * mask[:, 1:], rtol=1e-6, atol=2e-6)


def test_the_model_is_left_as_it_was():
    loaded, ids = zoo.loaded("llama"), some_ids()
    before = loaded.model(ids).logits
    recorded(loaded, ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(loaded.model(ids).logits, before)


def test_a_head_that_looks_at_other_tokens_is_refused():
    loaded = zoo.loaded("llama")
    loaded.model.lm_head = Smearing(loaded.model.lm_head)
    with pytest.raises(InputError, match="differs from the plain model by"):
        LossRecorder(loaded)


class Smearing(torch.nn.Module):
    """A head whose logits depend on how many tokens it is given."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, states):
        return self.head(states - states.mean(dim=1, keepdim=True))


def test_a_large_vocabulary_adds_no_bias():
    """Summed in float32, the exponentials of 50,000 words are off by 1e-6, always to the same side."""
    logits, targets = torch.randn(400, 50_000, generator=torch.Generator().manual_seed(0)) * 4, torch.arange(400)
    found = losses.scores_of(logits, targets)[0].double()
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    assert abs(float((found - expected).mean())) < 1e-7 * float(expected.mean())
