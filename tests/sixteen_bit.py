"""How far activations in a 16-bit format move with batch and threads: what docs/definitions.md states.

    python tests/sixteen_bit.py MODEL_DIRECTORY TOKENS_FILE [--dtype bfloat16]

runs the first sequences of a run's tokens one by one and eight at a time, on one thread and on two, and compares every
value of every layer with that of one sequence on one thread.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.sites import find_sites, hooked

SITES = ("resid_post", "attn_norm", "mlp_norm")
SETTINGS = [(1, 1), (1, 2), (8, 1), (8, 2)]  # sequences at once, threads
Values = dict[tuple[str, int], torch.Tensor]


def activations(loaded: LoadedModel, ids: torch.Tensor, batch: int, threads: int) -> Values:
    """By site and layer, float32 (N, T, H)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = {(site, n): block.sites[site] for n, block in enumerate(find_sites(loaded)) for site in SITES
             if site in block.sites}  # fmt: skip
    parts: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    try:
        for rows in ids.split(batch):
            with hooked(found.items(), lambda key, value: parts[key].append(value.detach().float())):
                run_blocks(loaded, rows, torch.ones_like(rows, dtype=torch.bool))
    finally:
        torch.set_num_threads(before)
    return {key: torch.cat([part.reshape(-1, *ids.shape[1:], part.shape[-1]) for part in one])
            for key, one in parts.items()}  # fmt: skip


def bound(loaded: LoadedModel, x: torch.Tensor) -> torch.Tensor:
    """What two settings may differ by, as docs/definitions.md states it: two units in the last place a block."""
    unit = torch.finfo(loaded.dtype).eps
    return 2 * loaded.blocks * unit * (x.abs() + x.square().mean().sqrt())


def differences(loaded: LoadedModel, ids: torch.Tensor) -> Iterator[tuple[int, int, str, float, float, float]]:
    """The largest |difference| by setting and site: as it is, by the RMS of its layer, by |x| where |x| >= 6."""
    reference = activations(loaded, ids, *SETTINGS[0])
    for batch, threads in SETTINGS[1:]:
        other = activations(loaded, ids, batch, threads)
        for site in SITES:
            absolute = relative = of_outliers = 0.0
            for key, x in reference.items():
                if key[0] == site:
                    difference = (other[key] - x).abs()
                    absolute = max(absolute, float(difference.max()))
                    relative = max(relative, float(difference.max() / x.square().mean().sqrt()))
                    large = x.abs() >= 6
                    if large.any():
                        of_outliers = max(of_outliers, float((difference[large] / x[large].abs()).max()))
            yield batch, threads, site, absolute, relative, of_outliers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    loaded = load_model(options.model, dtype=options.dtype, device="cpu", attention="sdpa", trust_remote_code=False)
    ids = torch.from_numpy(load_file(options.tokens)["tokens"][:8].astype(np.int64))
    print(f"{loaded.model_type}, {options.dtype}, {tuple(ids.shape)} tokens, torch {torch.__version__}")
    print("batch threads site         max|d|     /rms of layer   /|x| where |x| >= 6")
    for batch, threads, site, absolute, relative, of_outliers in differences(loaded, ids):
        print(f"{batch:5} {threads:7} {site:10} {absolute:10.4g} {relative:12.4g} {of_outliers:12.4g}", flush=True)


if __name__ == "__main__":
    main()
