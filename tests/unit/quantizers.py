"""Weights in the formats of quantized checkpoints, written from their descriptions with numpy and Python's integers.

Each quantizer takes a weight's name and values, and gives the tensors that a file has of it, and the values that these
stand for: computed from the integers before they were packed.
"""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Array = np.ndarray[Any, Any]
Stored = dict[str, torch.Tensor]
Quantizer = Callable[[str, Array], tuple[Stored, Array]]
RANDOM = np.random.default_rng(7)


def e4m3() -> Array:
    """The values of the 256 codes of float8_e4m3fn: sign, 4 bits of exponent with a bias of 7, 3 bits of mantissa."""
    values = []
    for sign, exponent, mantissa in product((1, -1), range(16), range(8)):
        value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        values.append(np.nan if (exponent, mantissa) == (15, 7) else sign * value)
    return np.array(values, np.float32)


E2M1 = np.array([s * v for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], np.float32)


def nearest(values: Array, table: Array) -> Array:
    return np.nanargmin(np.abs(values[..., None] - table), axis=-1).astype(np.uint8)


def words(values: Array, bits: int, axis: int) -> torch.Tensor:
    """Non-negative integers along an axis as int32: the stream of their bits, lowest first, cut every 32 bits."""

    def one(line: Array) -> Array:
        stream = sum(int(value) << (bits * place) for place, value in enumerate(line))
        return np.frombuffer(stream.to_bytes(-(-len(line) * bits // 32) * 4, "little"), np.int32)

    return torch.from_numpy(np.apply_along_axis(one, axis, values).copy())


def fp8_blocks(height: int, width: int, scale_name: str = "_scale_inv", powers: bool = False) -> Quantizer:
    """A scale for each block of so many rows and columns, where the last may be smaller."""

    def quantize(name: str, weight: Array) -> tuple[Stored, Array]:
        down, across = (range(0, size, step) for size, step in zip(weight.shape, (height, width), strict=True))
        scales = np.zeros((len(down), len(across)), np.float32)
        codes, decoded = np.zeros(weight.shape, np.uint8), np.zeros_like(weight)
        for (i, row), (j, column) in product(enumerate(down), enumerate(across)):
            block = np.s_[row : row + height, column : column + width]
            scale = np.float32(np.abs(weight[block]).max() / 448)
            scale = np.float32(2.0 ** np.ceil(np.log2(scale))) if powers else scale
            codes[block] = nearest(weight[block] / scale, e4m3())
            decoded[block], scales[i, j] = e4m3()[codes[block]] * scale, scale
        stored = torch.from_numpy(scales)
        if powers:
            stored = torch.from_numpy((np.log2(scales) + 127).astype(np.uint8)).view(torch.float8_e8m0fnu)
        place = name + scale_name if scale_name.startswith("_") else name.removesuffix(".weight") + scale_name
        return {name: torch.from_numpy(codes).view(torch.float8_e4m3fn), place: stored}, decoded

    return quantize


def fp8_shared(rows: bool, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Quantizer:
    """A scale for each row or for all of the weight, written in a tensor of `shape`; and one for activations."""

    def quantize(name: str, weight: Array) -> tuple[Stored, Array]:
        scales = np.abs(weight).max(axis=1 if rows else (0, 1), keepdims=True) / 448
        scales = torch.from_numpy(scales).to(dtype)
        codes = nearest(weight / scales.float().numpy(), e4m3())
        stored = {
            name: torch.from_numpy(codes).view(torch.float8_e4m3fn),
            f"{name}_scale": scales.reshape(shape),
            f"{name.removesuffix('weight')}input_scale": torch.ones(1),
        }
        return stored, e4m3()[codes] * scales.float().numpy()

    return quantize


def fp4_pairs(name: str, weight: Array) -> tuple[Stored, Array]:
    """E2M1 in int8, two in a byte, and a power of two for each 32, under `scale`."""
    groups = weight.reshape(len(weight), -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(axis=-1))) - 2
    codes = nearest(groups / 2.0 ** exponents[..., None], E2M1)
    decoded = (E2M1[codes] * 2.0 ** exponents[..., None]).reshape(weight.shape).astype(np.float32)
    codes = codes.reshape(weight.shape)
    scales = torch.from_numpy((exponents + 127).astype(np.uint8)).view(torch.float8_e8m0fnu)
    packed = torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).view(np.int8))
    return {name: packed, name.removesuffix(".weight") + ".scale": scales}, decoded


def mxfp4_experts(name: str, weight: Array) -> tuple[Stored, Array]:
    """(experts, in, out) as GPT-OSS has it: blocks along the input, outputs before inputs."""
    turned = weight.transpose(0, 2, 1)
    groups = turned.reshape(*turned.shape[:2], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(axis=-1))) - 2
    codes = nearest(groups / 2.0 ** exponents[..., None], E2M1)
    decoded = (E2M1[codes] * 2.0 ** exponents[..., None]).reshape(turned.shape).transpose(0, 2, 1)
    blocks = torch.from_numpy(codes[..., ::2] | codes[..., 1::2] << 4)
    stored = {f"{name}_blocks": blocks, f"{name}_scales": torch.from_numpy((exponents + 127).astype(np.uint8))}
    return stored, np.ascontiguousarray(decoded, np.float32)


def _grouped(weight: Array, bits: int, groups: Array) -> tuple[Array, Array, Array]:
    """Codes (out, in), and scales, which float16 holds, and zero points from 1 on (out, groups)."""
    count, top = groups.max() + 1, 2**bits - 1
    scales, zeros = np.zeros((len(weight), count), np.float32), np.zeros((len(weight), count), np.int64)
    for group in range(count):
        part = weight[:, groups == group]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        scales[:, group] = ((high - low) / top).astype(np.float16)
        zeros[:, group] = np.clip(np.round(-low / scales[:, group]), 1, top)
    codes = np.clip(np.round(weight / scales[:, groups]) + zeros[:, groups], 0, top).astype(np.int64)
    return codes, scales, zeros


def gptq(bits: int, group: int, version: int = 1, act_order: bool = False, with_groups: bool = True) -> Quantizer:
    def quantize(name: str, weight: Array) -> tuple[Stored, Array]:
        inputs = weight.shape[1]
        groups = np.arange(inputs) // (inputs if group == -1 else group)
        groups = RANDOM.permutation(groups) if act_order else groups
        codes, scales, zeros = _grouped(weight, bits, groups)
        module = name.removesuffix("weight")
        stored = {
            f"{module}qweight": words(codes.T, bits, axis=0),
            f"{module}qzeros": words(zeros.T - (1 if version == 1 else 0), bits, axis=1),
            f"{module}scales": torch.from_numpy(scales.T.astype(np.float16)),
        }
        if with_groups:
            stored[f"{module}g_idx"] = torch.from_numpy(groups.astype(np.int32))
        return stored, (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups]

    return quantize


def awq(group: int) -> Quantizer:
    """Word k of a row holds the outputs 8 k + 0, 2, 4, 6, 1, 3, 5, 7, the first in the lowest bits."""

    def quantize(name: str, weight: Array) -> tuple[Stored, Array]:
        groups = np.arange(weight.shape[1]) // group
        codes, scales, zeros = _grouped(weight, 4, groups)

        def interleaved(values: Array) -> torch.Tensor:
            outputs = np.arange(len(values)).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()
            return words(values[outputs].T, 4, axis=1)

        module = name.removesuffix("weight")
        stored = {
            f"{module}qweight": interleaved(codes),
            f"{module}qzeros": interleaved(zeros),
            f"{module}scales": torch.from_numpy(scales.T.astype(np.float16)),
        }
        return stored, (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups]

    return quantize


def bnb_8bit(name: str, weight: Array) -> tuple[Stored, Array]:
    largest = np.abs(weight).max(axis=1)
    codes = np.round(weight / largest[:, None] * 127).astype(np.int8)
    module = name.removesuffix("weight")
    stored = {
        name: torch.from_numpy(codes),
        f"{module}SCB": torch.from_numpy(largest),
        f"{module}weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return stored, codes * largest[:, None] / np.float32(127)


def bnb_4bit(kind: str, block: int, nested: int | None = None) -> Quantizer:
    """Codes of a table, the first in the high half of a byte; `nested`: absmax in 8 bits, in blocks of so many."""

    def quantize(name: str, weight: Array) -> tuple[Stored, Array]:
        table = np.sort(RANDOM.uniform(-1, 1, 16)).astype(np.float32)  # whatever the file says counts
        flat = np.concatenate([weight.ravel(), np.zeros(-weight.size % block, np.float32)]).reshape(-1, block)
        largest = np.abs(flat).max(axis=1)
        codes = nearest(flat / largest[:, None], table).ravel()[: weight.size]
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [*weight.shape]}
        stored = {f"{name}.quant_map": torch.from_numpy(table)}
        if nested:
            offset = float(largest.mean())
            eight = np.sort(RANDOM.uniform(-1, 1, 256)).astype(np.float32)
            outer = np.concatenate([largest - offset, np.zeros(-len(largest) % nested)]).reshape(-1, nested)
            scales = np.abs(outer).max(axis=1).astype(np.float32)
            inner = nearest(outer / scales[:, None], eight).ravel()[: len(largest)]
            largest = eight[inner] * scales.repeat(nested)[: len(largest)] + np.float32(offset)
            state |= {"nested_blocksize": nested, "nested_offset": offset, "nested_dtype": "float32"}
            stored |= {
                f"{name}.absmax": torch.from_numpy(inner),
                f"{name}.nested_absmax": torch.from_numpy(scales),
                f"{name}.nested_quant_map": torch.from_numpy(eight),
            }
        else:
            stored[f"{name}.absmax"] = torch.from_numpy(largest)
        text = torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)
        stored[f"{name}.quant_state.bitsandbytes__{kind}"] = text
        pairs = np.concatenate([codes, np.zeros(len(codes) % 2, np.uint8)])
        stored[name] = torch.from_numpy(pairs[::2] << 4 | pairs[1::2])[:, None]
        decoded = table[codes] * largest.repeat(block)[: weight.size]
        return stored, decoded.reshape(weight.shape).astype(np.float32)

    return quantize


def int8_rows(name: str, weight: Array) -> tuple[Stored, Array]:
    """compressed-tensors' integers with a zero point, stored as int8 as well."""
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    scales = ((high - low) / 255).astype(np.float32)
    zeros = np.round(-128 - low / scales)
    codes = np.clip(np.round(weight / scales) + zeros, -128, 127)
    stored = {
        name: torch.from_numpy(codes.astype(np.int8)),
        f"{name}_scale": torch.from_numpy(scales),
        f"{name}_zero_point": torch.from_numpy(zeros.astype(np.int8)),
    }
    return stored, ((codes - zeros) * scales).astype(np.float32)


def packed(bits: int, group: int, symmetric: bool) -> Quantizer:
    """compressed-tensors' `pack-quantized`: signed integers plus half their range, zero points down the outputs."""

    def quantize(name: str, weight: Array) -> tuple[Stored, Array]:
        groups = np.arange(weight.shape[1]) // group
        half, count = 2 ** (bits - 1), groups.max() + 1
        codes, scales, zeros = _grouped(weight, bits, groups)
        if symmetric:
            largest = np.abs(weight.reshape(len(weight), count, group)).max(axis=-1)
            scales, zeros = (largest / half).astype(np.float16).astype(np.float32), np.full_like(zeros, half)
            codes = np.clip(np.round(weight / scales[:, groups]) + half, 0, 2 * half - 1).astype(np.int64)
        stored = {
            f"{name}_packed": words(codes, bits, axis=1),
            f"{name}_scale": torch.from_numpy(scales.astype(np.float16)),
            f"{name}_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored[f"{name}_zero_point"] = words(zeros, bits, axis=0)
        return stored, (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups]

    return quantize


def is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")


def quantize(
    directory: Path, quantizer: Quantizer, settings: dict[str, Any], chosen: Callable[[str], bool] = is_projection
) -> dict[str, Array]:
    """Write the chosen weights of a saved model quantized; returns all weights by the name that they had, decoded."""
    path, decoded, stored = directory / "model.safetensors", {}, {}
    for name, weight in load_file(path).items():
        if chosen(name):
            tensors, decoded[name] = quantizer(name, weight.numpy())
            stored |= tensors
        else:
            stored[name], decoded[name] = weight, weight.numpy()
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return decoded
