"""Modules call functions while a block runs, and none of them afterwards, however it ends."""

import pytest
import torch
from torch import nn

from outlier_features.model.hooks import hooks


class Scaled(nn.Module):
    def forward(self, x, by=1.0):
        return x * by


class Refuses(nn.Linear):
    def register_forward_hook(self, *args, **kwargs):
        raise RuntimeError("no hooks here")


def registered(*modules):
    return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules]


def test_functions_get_what_a_module_reads_and_returns_in_their_order():
    module, x, seen = Scaled(), torch.tensor([1.0, -2.0]), []
    before = [(module, lambda m, args, kwargs, n=n: seen.append((n, m, args, kwargs))) for n in "ab"]
    after = [(module, lambda m, args, kwargs, output: seen.append(("c", m, args, kwargs, output.tolist())))]
    with hooks(before, after):
        assert module(x, by=3.0).tolist() == [3.0, -6.0]
    module(x)
    given = (module, (x,), {"by": 3.0})
    assert seen == [("a", *given), ("b", *given), ("c", *given, [3.0, -6.0])]


def test_no_function_is_left_after_an_error():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    kept = one.register_forward_hook(lambda module, args, output: None)  # somebody else's
    with (
        pytest.raises(ValueError, match="in the block"),
        hooks([(one, lambda *_: None), (other, lambda *_: None)], [(one, lambda *_: None)]),
    ):
        assert registered(one, other) == [3, 1]
        raise ValueError("in the block")
    assert registered(one, other) == [1, 0] and kept.id in one._forward_hooks


def test_no_function_is_left_where_one_cannot_be_registered():
    one, refusing = nn.Linear(2, 2), Refuses(2, 2)
    both = [(module, lambda *_: None) for module in (one, refusing)]
    with pytest.raises(RuntimeError, match="no hooks here"), hooks(both, both):
        pytest.fail("the block must not run")
    assert registered(one, refusing) == [0, 0]
