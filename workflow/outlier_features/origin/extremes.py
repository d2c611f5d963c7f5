"""The largest |x| of every dim on the residual stream, and where it is, by running the model over a whole run."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block, hooked
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Extremes:
    """Per block and dim, (L, H): the largest `abs(x)` on resid_post, and its sequence and token; the first of equals.

    entry   (H,): the largest `abs(x)` on the first block's resid_pre
    """

    max_abs: Array
    sequence: Array
    position: Array
    entry: Array

    def largest_rises(self, count: int) -> list[int]:
        """The dims whose largest `abs(x)` over the blocks is most above what enters the first block."""
        rise = self.max_abs.max(axis=0) - self.entry
        return [int(dim) for dim in np.argsort(-rise, kind="stable")[:count]]

    def where(self, dim: int) -> tuple[int, int]:
        """Sequence and token of a dim's largest `abs(x)` over all blocks."""
        layer = int(self.max_abs[:, dim].argmax())
        return int(self.sequence[layer, dim]), int(self.position[layer, dim])


def find_extremes(loaded: LoadedModel, blocks: list[Block], run: Tokens) -> Extremes:
    """Run every sequence, one at a time; padding is left out. What is held does not grow with the run."""
    width = blocks[0].sites["resid_post"].width
    # Row 0 is the first block's resid_pre, row i + 1 the resid_post of block i.
    shape = (len(blocks) + 1, width)
    best, sequence, position = torch.full(shape, -1.0), torch.zeros(shape).long(), torch.zeros(shape).long()
    sites = [(0, blocks[0].sites["resid_pre"])]
    sites += [(index, block.sites["resid_post"]) for index, block in enumerate(blocks, start=1)]
    for n in tqdm(range(len(run.tokens)), desc="search for extremes", unit="seq", file=sys.stderr):
        mask = torch.from_numpy(run.mask[n].copy())

        def keep(row: int, value: torch.Tensor, n: int = n, mask: torch.Tensor = mask) -> None:
            size = value.reshape(len(mask), width).abs().masked_fill(~mask[:, None].to(value.device), -1)
            largest, at = (part.cpu() for part in size.max(dim=0))
            larger = largest.float() > best[row]
            best[row] = torch.where(larger, largest.float(), best[row])
            sequence[row] = torch.where(larger, n, sequence[row])
            position[row] = torch.where(larger, at, position[row])

        ids = torch.from_numpy(run.tokens[n : n + 1].astype(np.int64))
        with hooked(sites, keep):
            run_blocks(loaded, ids.to(loaded.device), mask[None].to(loaded.device))
    return Extremes(best[1:].numpy(), sequence[1:].numpy(), position[1:].numpy(), best[0].numpy())
