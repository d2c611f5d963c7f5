"""Where a site's activations lie, whichever way they are laid out, in however many files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import DTYPES, STORAGE, TensorFile

Array = np.ndarray[Any, Any]

# The formats that are read, and the format in which their values are handed out. The values of 8-bit floats are values
# of bfloat16; float64 is rounded to float32, and what that cannot hold becomes infinite, which is refused.
FORMATS = {"F32": "F32", "BF16": "BF16", "F16": "F16", "F64": "F32", "F8_E4M3": "BF16", "F8_E5M2": "BF16"}
FLOATS = DTYPES | {"F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2"}  # as they are called
AXES = {"N": "sequences", "L": "layers", "T": "tokens", "H": "dims"}
_COPIED = 1 << 22  # values that are copied together, at most


@dataclass(frozen=True, eq=False)
class SiteTensors:
    """A site's activations: per present layer a (N, T, H) view, of which sequence n has `lengths[n]` tokens.

    Sequence n of the layer at index l begins at byte `starts[l, n]`, its tokens are rows of `dims` values at distances
    of `strides[n]` values. Bytes are counted through all `files`, as if they lay one after the other; so one tensor per
    layer, a stacked one, sequences without padding, and files of some layers or some sequences look alike.

    stored   format in the files, as safetensors names it
    tokens   T: the longest sequence's length, or more
    """

    files: tuple[TensorFile, ...]
    site: str
    stored: str
    layers: tuple[int, ...]
    tokens: int
    dims: int
    lengths: Array
    starts: Array
    strides: Array

    @classmethod
    def in_file(
        cls,
        file: TensorFile,
        site: str,
        names: str | Mapping[int, str],
        axes: str,
        lengths: Array | None = None,
        layers: Sequence[int] | None = None,
    ) -> "SiteTensors":
        """The activations in a file, in one tensor or in one for each layer.

        names     the tensor, or by layer the tensors, which are all alike
        axes      of a tensor: letters of `AXES`, such as NLTH; the last is H. Without N,
                  sequences follow one another along T
        lengths   tokens of each sequence, which fit the axes; None: as many as there are along T
        layers    their numbers, in the order of L; None: from 0

        Raises `InputError` where the tensors do not have these axes or no float format.
        """
        tensors = {0: names} if isinstance(names, str) else dict(sorted(names.items()))
        first = file.entry(next(iter(tensors.values())))
        for name in tensors.values():
            entry = file.entry(name)
            if (entry.shape, entry.dtype) != (first.shape, first.dtype) or len(entry.shape) != len(axes):
                alike = " alike in all layers" if len(tensors) > 1 else ""
                raise InputError(
                    f"{file.path}: {name} is {entry.dtype} {list(entry.shape)}, expected {axes_text(axes)}{alike}"
                )
            if entry.dtype not in FORMATS:
                raise InputError(f"{file.path}: {name} is {entry.dtype}, expected one of {', '.join(FORMATS)}")
            if 0 in entry.shape:
                raise InputError(
                    f"{file.path}: {name} of shape {list(entry.shape)} is empty, expected a value at least"
                )
        size = dict(zip(axes, first.shape, strict=True))
        steps = np.cumprod([1, *first.shape[:0:-1]])[::-1]
        step = {axis: int(distance) for axis, distance in zip(axes, steps, strict=True)}
        if lengths is None:
            lengths = np.full(size.get("N", 1), size["T"])
        lengths = np.asarray(lengths, np.int64)
        begins = np.arange(len(lengths)) * step["N"] if "N" in axes else (np.cumsum(lengths) - lengths) * step["T"]
        offsets = [file.entry(name).offset for name in tensors.values()]
        if "L" in axes:
            numbers = tuple(range(size["L"]) if layers is None else layers)
            offsets = [offsets[0] + index * step["L"] * itemsize(first.dtype) for index in range(size["L"])]
        else:
            numbers = tuple(tensors)
        starts = np.array(offsets, np.int64)[:, None] + begins * itemsize(first.dtype)
        tokens = int(lengths.max())
        strides = np.full(len(lengths), step["T"])
        return cls((file,), site, first.dtype, numbers, tokens, size["H"], lengths, starts, strides)

    @classmethod
    def per_layer(cls, file: TensorFile, site: str) -> "SiteTensors | None":
        """The tensors `{site}.{layer}` (N, T, H) of a file; None if it has none."""
        stems = ((name, *name.rpartition(".")) for name in file.entries)
        names = {int(index): name for name, stem, _, index in stems if stem == site and index.isdecimal()}
        return cls.in_file(file, site, names, "NTH") if names else None

    @classmethod
    def stacked(cls, file: TensorFile, key: str) -> "SiteTensors":
        """The tensor `key` of shape (N, L, T, H)."""
        return cls.in_file(file, key, key, "NLTH")

    @classmethod
    def joined(cls, sites: Sequence["SiteTensors"]) -> "SiteTensors":
        """One after the other along N. Raises `InputError` where format, layers or dims differ."""
        first = sites[0]
        for one in sites[1:]:
            if (one.stored, one.layers, one.dims) != (first.stored, first.layers, first.dims):
                raise InputError(
                    f"{one.path}: {one.site} is {one.stored} {list(one.full_shape)}, expected {first.stored} "
                    f"{list(first.full_shape)} but for N and T, and the same layers, as in {first.path}"
                )
        starts = np.concatenate([one.starts for one in _in_one_space(sites)], axis=1)
        return replace(
            first,
            files=tuple(file for one in sites for file in one.files),
            tokens=max(one.tokens for one in sites),
            lengths=np.concatenate([one.lengths for one in sites]),
            starts=starts,
            strides=np.concatenate([one.strides for one in sites]),
        )

    @classmethod
    def beside(cls, sites: Sequence["SiteTensors"]) -> "SiteTensors":
        """The layers of all, of the same sequences. Raises `InputError` where these, format or dims differ."""
        first = sites[0]
        for one in sites[1:]:
            if not np.array_equal(one.lengths, first.lengths):
                raise InputError(
                    f"{one.path}: {one.site} has {_sequences_text(one)}, expected {_sequences_text(first)} as in "
                    f"{first.path}, which has other layers"
                )
            if (one.stored, one.dims) != (first.stored, first.dims):
                raise InputError(
                    f"{one.path}: {one.site} is {one.stored} with {one.dims} dims, expected {first.stored} with "
                    f"{first.dims} as in {first.path}"
                )
        layers = np.concatenate([one.layers for one in sites])
        order = np.argsort(layers)
        starts = np.concatenate([one.starts for one in _in_one_space(sites)])[order]
        files = tuple(file for one in sites for file in one.files)
        return replace(first, files=files, layers=tuple(layers[order].tolist()), starts=starts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, H)."""
        return len(self.lengths), self.tokens, self.dims

    @property
    def full_shape(self) -> tuple[int, int, int, int]:
        """(N, L, T, H)."""
        return len(self.lengths), len(self.layers), self.tokens, self.dims

    @property
    def path(self) -> str:
        """The files, as a message names them."""
        others = f" and {len(self.files) - 1} other files" if len(self.files) > 1 else ""
        return f"{self.files[0].path}{others}"

    def paths(self, first: int, last: int) -> list[Path]:
        """The files that hold some sequences."""
        places = np.unique(np.searchsorted(self._bases, self.starts[:, first:last], "right") - 1)
        return [self.files[place].path for place in places]

    def file_of(self, n: int) -> TensorFile:
        """The file that holds sequence n of the first layer."""
        return self._file_at(int(self.starts[0, n]))[0]

    @property
    def dtype(self) -> str:
        """The format in which values are handed out."""
        return FORMATS[self.stored]

    @property
    def values(self) -> int:
        """How many there are, padding left out."""
        return int(self.lengths.sum()) * len(self.layers) * self.dims

    @property
    def nbytes(self) -> int:
        return self.values * itemsize(self.stored)

    @property
    def mask(self) -> Array | None:
        """The positions that sequences have, bool (N, T); None if all have all."""
        if (self.lengths == self.tokens).all():
            return None
        return np.arange(self.tokens) < self.lengths[:, None]

    @cached_property
    def in_place(self) -> bool:
        """Whether a sequence can be read as it lies: rows side by side, aligned, in a format that is handed out."""
        side_by_side = ((self.strides == self.dims) | (self.lengths == 1)).all()
        places = np.searchsorted(self._bases, self.starts, "right") - 1
        aligned = not ((self.starts - self._bases[places]) % itemsize(self.stored)).any()
        return self.stored == self.dtype and bool(side_by_side) and aligned

    def rows(self, first: int, last: int) -> "SiteTensors":
        """Sequences from `first` to before `last`."""
        n = len(self.lengths)
        if not 0 <= first < last <= n:
            raise ValueError(f"sequences {first} to {last} of {n}")
        starts, strides = self.starts[:, first:last], self.strides[first:last]
        return replace(self, lengths=self.lengths[first:last], starts=starts, strides=strides)

    def padded(self, tokens: int) -> "SiteTensors":
        """The same with T = `tokens`, which no sequence exceeds."""
        return replace(self, tokens=tokens)

    def bits(self, layer: int, first: int, last: int) -> tuple[Array, Array]:
        """Sequences first..last of the layer at index `layer`, which are in a range of `blocks`.

        Returns their bits in a flat array, uint32 (float32) or uint16 (16-bit formats), and where in it each begins.
        """
        starts, size = self.starts[layer, first:last], itemsize(self.dtype)
        if self.in_place:
            file, base = self._file_at(int(starts[0]))
            raw: Array = np.ndarray((file.size // size,), f"u{size}", file.map)
            return raw, (starts - base) // size
        ends = np.cumsum(self.lengths[first:last]) * self.dims
        raw = np.empty(int(ends[-1]), f"u{size}")
        begins = ends - self.lengths[first:last] * self.dims
        for n, begin, end in zip(range(first, last), begins, ends, strict=True):
            self.copy(layer, n, 0, raw[begin:end])
        raw.setflags(write=False)  # as a map is, or code would be compiled once more
        return raw, begins

    def copy(self, layer: int, n: int, begin: int, out: Array) -> None:
        """Fill `out`, uint32 or uint16, with the bits of a sequence's cells from `begin` of T * H on."""
        first, last = begin // self.dims, (begin + out.size - 1) // self.dims + 1
        file, base = self._file_at(int(self.starts[layer, n]))
        size = itemsize(self.stored)
        stride = int(self.strides[n]) * size
        offset = int(self.starts[layer, n]) - base + first * stride
        rows: Array = np.ndarray((last - first, self.dims), STORAGE[self.stored], file.map, offset, (stride, size))
        whole = out.size == rows.size
        target = out.reshape(rows.shape) if whole else np.empty(rows.shape, out.dtype)
        _convert(rows, self.stored, target)
        if not whole:
            out[:] = target.reshape(-1)[begin - first * self.dims :][: out.size]

    def sequence(self, layer: int, n: int) -> Array:
        """Sequence n of the layer at index `layer` of `layers`, float32 (T, H); 0 where it is padded."""
        length = int(self.lengths[n])
        raw, (start,) = self.bits(layer, n, n + 1)
        values = widened(raw[start : start + length * self.dims], self.dtype).reshape(length, self.dims)
        return values if length == self.tokens else np.pad(values, ((0, self.tokens - length), (0, 0)))

    def values_at(self, layers: Array, sequences: Array, cells: Array) -> Array:
        """Single values, float32: of the layers at some indices, and the cells of T * H of some sequences."""
        rows, dims = np.divmod(cells, self.dims)
        addresses = self.starts[layers, sequences] + (rows * self.strides[sequences] + dims) * itemsize(self.stored)
        places = np.searchsorted(self._bases, addresses, "right") - 1
        out = np.empty(len(cells), f"u{itemsize(self.dtype)}")
        for place in np.unique(places):
            file, chosen, size = self.files[place], places == place, itemsize(self.stored)
            # A value at every byte, since an array in a file need not begin at a multiple of their size.
            raw: Array = np.ndarray((file.size - size + 1,), STORAGE[self.stored], file.map, strides=(1,))
            found = np.empty((1, int(chosen.sum())), out.dtype)
            _convert(raw[None, addresses[chosen] - self._bases[place]], self.stored, found)
            out[chosen] = found[0]
        return widened(out, self.dtype)

    def blocks(self, values: int) -> Iterator[tuple[int, int]]:
        """Ranges of sequences, first and one past the last, of at most so many values, or of one sequence.

        Where sequences are read in place, a layer's lie in one file.
        """
        most = values if self.in_place else min(values, _COPIED * len(self.layers))
        sizes = self.lengths * (len(self.layers) * self.dims)
        places = np.searchsorted(self._bases, self.starts, "right")
        another = (places[:, 1:] != places[:, :-1]).any(axis=0) if self.in_place else np.zeros(len(sizes) - 1, bool)
        first, taken = 0, 0
        for n, size in enumerate(sizes.tolist()):
            if n > first and (taken + size > most or another[n - 1]):
                yield first, n
                first, taken = n, 0
            taken += size
        yield first, len(sizes)

    def spans(self, first: int, last: int, begin: int = 0, end: int | None = None) -> Array:
        """Where sequences first..last lie in all layers, int64 (K, 2): first byte and number of bytes, in order.

        begin, end   cells of T * H that they all have; without `end`, all

        What lies side by side, or between the rows of a sequence, is one span.
        """
        size, starts = itemsize(self.stored), self.starts[:, first:last]
        stop = self.lengths[first:last] * self.dims if end is None else np.full(last - first, end)
        strides = self.strides[first:last]
        low = starts + _cell_at(begin, self.dims, strides) * size
        high = starts + (_cell_at(stop - 1, self.dims, strides) + 1) * size
        order = np.argsort(low, axis=None, kind="stable")
        low, high = low.reshape(-1)[order], np.maximum.accumulate(high.reshape(-1)[order])
        begins = np.append(True, low[1:] > high[:-1])
        ends = np.append(begins[1:], True)
        return np.stack([low[begins], high[ends] - low[begins]], axis=1)

    def will_need(self, first: int, last: int, begin: int = 0, end: int | None = None) -> None:
        """Ask for what `spans` says to be read ahead."""
        for start, length in self.spans(first, last, begin, end).tolist():
            file, base = self._file_at(start)
            file.will_need(start - base, length)

    def drop(self, first: int, last: int, begin: int = 0, end: int | None = None) -> None:
        """Give back the mapped pages of what `spans` says."""
        for start, length in self.spans(first, last, begin, end).tolist():
            file, base = self._file_at(start)
            file.drop(start - base, length)

    def read_into(self, start: int, target: Array) -> None:
        """Fill an array with the bytes from `start` on, as `starts` and `spans` count them."""
        file, base = self._file_at(start)
        file.read_into(start - base, target)

    def _file_at(self, address: int) -> tuple[TensorFile, int]:
        """The file that holds a byte, and where the file begins."""
        place = int(np.searchsorted(self._bases, address, "right")) - 1
        return self.files[place], int(self._bases[place])

    @cached_property
    def _bases(self) -> Array:
        """Where each file begins; a byte lies between two, so that nothing of one touches the other."""
        return np.cumsum([0, *(file.size + 1 for file in self.files[:-1])])


def _in_one_space(sites: Sequence[SiteTensors]) -> list[SiteTensors]:
    """With starts as they are if the files of all lie one after the other."""
    sizes = [sum(file.size + 1 for file in one.files) for one in sites]
    return [
        replace(one, starts=one.starts + base) for one, base in zip(sites, np.cumsum([0, *sizes[:-1]]), strict=True)
    ]


def _sequences_text(site: SiteTensors) -> str:
    low, high = int(site.lengths.min()), int(site.lengths.max())
    return f"{len(site.lengths)} sequences of {low if low == high else f'{low} to {high}'} tokens"


def _cell_at(cell: Any, dims: int, stride: Any) -> Any:
    """How many values after a sequence's first one a cell of T * H lies."""
    return cell // dims * stride + cell % dims


def axes_text(axes: str) -> str:
    return f"({', '.join(axes)}), that is {', '.join(AXES[axis] for axis in axes)},"


def itemsize(dtype: str) -> int:
    return int(np.dtype(STORAGE[dtype]).itemsize)


def widened(bits: Array, dtype: str) -> Array:
    """The float32 values of raw bits: of float32 where they lie, of 16-bit formats a copy."""
    if dtype == "BF16":
        return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if dtype == "F16" else bits.view(np.float32)


def _convert(values: Array, stored: str, out: Array) -> None:
    """Put values as they are stored into `out`, of their shape, as the bits in which they are handed out."""
    if stored == "F64":
        with np.errstate(over="ignore"):
            out.view(np.float32)[...] = values
    elif stored in _EIGHT_BITS:
        out[...] = _EIGHT_BITS[stored][values]
    else:
        out[...] = values.view(out.dtype)


def _eight_bits(exponent: int, has_infinity: bool) -> Array:
    """The bfloat16 bits of all 256 floats with so many bits of exponent (OCP's 8-bit formats v1.0)."""
    code = np.arange(256)
    mantissa_bits = 7 - exponent
    bias = (1 << exponent - 1) - 1
    power, mantissa = code >> mantissa_bits & (1 << exponent) - 1, code & (1 << mantissa_bits) - 1
    fraction = mantissa / (1 << mantissa_bits) + (power > 0)
    value = np.ldexp(fraction, np.maximum(power, 1) - bias)
    largest = power == (1 << exponent) - 1
    if has_infinity:
        value[largest] = np.where(mantissa[largest] == 0, np.inf, np.nan)
    else:
        value[largest & (mantissa == (1 << mantissa_bits) - 1)] = np.nan
    signed = np.where(code >= 128, -value, value).astype(np.float32)
    return (signed.view(np.uint32) >> 16).astype(np.uint16)


_EIGHT_BITS = {"F8_E4M3": _eight_bits(4, has_infinity=False), "F8_E5M2": _eight_bits(5, has_infinity=True)}
