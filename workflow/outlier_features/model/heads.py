"""Attention heads: how many lie side by side in what a block's last attention matrix reads.

No name or config says so, but the run: among the results of torch's operations in a block there is one with an axis of
heads, (1, heads, T, width), whose heads side by side are what the matrix reads, sign by sign: a gate may multiply them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import Block, hooked

Tensor = torch.Tensor
_TOKENS = 11  # that no number of heads is likely to be
SITE = "attn_heads"


def find_heads(loaded: LoadedModel, blocks: Sequence[Block]) -> tuple[dict[int, int], dict[int, str]]:
    """By layer the number of its heads, and why it is not known of the other layers.

    Head h of n is the h-th of n equal slices of site `attn_heads`.
    """
    sites = [(layer, block.sites[SITE]) for layer, block in enumerate(blocks) if SITE in block.sites]
    found: dict[int, int] = {}
    watch = _HeadsFirst()

    def compare(layer: int, read: Tensor) -> None:
        heads = watch.beside_each_other(read.reshape(_TOKENS, -1))
        if heads:
            found[layer] = heads
        watch.seen.clear()

    # no_grad: in inference mode, composite operations would hide those that they are made of.
    with hooked(sites, compare), watch, torch.no_grad():
        loaded.base(probe_ids(loaded.model).reshape(-1)[:_TOKENS][None])
    unknown = {
        layer: block.absent.get(SITE, "no heads lie side by side in what its last matrix reads")
        for layer, block in enumerate(blocks)
        if layer not in found
    }
    return found, unknown


class _HeadsFirst(TorchDispatchMode):
    """Keeps results (heads, T, width) of operations, until they are compared with what a block's matrix reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[int, ...], list[Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for part in output if isinstance(output, tuple) else (output,):
            if not torch.is_tensor(part) or part.ndim < 3 or not part.is_floating_point():
                continue
            if part.shape[-2] == _TOKENS and part.numel():
                by_head = part.reshape(-1, _TOKENS, part.shape[-1])
                if len(by_head) > 1:
                    self.seen.setdefault(tuple(by_head.shape), []).append(by_head)
        return output

    def beside_each_other(self, read: Tensor) -> int | None:
        """How many heads, of those seen, are what was `read`, (T, heads * width)."""
        for (heads, _, width), seen in self.seen.items():
            for by_head in seen if heads * width == read.shape[1] else ():
                if torch.equal(by_head.transpose(0, 1).reshape(_TOKENS, -1).sign(), read.sign()):
                    return heads
        return None
