"""The norms of a model and their gains, as the model's files hold them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.model.loading import Part, Wanted
from outlier_features.model.model_files import model_files
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.sites import Block, find_sites
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.norms.describe_gains import PARAMETERIZATION, Array, Gain
from outlier_features.norms.gains_in_file import stored_floats
from outlier_features.norms.norm_forms import NormCall, norm_calls, sites_of_modules
from outlier_features.norms.norm_tables import Norm


def norms_of(
    location: Path, trust_remote_code: bool, part: Part | None = None, placement: Wanted = "one"
) -> list[Norm]:
    """The norms of the model in the directory `location`, with their gains as stored; raises `InputError`.

    part   the half of an encoder-decoder model
    """
    names = [file.name for file in location.iterdir() if file.is_file()] if location.is_dir() else []
    chosen = model_files(names, lambda name: (location / name).read_text(encoding="utf-8"), str(location))
    checkpoint = [TensorFile(location / name) for name in chosen if name.endswith(".safetensors")]
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


@torch.inference_mode()
def find_norms(loaded: LoadedModel, blocks: list[Block], checkpoint: list[TensorFile]) -> list[Norm]:
    """The norms that run on a few probe tokens, in the model's order.

    checkpoint   files in which the gains are looked up
    """
    stored = {name: file for file in checkpoint for name in file.entries}
    sites = sites_of_modules(blocks)
    return [
        norm
        for path, call in norm_calls(loaded).items()
        if (norm := _norm(path, call, sites.get(call.module, ()), loaded, blocks, stored)) is not None
    ]


def _norm(
    path: str,
    call: NormCall,
    sites: tuple[str, ...],
    loaded: LoadedModel,
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
    where = (path, sites, layer, bool(sites) or (layer is None and width == loaded.d_model))
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
    values = parameters[form.gain].float().cpu().numpy()
    tensor, dtype = _in_checkpoint(f"{path}.{form.gain}", values, stored)
    return Norm(
        *where,
        form.kind,
        PARAMETERIZATION[form.offset],
        None,
        values.size,
        values.shape,
        tensor,
        Gain(values, form.offset, dtype),
        float(parameters[form.bias].abs().max()) if form.bias else None,
    )


def _in_checkpoint(name: str, values: Array, stored: Mapping[str, TensorFile]) -> tuple[str | None, str | None]:
    """Name and dtype of the tensor called `name` in the checkpoint, less or more a prefix, that has these values."""
    for other, file in stored.items():
        alike = other == name or name.endswith(f".{other}") or other.endswith(f".{name}")
        if alike and file.entries[other].dtype in DTYPES and np.array_equal(stored_floats(file, other), values):
            return other, DTYPES[file.entries[other].dtype]
    return None, None
