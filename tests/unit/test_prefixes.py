"""A pass that begins at a block is the whole pass, bit by bit, or it is not begun there."""

from collections import namedtuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

import zoo
from outlier_features.model.interventions import Edit, edited
from outlier_features.model.models import LoadedModel
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites
from outlier_features.model.tensors import map_tensors, unknown_parts

_ALBERT = {
    "vocab_size": 128, "embedding_size": 32, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 96,
}  # fmt: skip
_SEQ2SEQ = {"vocab_size": 128, "d_model": 32, "decoder_start_token_id": 1, "pad_token_id": 0}
_T5 = dict(_SEQ2SEQ, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
_BART = dict(
    _SEQ2SEQ, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=40, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_OTHERS = {  # blocks that are one module, and decoders whose encoder runs before them
    "albert": (AutoModelForMaskedLM, _ALBERT, None),
    "t5": (AutoModelForSeq2SeqLM, _T5, "decoder"),
    "bart": (AutoModelForSeq2SeqLM, _BART, "decoder"),
}
EVERY = pytest.mark.parametrize("name", [*zoo.of_every_kind(zoo.CONFIGS), *_OTHERS])


def loaded(name):
    if name in zoo.CONFIGS:
        return zoo.loaded(name)
    kind, sizes, part = _OTHERS[name]
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(name, **sizes), attn_implementation="eager").eval()
    return LoadedModel.of(model, torch.device("cpu"), "eager", part)


def some_ids(batch=2, length=20):
    ids = torch.randint(3, zoo.VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(4))
    ids[:, 0] = 1
    return ids


def states(model, ids):
    with torch.inference_mode():
        return model.base(ids)[0]


def starts(model):
    prefixes = Prefixes(model)
    return [prefixes.start(n) for n in range(len(model.stack) + 1)]


@EVERY
def test_a_pass_may_begin_at_every_block(name):
    model, ids = loaded(name), some_ids()
    blocks, prefixes = len(model.stack), Prefixes(model)
    assert starts(model) == [*range(blocks + 1)]
    with prefixes.keeping(range(blocks + 1), ids) as kept:
        whole = states(model, ids)
    ran = []
    called = [[m for m in block.module.modules() if m in model.stack.calls] for block in model.stack.blocks]
    first = {modules[1] for modules in called}
    if model.part:
        first.add(model.model.get_encoder().get_submodule({"bart": "layers.0.fc1", "t5": "block.0.layer.0"}[name]))
    handles = [module.register_forward_hook(lambda *_: ran.append(1)) for module in first]
    states(model, ids)
    each = len(ran) // blocks
    for start in range(1, blocks + 1):
        ran.clear()
        with prefixes.begun(kept[start]):
            assert torch.equal(states(model, ids), whole)
        assert len(ran) == each * (blocks - start)  # neither the blocks before nor the encoder ran
    for handle in handles:
        handle.remove()
    assert torch.equal(states(model, ids), whole)  # and nothing is left of it
    assert not any("forward" in vars(module) for module in model.model.modules())


@EVERY
def test_what_is_changed_from_a_block_on_is_changed_as_in_a_whole_pass(name):
    model, ids = loaded(name), some_ids()
    prefixes, where = Prefixes(model), torch.arange(20).expand(2, 20) % 3 == 1
    with prefixes.keeping(range(len(model.stack) + 1), ids) as kept:
        plain = states(model, ids)
    changed = 0
    for layer, block in enumerate(find_sites(model)):
        for name, start in (("attn_norm", layer), ("mlp_norm", layer), ("resid_post", layer + 1)):
            if name in block.sites and block.sites[name].side == "out":
                edits = [Edit(block.sites[name], (3, 9), (7.0, -5.0))]
                with edited(edits, where):
                    expected = states(model, ids)
                with edited(edits, where, prefixes.past(start)), prefixes.begun(kept[start]):
                    assert torch.equal(states(model, ids), expected)
                changed += not torch.equal(expected, plain)
    assert changed >= len(model.stack)


@EVERY
def test_rows_of_a_batch_may_each_be_changed_otherwise(name):
    model, ids = loaded(name), some_ids()
    prefixes = Prefixes(model)
    site = find_sites(model)[1].sites["resid_post"]
    with prefixes.keeping([2], ids) as kept:
        states(model, ids)
    assert prefixes.can_repeat(2)
    where = torch.zeros((6, 20), dtype=torch.bool)
    where[2:4, 5] = True  # the second of three copies
    with edited([Edit(site, (3,), (9.0,))], where), prefixes.begun(kept[2], times=3):
        found = states(model, ids.repeat(3, 1))
    with edited([Edit(site, (3,), (9.0,))], where[2:4]):
        one = states(model, ids)
    expected = torch.cat([states(model, ids), one, states(model, ids)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def after(module, change):
    """The module's own code ends with `change` of what it returned."""
    forward = module.forward
    module.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))


def reads_first_block(model):
    """The last block adds what the first one returned."""
    first, *_, last = model.model.model.layers
    returned = []
    first.register_forward_hook(lambda module, args, output: returned.append(output.clone()))
    after(last, lambda output: output + returned[-1])


def keeps_to_itself(model):
    """The third block adds what a part of the first one left behind, in this pass or the one before."""
    first, _, third, _ = model.model.model.layers
    left = []
    first.mlp.register_forward_hook(lambda module, args, output: left.append(output.clone()))
    after(third, lambda output: output + left[-1])


def needs_the_first_block(model):
    """The second block takes what a part of the first one hands over, once."""
    first, second, *_ = model.model.model.layers
    handed = {}
    first.mlp.register_forward_hook(lambda module, args, output: handed.update(it=output.clone()))
    after(second, lambda output: output + handed.pop("it"))


@pytest.mark.parametrize(
    ("plant", "expected", "said"),
    [
        (reads_first_block, [0, 1, 0, 0, 4], "the last hidden states are others"),
        (keeps_to_itself, [0, 0, 0, 3, 4], "the last hidden states are others"),
        (needs_the_first_block, [0, 0, 2, 3, 4], "the model raises KeyError: 'it'"),
    ],
)
def test_where_more_is_read_than_the_block_before_all_blocks_are_run(plant, expected, said, capsys):
    model = zoo.loaded("llama")
    plant(model)
    assert starts(model) == expected
    told = capsys.readouterr().err
    assert told.count(said) == expected.count(0) - 1
    assert f"passes from block {max(n for n in range(5) if not expected[n])} on: all blocks are run" in told


class Holder:
    """What a block might return beside its states."""


def test_what_cannot_be_copied_is_not_kept(capsys):
    model = zoo.loaded("llama")
    layers = model.model.model.layers
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: (args[0][0] if type(args[0]) is tuple else args[0],))
        after(layer, lambda output: (output, Holder()))
    model.model.model.norm.register_forward_pre_hook(lambda module, args: (args[0][0],))
    assert starts(model) == [0] * 5
    assert "block 0 returns a Holder, which is not copied" in capsys.readouterr().err


def test_an_error_in_a_pass_leaves_the_blocks_as_they_were():
    model, ids = zoo.loaded("llama"), some_ids()
    prefixes = Prefixes(model)
    with prefixes.keeping([2], ids) as kept:
        whole = states(model, ids)
    with pytest.raises(KeyboardInterrupt), prefixes.begun(kept[2]):
        raise KeyboardInterrupt
    assert torch.equal(states(model, ids), whole)


def test_a_kept_state_is_as_it_was_however_often_it_is_begun_with():
    model, ids = zoo.loaded("llama"), some_ids()
    prefixes = Prefixes(model)
    site = find_sites(model)[1].sites["resid_post"]
    with prefixes.keeping([2], ids) as kept:
        whole = states(model, ids)
    with edited([Edit(site, (3,), (9.0,))], torch.ones(2, 20, dtype=torch.bool)), prefixes.begun(kept[2]):
        assert not torch.equal(states(model, ids), whole)
    with prefixes.begun(kept[2]):
        assert torch.equal(states(model, ids), whole)


def test_nested_outputs_are_copied_to_the_last_tensor():
    pair = namedtuple("pair", ["one", "two"])
    value = (torch.zeros(1), pair(torch.zeros(1), None), BaseModelOutput(last_hidden_state=torch.zeros(1)), [{"a": 1}])
    found = map_tensors(value, lambda tensor: tensor + 1)
    assert type(found[1]) is pair and type(found[2]) is BaseModelOutput and found[3] == [{"a": 1}]
    assert [float(one) for one in (found[0], found[1].one, found[2].last_hidden_state)] == [1.0] * 3
    assert float(value[1].one) == 0
    assert [*unknown_parts(value)] == []
    assert len([*unknown_parts((value, {"b": [Holder()]}))]) == 1
