"""The norms of a model and their gains: found by what they compute, not by their names.

A module is a norm if its output is its normalised input, times a gain, plus a bias. Which of its parameters is the
gain, and whether it multiplies by w or by 1 + w (Gemma), is decided on a probe that only one of these explains.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.model.loading import Part
from outlier_features.model.model_files import model_files
from outlier_features.model.models import LoadedModel, load_model, probe_ids
from outlier_features.model.sites import SITES, Block, find_sites
from outlier_features.model.tensors import first_tensor
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.norms.describe_gains import PARAMETERIZATION, Array, Gain
from outlier_features.norms.gains_in_file import stored_floats
from outlier_features.norms.norm_tables import Norm

Tensor = torch.Tensor

# Relative to a value's own terms. The probe's mean square is far above any epsilon, so that it does not show.
TOLERANCE = 1e-5
_PROBE_SCALE, _PROBE_OFFSET = 64.0, 16.0


def norms_of(location: Path, trust_remote_code: bool, part: Part | None = None) -> list[Norm]:
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
    sites = _sites_of_modules(blocks)
    return [
        norm
        for path, call in _calls(loaded).items()
        if (norm := _norm(path, call, sites.get(call.module, ()), loaded, blocks, stored)) is not None
    ]


@dataclass(frozen=True)
class _NormCall:
    """A call of a module that may be a norm: `read`, among its arguments, has the shape of what it returned."""

    module: nn.Module
    read: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters(recurse=False))

    def again(self, value: Tensor) -> Tensor:
        """The output, float64, for `value` in place of what was read, computed in float32."""

        def put(argument: Any) -> Any:
            if argument is self.read:
                return value
            return argument.float() if torch.is_tensor(argument) and argument.is_floating_point() else argument

        module = copy.deepcopy(self.module).float()
        output = module(*map(put, self.args), **{key: put(argument) for key, argument in self.kwargs.items()})
        return _exact(first_tensor(output))


def _calls(loaded: LoadedModel) -> dict[str, _NormCall]:
    calls: dict[str, _NormCall] = {}

    def watch(path: str, module: nn.Module) -> Any:
        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            read, returned = first_tensor((args, kwargs)), first_tensor(output)
            if read is not None and returned is not None and read.shape == returned.shape and read.numel():
                calls[path] = _NormCall(module, read, args, kwargs)

        return module.register_forward_hook(after, with_kwargs=True)

    handles = [watch(path, module) for path, module in loaded.model.named_modules() if _may_be_norm(module)]
    try:
        loaded.base(probe_ids(loaded.model))
    finally:
        for handle in handles:
            handle.remove()
    return {path: calls[path] for path, _ in loaded.model.named_modules() if path in calls}


def _may_be_norm(module: nn.Module) -> bool:
    own, every = (len(list(module.parameters(recurse=recurse))) for recurse in (False, True))
    return own == every <= 2 and (own > 0 or not any(module.children()))


def _norm(
    path: str,
    call: _NormCall,
    sites: tuple[str, ...],
    loaded: LoadedModel,
    blocks: list[Block],
    stored: Mapping[str, TensorFile],
) -> Norm | None:
    parameters = call.parameters
    if not all(call.read.shape[-value.ndim :] == value.shape for value in parameters.values()):
        return None
    for name, value in parameters.items():
        if bad := int((~value.isfinite()).sum()):
            raise InputError(f"{path}: its {name} has {bad} values that are NaN or infinite, expected finite ones")
    if not parameters and (len(call.args) + len(call.kwargs) != 1):
        return None
    probe = _probe(call.read)
    output = call.again(probe)
    forms = list(_forms(probe, output, parameters))
    if not forms and not (parameters and _ignores_scale(call, probe, output)):
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


@dataclass(frozen=True)
class _Form:
    """What a norm computes: its kind, the names of its gain and bias, and what is added to the gain."""

    kind: str
    gain: str
    bias: str
    offset: int


def _forms(probe: Tensor, output: Tensor, parameters: Mapping[str, Tensor]) -> Iterator[_Form]:
    """Every form that explains `output`."""
    exact = {name: _exact(value) for name, value in parameters.items()} | {"": torch.zeros(()).double()}
    roles = [(*order, "", "")[:2] for order in permutations(parameters)]
    for kind, normed in _normalised(_exact(probe)).items():
        for gain, bias in roles:
            for offset in PARAMETERIZATION if gain else (1,):
                expected = normed * (offset + exact[gain]) + exact[bias]
                size = (offset + exact[gain].abs()) * (1 + normed.abs()) + exact[bias].abs()
                if bool(((output - expected).abs() <= TOLERANCE * size).all()):
                    yield _Form(kind, gain, bias, offset)


def _normalised(x: Tensor) -> dict[str, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    return {kind: y * y.square().mean(-1, keepdim=True).rsqrt() for kind, y in (("rms", x), ("layer", centred))}


def _ignores_scale(call: _NormCall, probe: Tensor, output: Tensor) -> bool:
    """Whether the output stays the same for an input of another scale, and not for another input."""
    allowed = 10 * TOLERANCE * (output.abs() + output.square().mean().sqrt())
    scaled, other = (call.again(value) for value in (4 * probe, probe.flip(-1)))
    return bool(((scaled - output).abs() <= allowed).all()) and bool(((other - output).abs() > allowed).any())


def _probe(read: Tensor) -> Tensor:
    """Random values whose mean is not 0, float32, of the shape and on the device of `read`."""
    values = torch.randn(read.shape, generator=torch.Generator().manual_seed(0))
    return (values * _PROBE_SCALE + _PROBE_OFFSET).to(read.device)


def _sites_of_modules(blocks: list[Block]) -> dict[nn.Module, tuple[str, ...]]:
    """The sites that are the output of each module; the norm that closes a post-LN block makes its `resid_post`."""
    made: dict[nn.Module, set[str]] = {}
    for block in blocks:
        outputs = [(site.module, name) for name, site in block.sites.items() if site.side == "out"]
        for module, name in [*outputs, *([(block.closing_norm, "resid_post")] if block.closing_norm else [])]:
            made.setdefault(module, set()).add(name)
    return {module: tuple(sorted(names, key=SITES.index)) for module, names in made.items()}


def _in_checkpoint(name: str, values: Array, stored: Mapping[str, TensorFile]) -> tuple[str | None, str | None]:
    """Name and dtype of the tensor called `name` in the checkpoint, less or more a prefix, that has these values."""
    for other, file in stored.items():
        alike = other == name or name.endswith(f".{other}") or other.endswith(f".{name}")
        if alike and file.entries[other].dtype in DTYPES and np.array_equal(stored_floats(file, other), values):
            return other, DTYPES[file.entries[other].dtype]
    return None, None


def _exact(value: Tensor) -> Tensor:
    return value.detach().cpu().double()
