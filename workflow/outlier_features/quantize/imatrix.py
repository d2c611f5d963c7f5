"""llama.cpp's importance matrix: sums of squares of what each weight's columns are multiplied by, and how many.

The GGUF form that tools/imatrix/imatrix.cpp (`save_imatrix`) of https://github.com/ggml-org/llama.cpp writes and
common/imatrix-loader.cpp reads: of a tensor `<name>.in_sum2` (width, matrices) and `<name>.counts` (1, matrices), in
GGUF's order of axes, float32; the quantizer divides one by the other. A chunk is a sequence.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFType, Keys

from outlier_features.files.foreign_files import write_gguf
from outlier_features.quantize.gguf_names import GgufNames
from outlier_features.quantize.measured_layers import MeasuredLayers


def write_imatrix(
    path: Path, measured: MeasuredLayers, names: GgufNames, tokens: int, provenance: Mapping[str, Any]
) -> None:
    """Write the matrix of all layers that have a name in GGUF.

    tokens   in a sequence
    """
    tensors = {}
    largest = 0
    for layer in measured.layers:
        counts = measured.statistic(layer, "count").astype(np.float64)[:, None]
        squares = measured.statistic(layer, "mean_square").reshape(len(counts), -1)
        largest = max(largest, int(counts.max()))
        for name in names.tensors.get(layer.name, ()):
            tensors[f"{name}.in_sum2"] = np.where(counts, squares * counts, 0)
            tensors[f"{name}.counts"] = counts
    values: dict[str, str | int | list[str]] = {
        Keys.General.TYPE: GGUFType.IMATRIX,
        Keys.IMatrix.DATASETS: [str(provenance["corpus"])],
        Keys.IMatrix.CHUNK_COUNT: largest // tokens,
        Keys.IMatrix.CHUNK_SIZE: tokens,
    }
    write_gguf(path, values, tensors, provenance)
