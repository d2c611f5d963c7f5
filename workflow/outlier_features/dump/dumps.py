"""An activation dump: files of activations that some other program saved, read in row ranges where they lie."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.norms.gains_in_file import PREFIX
from outlier_features.scan.site_tensors import SiteTensors

CORPUS = "dump"  # what a dump was made from is not known; its runs bear this name
MAX_LAYERS = 65535  # layers that hit a location are counted in 16 bits
_CHUNK_VALUES = 1 << 29  # of all sites together: 2 GiB of float32 in one job


@dataclass(frozen=True)
class DumpRange:
    """Sequences of a dump that lie in one of its files: `start` to before `stop` of all, from `row` on in the file."""

    file: str
    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class Dump:
    """Per site its tensors, one for each file; files are joined along N in their order."""

    sites: dict[str, list[SiteTensors]]

    @classmethod
    def open(cls, paths: Sequence[str | Path], keys: Mapping[str, str]) -> "Dump":
        """Check that the tensors `keys` (by site) are there and fit: headers are read, no value is.

        Raises `InputError` on a damaged file, an unknown key, a wrong rank or dtype, and shapes that do not agree.
        """
        files = [TensorFile(path) for path in paths]
        sites = {site: [site_tensors(file, key) for file in files] for site, key in keys.items()}
        for tensors in sites.values():
            require_alike(tensors)
        reference = next(iter(sites.values()))
        for tensors in sites.values():
            for one, expected in zip(tensors, reference, strict=True):
                if one.shape[:2] != expected.shape[:2]:
                    raise InputError(
                        f"{one.file.path}: {one.site} has (N, T) = {one.shape[:2]}, expected {expected.shape[:2]} "
                        f"as {expected.site} has"
                    )
        return cls(sites)

    @property
    def files(self) -> list[Path]:
        return [one.file.path for one in next(iter(self.sites.values()))]

    @property
    def rows(self) -> list[int]:
        """Sequences in each file."""
        return [one.shape[0] for one in next(iter(self.sites.values()))]

    @property
    def has_gains(self) -> bool:
        """Whether the first file holds gains of norms under the keys that are looked at by themselves."""
        first = next(iter(self.sites.values()))[0].file
        return any(name.startswith(PREFIX) for name in first.entries)

    @property
    def tokens(self) -> int:
        return next(iter(self.sites.values()))[0].shape[1]

    @property
    def blocks(self) -> int:
        """One more than the largest index of a layer."""
        return 1 + max(tensors[0].layers[-1] for tensors in self.sites.values())

    @property
    def dtype(self) -> str:
        return "+".join(sorted({DTYPES[tensors[0].dtype] for tensors in self.sites.values()}))

    def dims(self, site: str) -> int:
        return self.sites[site][0].shape[2]

    def ranges(self) -> list[DumpRange]:
        """The sequences of each file."""
        stops = list(accumulate(self.rows))
        return [
            DumpRange(str(file), 0, stop - rows, stop)
            for file, rows, stop in zip(self.files, self.rows, stops, strict=True)
        ]

    def chunks(self) -> list[DumpRange]:
        """The sequences of each file in ranges for a job each."""
        values = sum(len(one[0].layers) * prod(one[0].shape[1:]) for one in self.sites.values())
        step = max(1, _CHUNK_VALUES // values)
        return [
            DumpRange(whole.file, start - whole.start, start, min(start + step, whole.stop))
            for whole in self.ranges()
            for start in range(whole.start, whole.stop, step)
        ]


def site_tensors(file: TensorFile, key: str) -> SiteTensors:
    """The activations named `key`: one tensor (N, L, T, H), or `{key}.{layer}` of shape (N, T, H)."""
    site = SiteTensors.stacked(file, key) if key in file.entries else SiteTensors.per_layer(file, key)
    if site is None:
        raise InputError(f"{file.path}: has no tensor {key!r}{_nearest(file, key)}")
    if not site.layers or not all(site.shape):
        raise InputError(f"{file.path}: {key} of shape {list(shape_of([site]))} is empty, expected at least one value")
    if site.layers[-1] >= MAX_LAYERS:
        raise InputError(f"{file.path}: {key} has a layer {site.layers[-1]}, expected layers up to {MAX_LAYERS - 1}")
    return site


def _nearest(file: TensorFile, key: str) -> str:
    stems = (name.rpartition(".") for name in file.entries)
    names = {stem if stem and layer.isdecimal() else stem + dot + layer for stem, dot, layer in stems}
    nearest = difflib.get_close_matches(key, sorted(names), n=5, cutoff=0.5) or sorted(names)[:5]
    return f", nearest: {', '.join(nearest)}" if nearest else ""


def shape_of(sites: Sequence[SiteTensors]) -> tuple[int, int, int, int]:
    """(N, L, T, H) of tensors that are joined along N."""
    _, t, h = sites[0].shape
    return sum(site.shape[0] for site in sites), len(sites[0].layers), t, h


def require_alike(sites: Sequence[SiteTensors]) -> None:
    """Raise `InputError` where tensors cannot be joined along N."""
    first = sites[0]
    for site in sites[1:]:
        if (site.dtype, site.layers, site.shape[1:]) != (first.dtype, first.layers, first.shape[1:]):
            raise InputError(
                f"{site.file.path}: {site.site} is {site.dtype} {list(shape_of([site]))}, expected {first.dtype} "
                f"{list(shape_of([first]))} but for N, and the same layers, as in {first.file.path}"
            )


def dump_files(source: Mapping[str, Any]) -> list[str]:
    """The files of a catalog entry, whose key `dump` is one or a list of them."""
    return [source["dump"]] if isinstance(source["dump"], str) else list(source["dump"])
