"""An activation dump: files of activations that some other program saved, read in row ranges where they lie."""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.layer_keys import (
    DUMPED_GAINS,
    LAYER,
    keys_of_stem,
    layer_keys,
    layer_names,
    layer_pattern,
    nearest_keys,
)
from outlier_features.files.numpy_archive import open_tensors
from outlier_features.files.tensorfile import Entry, TensorFile
from outlier_features.scan.site_tensors import FLOATS, SiteTensors

Array = np.ndarray[Any, Any]

CORPUS = "dump"  # what a dump was made from is not known; its runs bear this name
SOURCE = ("dump", "keys", "layout", "lengths", "layers")  # of a catalog entry: what says where activations lie
TOKEN_IDS = ("token_ids", "input_ids")  # keys under which vLLM and others save the tokens of a request
INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
MAX_LAYERS = 65535  # layers that hit a location are counted in 16 bits
_CHUNK_VALUES = 1 << 29  # of all sites together: 2 GiB of float32 in one job

Lengths = str | Sequence[int] | None


@dataclass(frozen=True)
class DumpRange:
    """Sequences `start` to before `stop` of the dump that the keys `SOURCE` of a catalog entry describe."""

    source: Mapping[str, Any]
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.source['dump']}, sequences {self.start} to {self.stop - 1}"


class DumpFile(NamedTuple):
    """A file, and the layer that `{layer}` in its path stood for."""

    file: TensorFile
    layer: int | None = None


@dataclass(frozen=True)
class Dump:
    """Per site its tensors, of the same sequences."""

    source: Mapping[str, Any]
    sites: dict[str, SiteTensors]

    @classmethod
    def open(cls, source: Mapping[str, Any]) -> "Dump":
        """Check that what the keys `SOURCE` of a catalog entry name is there and fits: headers are read, no value is.

        Raises `InputError` on a damaged file, an unknown key, a wrong rank or dtype, and shapes that do not agree.
        """
        source = dump_source(source)
        sites = find_sites(source)
        first = next(iter(sites.values()))
        for one in sites.values():
            if not np.array_equal(one.lengths, first.lengths):
                raise InputError(
                    f"{one.path}: {one.site} has (N, T) = {one.shape[:2]}, expected {first.shape[:2]} with the same "
                    f"tokens in each sequence, as {first.site} has"
                )
        return cls(source, sites)

    @property
    def files(self) -> list[str]:
        return self.files_of(0, len(self.lengths))

    def files_of(self, start: int, stop: int) -> list[str]:
        """The files that hold some sequences, in their order."""
        return list(dict.fromkeys(str(path) for one in self.sites.values() for path in one.paths(start, stop)))

    @property
    def has_gains(self) -> bool:
        """Whether the first file holds gains of norms under the keys that are looked at by themselves."""
        first = next(iter(self.sites.values())).files[0]
        return any(name.startswith(DUMPED_GAINS) for name in first.entries)

    @property
    def lengths(self) -> Array:
        """Tokens of each sequence, int64 (N,)."""
        return next(iter(self.sites.values())).lengths

    @property
    def tokens(self) -> int:
        """Those of the longest sequence."""
        return int(self.lengths.max())

    @property
    def blocks(self) -> int:
        """One more than the largest index of a layer."""
        return 1 + max(one.layers[-1] for one in self.sites.values())

    @property
    def layers_saved(self) -> int:
        """How many layers some site has: shares are of these, since of others nothing is known."""
        return len({layer for one in self.sites.values() for layer in one.layers})

    @property
    def dtype(self) -> str:
        return "+".join(sorted({FLOATS[one.stored] for one in self.sites.values()}))

    @property
    def whole(self) -> DumpRange:
        return DumpRange(self.source, 0, len(self.lengths))

    def chunks(self) -> list[DumpRange]:
        """The sequences in ranges for a job each."""
        sizes = self.lengths * sum(len(one.layers) * one.dims for one in self.sites.values())
        chunks, start, taken = [], 0, 0
        for n, size in enumerate(sizes.tolist()):
            if n > start and taken + size > _CHUNK_VALUES:
                chunks.append(DumpRange(self.source, start, n))
                start, taken = n, 0
            taken += size
        return [*chunks, DumpRange(self.source, start, len(sizes))]


def dump_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Of a catalog entry the keys that say where activations lie."""
    return {key: source[key] for key in SOURCE if source.get(key) is not None}


def dump_files(source: Mapping[str, Any]) -> list[str]:
    """The files of a catalog entry, whose key `dump` is one or a list of them, or of patterns."""
    return [path for path, _ in _paths(source["dump"])]


def _paths(dump: str | Path | Sequence[str | Path]) -> Iterator[tuple[str, int | None]]:
    """Each path, with the number that `{layer}` stands for; a pattern's in the order of the numbers in their names."""
    for path in [dump] if isinstance(dump, str | Path) else dump:
        text = str(path)
        if Path(text).exists() or not any(sign in text for sign in ("*", "?", LAYER)):
            yield text, None
            continue
        wanted = layer_pattern(text, wildcards="*?")
        anything = "".join(one if one in "*?" else glob.escape(one) for one in text.replace(LAYER, "*"))
        found = {one: match for one in glob.glob(anything) if (match := wanted.fullmatch(one))}
        if not found:
            yield text, None  # which is then said to be no file
        for one in sorted(found, key=_by_numbers):
            yield one, int(found[one][1]) if LAYER in text else None


def _by_numbers(text: str) -> list[Any]:
    parts = re.split("([0-9]+)", text)
    return [(int(part), part) if index % 2 else part for index, part in enumerate(parts)]


def find_sites(source: Mapping[str, Any]) -> dict[str, SiteTensors]:
    """The activations of each of the `keys` of a catalog entry. Raises `InputError`, also on a file without any."""
    files = [DumpFile(open_tensors(path), layer) for path, layer in _paths(source["dump"])]
    how = {key: source.get(key) for key in ("layout", "lengths", "layers")}
    sites = {site: find_site(files, key, **how) for site, key in source["keys"].items()}
    used = {file.path for one in sites.values() for file in one.files}
    for file, _ in files:
        if file.path not in used:
            key = next(iter(source["keys"].values()))
            raise InputError(f"{file.path}: has no tensor {key!r}{nearest_keys(file.entries, key)}")
    return sites


def find_site(
    files: Sequence[DumpFile],
    key: str,
    *,
    layout: str | None = None,
    lengths: Lengths = None,
    layers: Sequence[int] | None = None,
) -> SiteTensors:
    """The activations named `key` in some files, of some of the sequences or some of the layers each.

    key       of one tensor; with `{layer}` for the layer's number of one tensor a layer; or without that part of such
              a key, as `acts` for `acts.{layer}` and `hook_resid_post` for `blocks.{layer}.hook_resid_post`
    layout    the axes of a tensor, one of `LAYOUTS`; None: as its shape tells
    lengths   tokens of each sequence: a list for all files, or the key of them, or of their sums (as `cu_seqlens`), in
              each file; sequences that are not padded need no N, those that are padded are so at their ends
    layers    the numbers along L; None: from 0

    Files without the key are left out. Raises `InputError` where a tensor is missing, is not what it must be, or could
    be read in more than one way.
    """
    found = _tensors(files, key)
    by_layer = isinstance(found[0][1], dict)
    if layers is not None and by_layer:
        raise InputError(f"{found[0][0].path}: {key} is a tensor a layer, whose names have the numbers; omit layers")
    axes = _axes(found, by_layer, layout, lengths)
    groups: dict[Any, list[SiteTensors]] = {}
    for members in _by_layers(found).values():
        pieces = []
        for (file, names), tokens in zip(members, _lengths(members, axes, lengths), strict=True):
            entry, name = _first(file, names)
            _require_layers(file, name, entry, axes, layers)
            pieces.append(SiteTensors.in_file(file, key, names, axes, tokens, layers))
        if lengths is None and "N" in axes:
            _require_one_length(pieces)
        groups[pieces[0].layers] = [*groups.get(pieces[0].layers, []), SiteTensors.joined(pieces)]
    joined = [SiteTensors.joined(pieces) for pieces in groups.values()]
    taken: dict[int, SiteTensors] = {}
    for one in joined:
        if common := set(one.layers) & set(taken):
            raise InputError(
                f"{one.path}: {key} has layers {_listed(one.layers)}, and {taken[min(common)].path} has "
                f"{_listed(taken[min(common)].layers)}, expected the same layers, or layers of its own, in each file"
            )
        taken |= dict.fromkeys(one.layers, one)
    site = SiteTensors.beside(joined)
    if site.layers[-1] >= MAX_LAYERS:
        raise InputError(f"{site.path}: {key} has a layer {site.layers[-1]}, expected layers up to {MAX_LAYERS - 1}")
    return site


Names = str | dict[int, str]
Found = list[tuple[TensorFile, Names]]


def _tensors(files: Sequence[DumpFile], key: str) -> Found:
    """Of each file that has them the tensors that `key` stands for, by layer unless one holds all layers."""
    everywhere = list(dict.fromkeys(name for file, _ in files for name in file.entries))
    pattern = _pattern(files[0].file, everywhere, key)
    found: Found = []
    for file, layer in files:
        names: Names
        if LAYER in pattern:
            names = layer_names(file.entries, pattern, file.path)
            if layer is not None and set(names) - {layer}:
                raise InputError(
                    f"{file.path}: {key} has layers {_listed(names)}, expected {layer} as in the file's name"
                )
        else:
            names = "" if pattern not in file.entries else pattern if layer is None else {layer: pattern}
        if names:
            found.append((file, names))
    if not found:
        raise InputError(f"{files[0].file.path}: has no tensor {key!r}{nearest_keys(everywhere, key)}")
    return found


def _pattern(file: TensorFile, names: Sequence[str], key: str) -> str:
    """The key as it stands in the files: of one tensor, or with `{layer}`."""
    if LAYER in key or key in names:
        return key
    if layer_names([name for name in names if name.startswith(f"{key}.")], f"{key}.{LAYER}", file.path):
        return f"{key}.{LAYER}"
    candidates = keys_of_stem(layer_keys(names), key)
    if len(candidates) > 1:
        raise InputError(f"{file.path}: {key} may be any of {', '.join(sorted(candidates))}, expected one of them")
    return candidates[0] if candidates else key


def _by_layers(found: Found) -> dict[Any, Found]:
    """Files with tensors of the same layers."""
    groups: dict[Any, Found] = {}
    for file, names in found:
        groups.setdefault(None if isinstance(names, str) else tuple(names), []).append((file, names))
    return groups


def _first(file: TensorFile, names: Names) -> tuple[Entry, str]:
    name = names if isinstance(names, str) else next(iter(names.values()))
    return file.entry(name), name


def _axes(found: Found, by_layer: bool, layout: str | None, lengths: Lengths) -> str:
    """The axes of the tensors: those that are given, or the only ones that their shapes allow."""
    file, names = found[0]
    entry, name = _first(file, names)
    rank, where = len(entry.shape), f"{file.path}: {name} has shape {list(entry.shape)}"
    if layout is not None:
        if len(layout) != rank or (by_layer and "L" in layout):
            one = ", one tensor a layer, so without L" if by_layer else ""
            raise InputError(f"{where}, expected {len(layout)} axes as layout {layout} says{one}")
        return layout
    if by_layer:
        if rank not in (2, 3):
            raise InputError(f"{where}, expected (N, T, H), or (T, H), one tensor a layer")
        return "NTH" if rank == 3 else "TH"
    if rank == 4:
        return "NLTH"
    candidates = {3: ("TLH", "LTH", "NTH"), 2: ("TH",)}.get(rank)
    if candidates is None:
        raise InputError(f"{where}, expected (N, L, T, H), or other axes as layout says")
    fitting = [axes for axes in candidates if _fits(found, axes, lengths)]
    if len(fitting) != 1:
        raise InputError(
            f"{where}, whose axes may be {' or '.join(fitting or candidates)} (N sequences, L layers, T tokens, "
            f"H dims), expected layout to say which, or lengths how many tokens each sequence has"
        )
    return fitting[0]


def _fits(found: Found, axes: str, lengths: Lengths) -> bool:
    """Whether lengths, or the token ids that stand beside the tensors, show that these are the axes."""
    sizes = [dict(zip(axes, _first(*one)[0].shape, strict=False)) for one in found]
    if lengths is not None:
        known = [_of_file(file, lengths) for file, _ in found] if isinstance(lengths, str) else [as_lengths(lengths)]
        if "N" in axes:
            fits = sum(map(len, known)) == sum(size["N"] for size in sizes)
            return fits and max(int(one.max()) for one in known) <= min(size["T"] for size in sizes)
        return sum(int(one.sum()) for one in known) == sum(size["T"] for size in sizes)
    if "N" in axes:
        return False
    for (file, _), size in zip(found, sizes, strict=True):
        ids = [file.entries[name] for name in TOKEN_IDS if name in file.entries]
        if not ids or ids[0].dtype not in INTEGERS or int(np.prod(ids[0].shape)) != size["T"]:
            return False
    return True


def _lengths(members: Found, axes: str, lengths: Lengths) -> list[Array | None]:
    """Per file the tokens of its sequences; None: as many as its tensors have."""
    if lengths is None:
        return [None] * len(members)
    listed = None if isinstance(lengths, str) else as_lengths(lengths)
    found: list[Array | None] = []
    for file, names in members:
        entry, name = _first(file, names)
        size = dict(zip(axes, entry.shape, strict=False))
        if listed is None:
            own = _of_file(file, str(lengths))
        else:
            count = size.get("N", int(np.searchsorted(np.cumsum(listed), size["T"])) + 1)
            own, listed = listed[:count], listed[count:]
        fits = len(own) == size["N"] and own.max() <= size["T"] if "N" in size else own.sum() == size["T"]
        if not fits:
            wanted = f"{size['N']} of at most {size['T']}" if "N" in size else f"a sum of {size['T']}"
            raise InputError(
                f"{file.path}: lengths are {len(own)} with the sum {own.sum()}, expected {wanted}, since {name} is "
                f"({', '.join(axes)}) = {list(entry.shape)}"
            )
        found.append(own)
    if listed is not None and len(listed):
        raise InputError(f"{members[-1][0].path}: lengths has {len(listed)} entries more than there are sequences")
    return found


def _of_file(file: TensorFile, key: str) -> Array:
    if key not in file.entries:
        raise InputError(f"{file.path}: has no tensor {key!r} of lengths{nearest_keys(file.entries, key)}")
    entry = file.entry(key)
    if entry.dtype not in INTEGERS or not 0 < int(np.prod(entry.shape)) == max(entry.shape, default=0):
        raise InputError(f"{file.path}: lengths {key} is {entry.dtype} {list(entry.shape)}, expected integers (N,)")
    return as_lengths(file.array(key).reshape(-1), f"{file.path}: {key}")


def as_lengths(numbers: Any, where: str = "lengths") -> Array:
    """Tokens of each sequence, int64 (N,), from these or, beginning with 0, from where each sequence ends."""
    found = np.asarray(numbers).astype(np.int64)
    found = np.diff(found) if found[:1] == 0 else found
    if not len(found) or found.min() < 1:
        raise InputError(f"{where}: expected the tokens of each sequence, 1 at least, or from 0 on where each ends")
    return found


def _require_layers(file: TensorFile, name: str, entry: Entry, axes: str, layers: Sequence[int] | None) -> None:
    if layers is None:
        return
    count = dict(zip(axes, entry.shape, strict=True)).get("L", 1)
    if len(layers) != count or sorted(set(layers)) != list(layers):
        raise InputError(f"{file.path}: layers are {_listed(layers)}, expected {count} ascending numbers for {name}")


def _require_one_length(pieces: Sequence[SiteTensors]) -> None:
    for one in pieces:
        if one.tokens != pieces[0].tokens:
            raise InputError(
                f"{one.path}: {one.site} is {one.stored} {list(one.full_shape)}, expected {pieces[0].stored} "
                f"{list(pieces[0].full_shape)} but for N, as in {pieces[0].path}; if shorter sequences are padded, say "
                f"by lengths how many tokens each has"
            )


def _listed(layers: Any) -> str:
    layers = list(layers)
    return ", ".join(map(str, layers)) if len(layers) < 8 else f"{layers[0]}, {layers[1]}, ..., {layers[-1]}"
