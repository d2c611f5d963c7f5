"""The norms of a model and their gains, as the model's files hold them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.model.loading import Part, Wanted
from outlier_features.model.model_files import model_files
from outlier_features.model.models import load_model
from outlier_features.model.probed import Probed
from outlier_features.model.sites import Block, find_sites
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.norms.gains_in_file import stored_floats
from outlier_features.norms.norm import PARAMETERIZATION, Array, Gain, Norm
from outlier_features.norms.norm_forms import NormCall, norm_calls, sites_of_modules


def norms_of(
    location: Path, trust_remote_code: bool, part: Part | None = None, placement: Wanted = "one"
) -> list[Norm]:
    """The norms of the model in the directory `location`, with their gains as stored; raises `InputError`.

    part   the half of an encoder-decoder model
    """
    checkpoint = checkpoint_of(location)
    floats = {entry.dtype for file in checkpoint for entry in file.entries.values() if entry.dtype in DTYPES}
    loaded = load_model(
        location,
        dtype="bfloat16" if floats == {"BF16"} else "float32",  # either way no gain is rounded
        device="cpu",
        attention="auto",  # it does not concern the norms
        trust_remote_code=trust_remote_code,
        part=part,
        placement=placement,
    )
    blocks = find_sites(loaded)
    keep_proven(blocks, prove_sites(loaded, blocks))
    return find_norms(loaded, blocks, checkpoint)


def checkpoint_of(location: Path) -> list[TensorFile]:
    """The files of weights of the model in the directory `location`."""
    names = [file.name for file in location.iterdir() if file.is_file()] if location.is_dir() else []
    chosen = model_files(names, lambda name: (location / name).read_text(encoding="utf-8"), str(location))
    return [TensorFile(location / name) for name in chosen if name.endswith(".safetensors")]


@torch.inference_mode()
def find_norms(
    loaded: Probed,
    blocks: list[Block],
    checkpoint: list[TensorFile],
    calls: Mapping[str, NormCall] | None = None,
) -> list[Norm]:
    """The norms that run on a few probe tokens, in the model's order.

    checkpoint   files in which the gains are looked up; of a model that was loaded in another dtype than theirs, the
                 gains are taken from there, so that none is rounded
    calls        `norm_calls` of the model, where they are at hand

    Raises `InputError` where a gain is not finite, or was rounded and is not found in the checkpoint.
    """
    stored = {name: file for file in checkpoint for name in file.entries}
    sites = sites_of_modules(blocks)
    return [
        norm
        for path, call in (norm_calls(loaded) if calls is None else calls).items()
        if (norm := _norm(path, call, sites.get(call.module, ()), loaded, blocks, stored)) is not None
    ]


def _norm(
    path: str,
    call: NormCall,
    sites: tuple[str, ...],
    loaded: Probed,
    blocks: list[Block],
    stored: Mapping[str, TensorFile],
) -> Norm | None:
    parameters = call.parameters
    if not call.fits:
        return None
    for name, value in parameters.items():
        if bad := int((~value.isfinite()).sum()):
            raise InputError(f"{path}: its {name} has {bad} values that are NaN or infinite, expected finite ones")
    if not parameters and (len(call.args) + len(call.kwargs) != 1):
        return None
    forms = call.forms()
    if not forms and not (parameters and call.ignores_scale()):
        return None
    layer = next((index for index, block in enumerate(blocks) if path.startswith(f"{block.path}.")), None)
    width = call.read.shape[-1]
    where = (path, sites, layer, bool(sites) or (layer is None and width == loaded.stack.width))
    if not parameters:
        return Norm(*where, forms[0].kind, "none", None, width, None)
    if len(forms) != 1:
        gain = next(iter(parameters.values()))
        reason = (
            "its gains are all 0, so that they tell nothing of its kind"
            if forms
            else "its output ignores the scale of its input, but is not its normalised input times w or 1 + w"
        )
        return Norm(*where, None, None, reason, gain.numel(), tuple(gain.shape))
    (form,) = forms
    values = _unrounded(f"{path}.{form.gain}", parameters[form.gain], stored)
    tensor, dtype = _in_checkpoint(f"{path}.{form.gain}", values, stored)
    bias = _unrounded(f"{path}.{form.bias}", parameters[form.bias], stored) if form.bias else None
    return Norm(
        *where,
        form.kind,
        PARAMETERIZATION[form.offset],
        None,
        values.size,
        values.shape,
        tensor,
        Gain(values, form.offset, dtype),
        None if bias is None else float(np.abs(bias).max()),
    )


def _unrounded(name: str, parameter: torch.Tensor, stored: Mapping[str, TensorFile]) -> Array:
    """The parameter as float32, as it was before it was rounded to the dtype in which the model was loaded.

    Its values are then those of the tensor called `name` or, where none has that name, of any in the checkpoint that
    comes to them; raises `InputError` where there is none, or several that differ.
    """
    values: Array = parameter.detach().float().cpu().numpy()
    dtype = str(parameter.dtype).removeprefix("torch.")
    kinds = {DTYPES.get(file.entries[one].dtype) for one, file in stored.items()} - {None}
    if dtype in ("float32", "float64") or kinds <= {dtype}:
        return values
    alike = [one for one, file in stored.items() if file.entries[one].shape == values.shape]
    floats = [
        stored_floats(stored[one], one).astype(np.float32)
        for one in ([name] if name in stored else alike)
        if stored[one].entries[one].dtype in DTYPES
    ]
    found = [one for one in floats if np.array_equal(_rounded(one, parameter.dtype), values)]
    if not found or any(not np.array_equal(one, found[0]) for one in found):
        raise InputError(
            f"{name}: was rounded to {dtype} as the model was loaded, and {len(found)} tensors of its checkpoint come "
            "to the same values, expected one; with dtype: float32 nothing is rounded"
        )
    return found[0]


def _rounded(values: Array, dtype: torch.dtype) -> Array:
    rounded: Array = torch.tensor(values).to(dtype).float().numpy()
    return rounded


def _in_checkpoint(name: str, values: Array, stored: Mapping[str, TensorFile]) -> tuple[str | None, str | None]:
    """Name and dtype of the tensor called `name` in the checkpoint, less or more a prefix, that has these values."""
    for other, file in stored.items():
        alike = other == name or name.endswith(f".{other}") or other.endswith(f".{name}")
        if alike and file.entries[other].dtype in DTYPES and np.array_equal(stored_floats(file, other), values):
            return other, DTYPES[file.entries[other].dtype]
    return None, None
