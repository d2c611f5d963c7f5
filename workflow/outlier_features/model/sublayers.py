"""The sublayers of a block, named by what they do and not by what their class is called.

*Attention* mixes tokens by softmax weights of queries and keys. Another part that mixes tokens (state space, linear
attention, convolution, recurrence) is a *mixer*. *Cross-attention* takes softmax weights of another sequence's keys. An
*MLP* treats each token alone. Which of them a part is, is tried: it is run again with the other tokens changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from outlier_features.model.activation import activation_of
from outlier_features.model.block_calls import Call, is_linear, multiplies
from outlier_features.model.models import holds_experts
from outlier_features.model.tensors import same_values

Kind = Literal["attention", "mixer", "cross", "mlp", "linear", "unknown"]


@dataclass(frozen=True)
class Sublayer:
    """Part of a block: the calls of its matrices in order, and of the whole part where that is one module.

    linear     a linear layer that is no part of an MLP
    unknown    it could not be run on other tokens
    nested     it lies in a part of the block that is a block of its own
    """

    kind: Kind
    name: str
    matrices: tuple[Call, ...]
    whole: Call | None
    nested: bool = False

    @property
    def is_one_module(self) -> bool:
        """It has no linear layers: only its own input and output are seen."""
        return self.whole is not None and self.matrices in ((), (self.whole,))

    @property
    def is_mlp(self) -> bool:
        """It treats each token alone, by more than one matrix or by experts."""
        return self.kind == "mlp" and (len(self.matrices) > 1 or self.routed)

    @property
    def routed(self) -> bool:
        """Not every token goes through it, or not through the same matrices."""
        tokens = self.matrices[0].shape.numel()
        return any(holds_experts(call.module) or _rows(call.input) != tokens for call in self.matrices)


def sublayers(inner: list[Call], config: Any, crosses: bool) -> list[Sublayer]:
    """The sublayers of a block, in the order in which they begin, from the calls inside it.

    crosses   whether there is another sequence whose keys may be read; where there is none, softmax weights are of the
              sequence's own keys, also where an earlier block computed them (Gemma 4)
    """
    parts = list(_parts(inner, "", config))
    return parts if crosses else [replace(part, kind="attention") if part.kind == "cross" else part for part in parts]


def _parts(inner: list[Call], prefix: str, config: Any) -> Iterator[Sublayer]:
    """The parts below the module that `prefix` names, `attention.` or the like, those joined that make one MLP."""
    return _joined(list(_split(inner, prefix, config)), inner, config)


def _split(inner: list[Call], prefix: str, config: Any) -> Iterator[Sublayer]:
    children: dict[str, list[Call]] = {}
    for call in inner:
        if call.name.startswith(prefix):
            children.setdefault(prefix + call.name.removeprefix(prefix).partition(".")[0], []).append(call)
    for name, calls in children.items():
        own, its = [call for call in calls if call.name == name], [call for call in calls if multiplies(call.module)]
        if not its:
            if not prefix and own and (kind := _kind(own[0])) in ("attention", "mixer"):
                yield Sublayer(kind, name, (), own[-1])  # it mixes tokens without a matrix
        elif not own:
            yield from _split(inner, f"{name}.", config)  # a list, which does not run itself
        elif is_linear(own[0].module):
            yield Sublayer("linear", name, tuple(its), own[-1])
        else:
            kind = _kind(own[0])
            inside = list(_parts(inner, f"{name}.", config)) if kind in ("attention", "mixer") else []
            if _holds_more(inside):
                yield from (replace(part, nested=True) for part in inside)
            else:
                yield Sublayer(kind, name, tuple(its), own[-1])


def _kind(call: Call) -> Kind:
    mixing = call.mixing
    if mixing is None:
        return "unknown"
    if mixing.tokens:
        return "attention" if mixing.softmax else "mixer"
    return "cross" if mixing.softmax else "mlp"


def _holds_more(inside: list[Sublayer]) -> bool:
    """Whether a part that mixes tokens holds, after what mixes them, an MLP as well: a block in the block."""
    kinds = [part.kind for part in inside]
    mixes = next((n for n, kind in enumerate(kinds) if kind in ("attention", "mixer")), None)
    return mixes is not None and any(part.is_mlp for part in inside[mixes + 1 :])


def _joined(parts: list[Sublayer], inner: list[Call], config: Any) -> Iterator[Sublayer]:
    """The parts, with those together an MLP that hand on a token's values from one to the next (fc1, fc2)."""
    waiting: list[Sublayer] = []
    for part in parts:
        if part.kind not in ("linear", "mlp") or part.is_mlp:
            yield from waiting
            waiting = []
            yield part
            continue
        if waiting and not _hands_on(waiting[-1], part, inner, config):
            yield from waiting
            waiting = []
        waiting.append(part)
        matrices = tuple(call for one in waiting for call in one.matrices)
        if len(matrices) > 1:
            yield Sublayer("mlp", waiting[0].name, matrices, None)
            waiting = []
    yield from waiting


def _hands_on(before: Sublayer, after: Sublayer, inner: list[Call], config: Any) -> bool:
    """Whether `after` reads what `before` wrote, as it is or through modules or functions that act on each value."""
    assert before.whole is not None and after.whole is not None
    written, read = before.whole.output, after.whole.input
    if same_values(written, read):
        return True
    if any(call.plain and same_values(call.input, written) and same_values(call.output, read) for call in inner):
        return True
    function = activation_of(config)
    if function is None or written.numel() != read.numel():
        return False
    return torch.allclose(function(written).reshape(-1), read.reshape(-1), rtol=1e-3, atol=1e-6)


def _rows(value: torch.Tensor) -> int:
    return value.numel() // value.shape[-1]
