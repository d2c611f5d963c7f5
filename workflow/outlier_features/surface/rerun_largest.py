"""Rule rerun_largest: the activations that hold a run's largest |x|, from another pass where they were not kept."""

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from outlier_features import __version__
from outlier_features.errors import InputError
from outlier_features.files.tensorfile import write_tensors
from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.loading import Loading
from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites, hooked
from outlier_features.surface.largest import find_largest
from outlier_features.tokens.tokens import Tokens


def rerun_largest(
    source: Path,
    tokens: Path,
    statistics: Path,
    activations: Path,
    **loading: Unpack[Loading],
) -> None:
    """Run the sequence with the run's largest `abs(x)` (`largest.find_largest`) through the model once more, alone.

    source, tokens, statistics   of the run

    Writes `activations` as a chunk of that one sequence, `{site}.{layer}` float32 (1, T, H), which every value of a
    16-bit format is exactly. Raises `InputError` where a file is of another run or the model lacks the site.
    """
    run = Tokens.read(tokens)
    file = run.files.tensors(statistics)
    record = run.files.model(source)
    largest = find_largest(file)
    provenance = {**file.provenance, "rerun": True, "package_version": __version__, "torch": torch.__version__}
    if largest is None:
        write_tensors(activations, {}, provenance | {"start": 0, "stop": 0})
        return
    loaded = load_model(Path(record["location"]), **loading)
    blocks = find_sites(loaded)
    if largest.layer >= len(blocks) or largest.site not in blocks[largest.layer].sites:
        raise InputError(f"{statistics}: names {largest.site} of block {largest.layer}, which the model does not have")
    rows = slice(largest.sequence, largest.sequence + 1)
    ids = torch.from_numpy(run.tokens[rows].astype(np.int64)).to(loaded.device)
    mask = torch.from_numpy(run.mask[rows].copy()).to(loaded.device)
    found: dict[str, np.ndarray[Any, Any]] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        found[name] = value.detach().reshape(*ids.shape, -1).float().cpu().numpy().copy()

    with hooked([(f"{largest.site}.{largest.layer}", blocks[largest.layer].sites[largest.site])], keep):
        run_blocks(loaded, ids, mask)
    write_tensors(activations, found, provenance | {"start": rows.start, "stop": rows.stop})
