"""SmoothQuant's activation scales: the largest abs(x) of each input channel of a linear layer, by its module's name.

The dict that smoothquant/calibration.py, `get_act_scales`, of https://github.com/mit-han-lab/smoothquant returns and
examples/generate_act_scales.py saves with `torch.save`: float32 (width,) by name. Of experts in one tensor it is
(experts, width), under that tensor's name, with zeros where an expert read nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.files.artifacts import replacing
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.quantize.measured_layers import MeasuredLayers


def write_scales(path: Path, measured: MeasuredLayers, provenance: Mapping[str, Any]) -> None:
    scales = {layer.name: np.nan_to_num(measured.statistic(layer, "absmax")) for layer in measured.layers}
    write_tensors(path, scales, provenance)


def write_pt(scales: TensorFile, output: Path) -> int:
    """The same as PyTorch's pickle, which SmoothQuant's own scripts load; returns how many there are."""
    import torch

    found = {name: torch.from_numpy(scales.array(name).copy()) for name in scales.entries}
    with replacing(output) as temporary:
        torch.save(found, temporary)
    return len(found)
