"""Where a model runs and where its weights lie: every decision about devices is made here.

one         the whole model on one device
spread      its blocks over the GPUs of the node, in order, by accelerate's device map
layerwise   the weights stay on disk, and are read block by block
"""

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from accelerate import infer_auto_device_map
from torch import nn

from outlier_features.errors import ConfigError
from outlier_features.model.loading import Wanted
from outlier_features.model.memory import APART, SHARE

Kind = Literal["one", "spread", "layerwise"]

_KEPT_SHARE = 1 / 3  # of what is free, what layerwise keeps of blocks that have run
_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What a process may use: bytes free on each GPU by index, and of the CPU's memory; the limit of its address space.

    cpu            within the limit of the control group, too
    address_space  that the process may still map (`ulimit -v`); None without a limit
    """

    gpus: Mapping[int, int]
    cpu: int
    address_space: int | None = None

    @classmethod
    def here(cls) -> "Machine":
        gpus = {n: torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())}
        return cls(gpus, _free_memory(), _free_address_space())


@dataclass(frozen=True)
class Placement:
    """kind and why it is that; the device that token ids go to, and where a model is loaded that is on one device.

    keep   bytes of blocks that `layerwise` keeps in memory once they have run
    """

    kind: Kind
    why: str
    device: torch.device
    keep: int = 0

    def __str__(self) -> str:
        return f"{self.kind} on {self.device}: {self.why}"


def placed(wanted: Wanted, device: str, bytes_of_weights: int, bytes_of_files: int, machine: Machine) -> Placement:
    """Where a model is placed.

    device             auto, cpu, cuda or mps; `auto` is a GPU if torch sees one
    bytes_of_weights   in the dtype of the run
    bytes_of_files     of its checkpoint: a whole load maps them while it reads

    Raises `ConfigError` where `spread` is wanted and there are no two GPUs, or the device is not there.
    """
    place = device_of(device)
    free = _room(place, bytes_of_files, machine)
    size = f"weights of {_gib(bytes_of_weights)}"
    if wanted == "one":
        return Placement("one", "as `placement` says", place)
    if wanted == "spread":
        if place.type != "cuda" or len(machine.gpus) < 2:
            raise ConfigError(
                f"extract.placement: found 'spread' with {_gpus(machine)} and device {place.type!r}, expected two GPUs "
                "or more; `auto` takes what the machine has"
            )
        return Placement("spread", f"as `placement` says, over {len(machine.gpus)} GPUs", place)
    keep = max(0, int(_KEPT_SHARE * free))
    if wanted == "layerwise":
        return Placement("layerwise", "as `placement` says", place, keep)
    if bytes_of_weights <= free:
        return Placement("one", f"{size} fit the {_gib(free)} that {_named(place)} has for them", place)
    if place.type == "cuda" and len(machine.gpus) > 1:
        together = sum(int(SHARE * one) for one in machine.gpus.values())
        if bytes_of_weights <= together:
            why = f"{size} fit the {_gib(together)} that {len(machine.gpus)} GPUs have for them, and no single one"
            return Placement("spread", why, place)
    if place.type != "cpu":
        cpu = torch.device("cpu")
        room = _room(cpu, bytes_of_files, machine)
        if device == "auto" and bytes_of_weights <= room:
            return Placement("one", f"{size} fit no GPU, but the {_gib(room)} that the CPU has for them", cpu)
    why = f"{size} are more than the {_gib(max(0, free))} that {_named(place)} has for them"
    return Placement("layerwise", why, place, keep)


def device_of(device: str) -> torch.device:
    """The device that `extract.device` means; raises `ConfigError` where torch sees none such."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present[device]:
        raise ConfigError(f"device: found {device!r}, but torch sees no such device here, expected 'auto' or 'cpu'")
    return torch.device(device)


def device_map(model: nn.Module, gpus: Mapping[int, int], whole: Sequence[str]) -> dict[str, int]:
    """By module of a model on the meta device, the GPU that it goes to, as evenly as blocks allow.

    gpus    bytes free on each
    whole   names of the classes whose modules are not divided

    Raises `ConfigError` where the GPUs do not hold the weights.
    """
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    blocks = [
        sum(one.numel() * one.element_size() for one in module.parameters())
        for module in model.modules()
        if type(module).__name__ in whole
    ]
    even = size // len(gpus) + max(blocks, default=0)
    limits: dict[int | str, int] = {n: min(int(SHARE * free), even) for n, free in gpus.items()}
    last = max(gpus)
    limits[last] = int(SHARE * gpus[last])
    limits["cpu"] = 0
    found = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=list(whole))
    if elsewhere := sorted(name for name, place in found.items() if place not in gpus):
        raise ConfigError(
            f"extract.placement: found 'spread', but {len(gpus)} GPUs with {_gib(sum(gpus.values()))} free do not hold "
            f"weights of {_gib(size)} ({elsewhere[0]} is left over), expected more GPUs, or `layerwise`"
        )
    return {name: int(place) for name, place in found.items()}


def beside(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of `other`: in a model that is spread, blocks have devices of their own."""
    return tensor if tensor.device == other.device else tensor.to(other.device)


def bytes_in(dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What weights of these shapes take in this dtype."""
    return sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize


def _room(place: torch.device, bytes_of_files: int, machine: Machine) -> int:
    """Bytes that weights may take on a device."""
    if place.type == "cuda":
        return int(SHARE * machine.gpus.get(place.index or 0, 0))
    room = int(SHARE * machine.cpu) - APART
    if machine.address_space is not None:
        room = min(room, int(SHARE * machine.address_space) - bytes_of_files)
    return room


def _free_memory() -> int:
    free = psutil.virtual_memory().available
    groups = [Path("/sys/fs/cgroup", group) for group in _control_groups()]
    for group in groups:
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            free = min(free, limit - used + (_number_in(group / "memory.stat", "inactive_file") or 0))
    return max(0, free)


def _control_groups() -> list[str]:
    """The control group of this process, and those around it, below /sys/fs/cgroup (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((line.split("::", 1)[1] for line in lines if line.startswith("0::")), "/").strip("/")
    parts = path.split("/") if path else []
    return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or `max`
        return None


def _number_in(path: Path, key: str) -> int | None:
    try:
        return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == key), None)
    except (OSError, ValueError, IndexError):
        return None


def _free_address_space() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit - psutil.Process().memory_info().vms)


def _named(place: torch.device) -> str:
    return {"cpu": "the CPU", "cuda": "a GPU", "mps": "the GPU"}[place.type]


def _gpus(machine: Machine) -> str:
    return {0: "no GPU", 1: "one GPU"}.get(len(machine.gpus), f"{len(machine.gpus)} GPUs")


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
