"""Bytes on disk of a run's activations and hits, before it has run."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from outlier_features.detect.hits_schema import HITS
from outlier_features.dump.dumps import Dump
from outlier_features.model.memory import ITEM_SIZES

# Sites as wide as the residual stream; how wide others are, only a pass tells.
_STREAM_WIDE = {"resid_pre", "resid_mid", "resid_post", "attn_norm", "attn_out", "mixer_norm", "mixer_out", "mlp_norm",
                "mlp_out", "mlp_down"}  # fmt: skip
_OF_ATTENTION, _OF_OTHER_MIXERS = {"attn_norm", "attn_out", "attn_heads"}, {"mixer_norm", "mixer_out"}
_OF_EVERY_BLOCK = {"resid_pre", "resid_post"}
_SIZES = {pl.UInt16: 2, pl.UInt32: 4, pl.Float32: 4, pl.Boolean: 1}
_ROW = sum(_SIZES[column.dtype] for column in HITS.columns)  # bytes


@dataclass(frozen=True)
class Activations:
    """Of a run: values and bytes of its activations (or of a dump's), each at most so many; hits that can be listed.

    exact       every block has all of the sites, whatever the model
    uncounted   sites that are not counted, since their width or their blocks are not known
    """

    values: int
    bytes: int
    exact: bool
    uncounted: tuple[str, ...]
    hits_bytes: int


def activations_of_model(
    sites: Iterable[str],
    positions: int,
    width: int,
    blocks: int,
    attending: int | None,
    only_attention: bool,
    dtype: str,
    max_density: float,
) -> Activations:
    """Of sequences of `positions` positions together.

    attending        blocks with attention at most; None: not known, so every block
    only_attention   no block has another mixer
    """
    at_most = dict.fromkeys(sites, blocks)
    if attending is not None:
        at_most |= {site: min(attending, blocks) for site in at_most if site in _OF_ATTENTION}
    if only_attention:
        at_most |= {site: 0 for site in at_most if site in _OF_OTHER_MIXERS}
    wide = {site: count for site, count in at_most.items() if site in _STREAM_WIDE}
    values = positions * width * sum(wide.values())
    there = {site for site, count in at_most.items() if count}
    return Activations(
        values,
        values * ITEM_SIZES[dtype],
        there <= _OF_EVERY_BLOCK,
        tuple(sorted(at_most.keys() - wide.keys())),
        hits_bytes(values, max_density),
    )


def activations_of_dump(dump: Dump, max_density: float) -> Activations:
    """A dump is there already: what it holds."""
    values = sum(site.values for site in dump.sites.values())
    return Activations(
        values, sum(site.nbytes for site in dump.sites.values()), True, (), hits_bytes(values, max_density)
    )


def hits_bytes(values: int, max_density: float) -> int:
    """At most, before compression, of hits by fixed floors: of a sequence with more, none is listed."""
    return round(values * max_density * _ROW)
