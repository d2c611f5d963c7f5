"""AWQ: 4-bit integers with a float16 scale and a zero point for each group of inputs, in the order of its GEMM kernel.

The layout is that of AutoAWQ (https://github.com/casper-hansen/AutoAWQ, awq/utils/packing_utils.py): `qweight` (in,
out / 8) and `qzeros` (groups, out / 8) pack eight outputs in a word, which has them as 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.quantized.packing import unpack
from outlier_features.quantized.weight import Stored, Tensor, Weight, bands, parts_of, require_setting, require_shape

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word each output is


def awq(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights of a checkpoint, by name.

    Raises `InputError` where one is incomplete or laid out otherwise.
    """
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    require_setting(settings, "version", version, ("gemm",))
    require_setting(settings, "bits", settings.get("bits", settings.get("w_bit", 4)), (4,))
    require_setting(settings, "zero_point", settings.get("zero_point", True), (True,))
    weights = {}
    for name in stored:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix("qweight")
        parts = parts_of(stored, module, ("qweight", "qzeros", "scales"))
        inputs, words = stored[name].shape
        groups = stored[parts["scales"]].shape[0]
        if not groups or inputs % groups:
            raise InputError(f"{name} has {inputs} inputs in {groups} groups, expected groups of one size")
        require_shape(stored, parts["scales"], (groups, words * 8))
        require_shape(stored, parts["qzeros"], (groups, words))
        group = "row" if groups == 1 else str(inputs // groups)
        weights[module + "weight"] = Weight((words * 8, inputs), 4, group, parts, _decode)
    return weights


def _decode(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    inputs, words = parts["qweight"].shape
    out = torch.empty((words * 8, inputs), dtype=dtype)
    for band in bands(words, inputs * 8):
        out[band.start * 8 : band.stop * 8] = _band(parts, band)
    return out


def _band(parts: Mapping[str, Tensor], band: slice) -> Tensor:
    """The outputs of some words, float32."""
    values, zeros = (_outputs(parts[name][:, band]).float() for name in ("qweight", "qzeros"))
    scales = parts["scales"][:, band.start * 8 : band.stop * 8].float().T
    grouped = values.view(len(values), zeros.shape[1], -1)
    return grouped.sub_(zeros[..., None]).mul_(scales[..., None]).flatten(1)


def _outputs(words: Tensor) -> Tensor:
    """Packed (n, out / 8) as (out, n)."""
    values = unpack(words.T, 4)
    return values.view(-1, 8, values.shape[1])[:, _PLACES].reshape(values.shape)
