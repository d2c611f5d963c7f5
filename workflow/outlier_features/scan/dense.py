"""Hits that are too many to be listed: counted, sequence by sequence, for every threshold that is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outlier_features.populations import EXCLUDED, PADDING, POPULATIONS
from outlier_features.scan import dense_kernel
from outlier_features.scan.scan import KINDS, runs_of
from outlier_features.scan.scan_kernel import TILE
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import Array


@dataclass(frozen=True)
class DenseCounts:
    """Hits of one sequence at sites that share a basis; T positions, H dims, S site tensors, K thresholds, 2 parts."""

    parts: Array  # uint8 (T,), see `populations`
    thresholds: Array  # float32 (K,), ascending
    blocks: Array  # int64 (S,), ascending: the block of each site tensor
    extremes: Array  # float32 (S, 2, H): largest abs(x) of each site tensor, part and dim
    largest: Array  # float32 (T, H): largest abs(x) over all site tensors
    signs: Array  # uint32 (K, 2, 2, H): hits by threshold, part, sign (positive, negative) and dim
    token_counts: dict[str, Array]  # uint32 (K, T) by site: hits by threshold and position
    token_largest: dict[str, Array]  # float32 (T,) by site: largest abs(x) at each position

    def pairs(self, population: str) -> tuple[Array, dict[str, Array]]:
        """A row for each threshold and dim with a hit: index of the threshold, dim and `hits_schema.PAIR_COUNTS`."""
        members = POPULATIONS[population]
        extremes = self.extremes[:, members].max(axis=1)
        hit = extremes >= self.thresholds[:, None, None]  # (K, S, H)
        first_tensors = np.flatnonzero(np.diff(self.blocks, prepend=-1))
        alone = len(first_tensors) == len(self.blocks)  # then there is nothing to join
        in_block = hit if alone else np.logical_or.reduceat(hit, first_tensors, axis=1)
        blocks = self.blocks[first_tensors]
        largest = self.largest[np.isin(self.parts, members)]
        positive, negative = self.signs[:, members].sum(axis=1, dtype=np.int64).swapaxes(0, 1)
        counts = {
            "blocks_hit": in_block.sum(axis=1),
            "tensors_hit": hit.sum(axis=1),
            "positions_hit": np.stack([(largest >= threshold).sum(axis=0) for threshold in self.thresholds]),
            "occurrences": positive + negative,
            "positive": positive,
            "first_layer": blocks[in_block.argmax(axis=1)],
            "last_layer": blocks[::-1][in_block[:, ::-1].argmax(axis=1)],
            "max_abs": np.broadcast_to(extremes.max(axis=0), positive.shape),
        }
        k, dim = np.nonzero(hit.any(axis=1))
        return k, {"dim": dim, **{name: count[k, dim] for name, count in counts.items()}}

    def positions(self, site: str, floor: float) -> tuple[Array, dict[str, Array]]:
        """A row for each threshold and position with a value at or above the floor: as `pairs`, see `tables`."""
        largest = self.token_largest[site]
        tokens = np.flatnonzero((self.parts != PADDING) & (largest >= np.float32(floor)))
        each = np.tile(tokens, len(self.thresholds))
        return np.repeat(np.arange(len(self.thresholds)), len(tokens)), {
            "token": each,
            "excluded": self.parts[each] == EXCLUDED,
            "occurrences": self.token_counts[site][:, tokens].reshape(-1),
            "max_abs": largest[each],
        }


def count_dense(
    sites: Mapping[str, SiteTensors], parts: Array, sequence: int, thresholds: Sequence[float]
) -> DenseCounts:
    """Count the hits of a sequence jointly at `sites`.

    parts        (T,): those of its positions, see `populations`
    sequence     its row in the tensors
    thresholds   ascending; compared as float32
    """
    _, tokens, dims = next(iter(sites.values())).shape
    wanted = np.asarray(thresholds, np.float32)
    runs, _ = runs_of(parts[None])
    extremes, blocks = [], []
    largest = np.zeros(tokens * dims, np.float32)
    counts = np.zeros((len(wanted), 2, 2, dims), np.uint32)
    token_counts, token_largest = {}, {}
    tile = np.empty(TILE * dims, np.float32)
    for site, tensors in sites.items():
        token_counts[site] = np.zeros((len(wanted), tokens), np.uint32)
        of_site = np.zeros(tokens * dims, np.float32)
        for index, layer in enumerate(tensors.layers):
            extreme = np.zeros((2, dims), np.float32)
            raw, (start,) = tensors.bits(index, sequence, sequence + 1)
            dense_kernel.count_layer(
                raw, KINDS[tensors.dtype], start, runs, wanted, of_site, extreme, counts, token_counts[site], tile,
            )  # fmt: skip
            extremes.append(extreme)
            blocks.append(layer)
        token_largest[site] = of_site.reshape(tokens, dims).max(axis=1)
        np.maximum(largest, of_site, out=largest)
        tensors.drop(sequence, sequence + 1)
    order = np.argsort(blocks, kind="stable")
    return DenseCounts(
        parts=parts,
        thresholds=wanted,
        blocks=np.asarray(blocks, np.int64)[order],
        extremes=np.stack(extremes)[order],
        largest=largest.reshape(tokens, dims),
        signs=counts,
        token_counts=token_counts,
        token_largest=token_largest,
    )
