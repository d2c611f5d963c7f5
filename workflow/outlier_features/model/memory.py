"""Memory that a placement needs, without torch: the plan says it, and the rules ask a cluster for it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from outlier_features.errors import InputError
from outlier_features.files.model_source import evicted_files
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.loading import Wanted
from outlier_features.model.neuron_count import block_of, neurons_of_blocks

# Of what is free, what weights may take: the rest is for a batch, its activations and the libraries.
SHARE = 0.8
APART = 2 * 10**9  # of a CPU's memory, what a job needs beside its weights
GPU = 80 * 10**9  # bytes of one, where the machine that has it is not at hand
WIDTH_NAMES = ("hidden_size", "d_model", "n_embd")  # of the stream's width in a config
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Time for reading weights is asked for at the speed of a slow file system; a model that is read block by block is read
# by its probes, its proofs and each pass, 12 to 84 times in a default run of SmolLM2-135M (docs/costs.md).
_BYTES_A_MINUTE = 60 * 200 * 10**6
_READS = {"layerwise": 30}
# A quantized weight is packed into integers; of the bits of a value, the fewest that are read.
_PACKED = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"}
_FEWEST_BITS = 4
Marks = tuple[tuple[int, int], ...]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Weights:
    """Bytes of weights: all, of the largest block, and of what is in no block (embeddings, head, last norm)."""

    total: int
    largest_block: int
    outside: int

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "Weights":
        """Of bytes by name; what has a number in its name is in the block of the first one."""
        blocks: dict[str, int] = {}
        for name, size in sizes.items():
            if block := block_of(name):
                blocks[block] = blocks.get(block, 0) + size
        total = sum(sizes.values())
        return cls(total, max(blocks.values(), default=0), total - sum(blocks.values()))


@dataclass(frozen=True)
class Need:
    """What a job asks for: bytes of a CPU's memory; of GPUs, if it runs on some, how many and bytes on each."""

    memory: int
    gpus: int
    gpu_memory: int


def need_of(placement: Wanted, weights: Weights, gpu: int = GPU) -> Need:
    """What a placement needs, so much that `auto` takes it where that is free; of `auto`, what it asks a cluster for.

    gpu   bytes of each GPU
    """
    count = max(1, math.ceil(weights.total / (SHARE * gpu)))
    if placement == "auto":  # one device where it holds the weights
        placement = "one" if count == 1 else "spread"
    if placement == "spread":
        # A block is not divided, so that up to one's size of each GPU stays free.
        room = max(SHARE * gpu - weights.largest_block, SHARE * gpu / 2)
        count = max(2, math.ceil(weights.total / room))
        share = math.ceil(weights.total / count) + weights.largest_block
        return Need(_with_room(weights.largest_block), count, math.ceil(share / SHARE))
    held = weights.total if placement == "one" else weights.outside + 2 * weights.largest_block
    return Need(_with_room(held), 1, math.ceil(held / SHARE))


def minutes_to_read(placement: Wanted, weights: Weights) -> int:
    """Minutes that a job may spend on reading weights, once or, layer by layer, some thirty times."""
    return math.ceil(_READS.get(placement, 1) * weights.total / _BYTES_A_MINUTE)


def _with_room(held: int) -> int:
    return math.ceil((held + APART) / SHARE)


def stored_weights(source_json: Path, dtype: str) -> Weights | None:
    """Of a fetched model in `dtype`, from the headers of its files; None where it is not there, or is damaged.

    Files are read again once `source.json`, which each fetch writes, or the model's config has changed.
    """
    return _read(partial(_stored, dtype), source_json)


def stored_neurons(source_json: Path) -> list[int] | None:
    """Of a fetched model, the neurons of each block that has any, at most; None where the model is not there, is
    damaged, or holds its weights packed."""
    return _read(_stored_neurons, source_json)


def _read(read: Callable[..., Found], source_json: Path) -> Found | None:
    try:
        location = _location(source_json, _mark(source_json))
        return read(source_json, location, (_mark(source_json), _mark(location / "config.json")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        return None  # not there yet, or damaged, as the job will say


def _mark(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@cache
def _location(source_json: Path, mark: tuple[int, int]) -> Path:
    return (source_json.parent / json.loads(source_json.read_text(encoding="utf-8"))["location"]).resolve()


@cache
def _stored(dtype: str, source_json: Path, location: Path, marks: Marks) -> Weights:
    quantized = "quantization_config" in (location / "config.json").read_text(encoding="utf-8")
    sizes: dict[str, int] = {}
    for name, (kind, shape, nbytes) in _tensors(source_json, location).items():
        packed = quantized and kind in _PACKED
        values = 8 * nbytes // _FEWEST_BITS if packed else math.prod(shape)
        sizes[name] = values * ITEM_SIZES[dtype]
    if not sizes:
        raise LookupError(f"{location} has no weights")
    return Weights.of(sizes)


@cache
def _stored_neurons(source_json: Path, location: Path, marks: Marks) -> list[int]:
    config = json.loads((location / "config.json").read_text(encoding="utf-8"))
    told = [part[name] for part in (config, config.get("text_config") or {}) for name in WIDTH_NAMES if name in part]
    shapes = {name: shape for name, (_, shape, _) in _tensors(source_json, location).items()}
    found = neurons_of_blocks(shapes, int(told[0]))
    if not found:
        raise LookupError(f"{location} has no matrices of MLPs")
    return found


def _tensors(source_json: Path, location: Path) -> dict[str, tuple[str, Sequence[int], int]]:
    """By name type, shape and bytes of the tensors in a model's files, or in those that were evicted."""
    found: dict[str, tuple[str, Sequence[int], int]] = {}
    for noted in evicted_files(source_json).values():
        found |= {name: tuple(told) for name, told in noted["tensors"].items()}
    for path in sorted(location.glob("*.safetensors")):
        found |= {name: (one.dtype, one.shape, one.nbytes) for name, one in TensorFile(path).entries.items()}
    return found
