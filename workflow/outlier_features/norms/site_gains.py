"""The gains behind the sites that are a norm's output, as the model multiplies by them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from outlier_features.model.probed import Probed
from outlier_features.model.sites import Block
from outlier_features.norms.norm_forms import NormCall, norm_calls, sites_of_modules

Array = np.ndarray[Any, Any]


@torch.inference_mode()
def site_gains(
    loaded: Probed, blocks: Sequence[Block], sites: Sequence[str], calls: Mapping[str, NormCall] | None = None
) -> dict[str, Array]:
    """By site that norms make, their gains in the blocks that have it, float32 (L, H).

    A row is NaN where no norm that is understood makes the site; a site without any other row is left out. Of the
    model a few probe tokens are run, or `calls` are at hand: its `norm_calls`.
    """
    made = sites_of_modules(list(blocks))
    calls = norm_calls(loaded) if calls is None else calls
    understood = {call.module: _gain(call) for call in calls.values() if call.module in made}
    found = {}
    for site in sites:
        rows = []
        for block in (block for block in blocks if site in block.sites):
            module = block.closing_norm if site == "resid_post" else block.sites[site].module
            row = np.full(block.sites[site].width, np.nan, np.float32)
            if module is not None and site in made.get(module, ()):
                gain = understood.get(module)
                row = gain if gain is not None and gain.shape == row.shape else row
            rows.append(row)
        if np.isfinite(np.array(rows)).any():
            found[site] = np.stack(rows)
    return found


def _gain(call: NormCall) -> Array | None:
    """What a norm multiplies by; None where it is not understood."""
    if not call.fits or (not call.parameters and len(call.args) + len(call.kwargs) != 1):
        return None
    try:
        forms = call.forms()
    except Exception:  # code of a model that does not run by itself
        return None
    if not call.parameters:
        return np.ones(call.read.shape[-1], np.float32) if forms else None
    if len(forms) != 1:
        return None
    (form,) = forms
    return (form.offset + call.parameters[form.gain].detach().cpu().float()).numpy()
