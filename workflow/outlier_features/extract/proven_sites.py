"""The sites of a model that are wanted and proven, and what comes out of them in a pass."""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlier_features.errors import InputError
from outlier_features.model.models import overflow_hint
from outlier_features.model.probed import Probed
from outlier_features.model.sites import Block, Site, attention_blocks, find_sites
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.norms.norm_forms import NormCall, norm_calls
from outlier_features.norms.site_gains import site_gains

Array = np.ndarray[Any, Any]
Write = Callable[[str, int, Array], None]  # a tensor's name, the first of its rows, and their values
Done = Callable[[slice], None]  # the rows of a pass when all of theirs were handed out
_STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class ProvenSites:
    """See the module.

    blocks      of the model, with all their proven sites
    absent      of wanted sites that blocks lack: why
    by_name     the wanted sites that are there, by `{site}.{block}`
    calls       of modules that may be norms, see `norm_calls`
    gains       by site, what the norms that make it multiply by, float32 (L, H), see `site_gains`
    stored_as   the format of their values, as safetensors names it
    """

    blocks: list[Block]
    absent: dict[str, str]
    by_name: dict[str, Site]
    calls: Mapping[str, NormCall]
    gains: dict[str, Array]
    stored_as: str

    @classmethod
    def of(cls, loaded: Probed, wanted: list[str], model_type: str) -> "ProvenSites":
        """Find and prove them; what was found is said on stderr. Raises `InputError` where there is none."""
        if loaded.dtype not in _STORED_AS:
            raise InputError(f"dtype: found {loaded.dtype} in {model_type}, expected float32, bfloat16 or float16")
        blocks = find_sites(loaded)
        proof = prove_sites(loaded, blocks)
        keep_proven(blocks, proof)
        absent = _absent(blocks, wanted)
        _report(blocks, wanted, absent, proof.held)
        by_name = {
            f"{site}.{index}": block.sites[site]
            for site in wanted
            for index, block in enumerate(blocks)
            if site in block.sites
        }
        if not by_name:
            site = "resid_post" if "resid_post" in absent else next(iter(absent))
            raise InputError(f"sites: found none of {', '.join(wanted)} in {model_type}: {site}: {absent[site]}")
        calls = norm_calls(loaded)
        gains = site_gains(loaded, blocks, wanted, calls)
        return cls(blocks, absent, by_name, calls, gains, _STORED_AS[loaded.dtype])

    @property
    def facts(self) -> dict[str, Any]:
        """For a provenance."""
        return {
            "sites": list(dict.fromkeys(name.rpartition(".")[0] for name in self.by_name)),
            "absent": self.absent,
            "attention_blocks": attention_blocks(self.blocks),
        }

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """By name the format and shape of their tensors, for so many sequences and tokens."""
        return {name: (self.stored_as, (*shape, site.width)) for name, site in self.by_name.items()}


def not_finite(value: torch.Tensor) -> int:
    """How many values are NaN or infinite. The extremes, which NaN takes over, tell soonest that none is."""
    if value.numel() and bool(torch.isfinite(torch.stack(value.aminmax())).all()):
        return 0
    return value.numel() - int(torch.isfinite(value).sum())


def as_stored(value: torch.Tensor, shape: tuple[int, ...]) -> Array:
    """The values (B, T, H) as numpy, bfloat16 as its bits."""
    value = value.detach().reshape(*shape, -1).cpu()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def require_finite(nonfinite: Mapping[str, int], dtype: torch.dtype, sequence: int) -> None:
    """Raise `InputError` with the first tensor, in the order in which the model made them, that is not finite."""
    if nonfinite:
        name, count = next(iter(nonfinite.items()))
        site, _, layer = name.rpartition(".")
        raise InputError(
            f"site {site}, layer {layer} has {count} values that are NaN or infinite in the batch from sequence "
            f"{sequence} on, expected finite ones{overflow_hint(dtype)}"
        )


def _absent(blocks: list[Block], sites: list[str]) -> dict[str, str]:
    """For each requested site that a block lacks: why, and which blocks unless all do."""
    absent = {}
    for site in sites:
        lacking: dict[str, list[int]] = defaultdict(list)
        for index, block in enumerate(blocks):
            if site not in block.sites:
                lacking[block.absent[site]].append(index)
        if lacking:
            absent[site] = "; ".join(_reason(reason, indices, len(blocks)) for reason, indices in lacking.items())
    return absent


def _reason(reason: str, indices: list[int], blocks: int) -> str:
    return reason if len(indices) == blocks else f"blocks {','.join(map(str, indices))}: {reason}"


def _report(blocks: list[Block], sites: list[str], absent: Mapping[str, str], proven: Mapping[str, list[str]]) -> None:
    for site in sites:
        count = sum(site in block.sites for block in blocks)
        if count:
            print(f"{site}: in {count} of {len(blocks)} blocks; checked: {', '.join(proven[site])}", file=sys.stderr)
        if site in absent:
            print(f"{site}: absent ({absent[site]})", file=sys.stderr)
