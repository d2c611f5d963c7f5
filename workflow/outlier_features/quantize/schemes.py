"""How the input of a linear layer and its weight are rounded: each scheme's formula, in float32.

Every scheme is symmetric and rounds half to even. An integer of b bits: `q = clip(round(x / s), -m, m)` with
`m = 2^(b-1) - 1`, the value is `q s`, and `s` is the largest `abs(x)` of what shares it over `m`. FP8 is E4M3 with the
scale `max / 448`, saturating; MXFP4 is E2M1 in blocks of 32 with the scale `2^(floor(log2 max) - 2)`, saturating at 6
(OCP Microscaling Formats 1.0). What is zero everywhere stays zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
GROUP, BLOCK = 128, 32
LLM_INT8_THRESHOLD = 6.0  # Dettmers et al. 2022
FP8_MAX, FP4_MAX = 448.0, 6.0
SCALE_BITS, MX_SCALE_BITS, EXACT_BITS = 16, 8, 16
_E4M3, _E2M1 = (3, -6), (1, 0)  # bits of the mantissa, least exponent of a normal number


def largest_abs(x: Tensor) -> Tensor:
    """(..., 1)"""
    return x.abs().amax(-1, keepdim=True)


@dataclass(frozen=True)
class Seen:
    """What a scheme knows of the tensor (n, width) whose rows it rounds.

    static    largest abs(x) over the calibration tokens, which are all of the run
    dynamic   the same over the tokens of the row's sequence (and expert): a number for all rows, or (n, 1)
    kept      0 where one of these tokens has an abs(x) >= 6 in that column, else 1: (1, width) or (n, width)

    What no scheme asks for is None.
    """

    static: float | None = None
    dynamic: float | Tensor | None = None
    kept: Tensor | None = None

    def at(self, rows: Tensor) -> "Seen":
        """Of some of the rows."""
        dynamic = self.dynamic[rows] if isinstance(self.dynamic, Tensor) else self.dynamic
        return Seen(self.static, dynamic, None if self.kept is None else self.kept[rows])

    @classmethod
    def joined(cls, parts: "Sequence[tuple[Seen, int]]", device: torch.device) -> "Seen":
        """Of rows of several sequences or experts, so many of each."""
        largest = [
            torch.as_tensor(seen.dynamic, dtype=torch.float32, device=device).expand(n, 1)
            for seen, n in parts
            if seen.dynamic is not None
        ]
        dynamic = torch.cat(largest) if largest else None
        kept = [seen.kept.expand(n, -1) for seen, n in parts if seen.kept is not None]
        return cls(parts[0][0].static, dynamic, torch.cat(kept) if kept else None)


@dataclass(frozen=True)
class WeightScheme:
    """How a matrix (out, in) is rounded.

    group   of the input's channels that share a scale; None: each output channel has one
    """

    format: str
    bits: int
    group: int | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """The matrix, rounded."""
        return in_groups(weight, self.group, _ROUNDED[self.format])

    def mean_bits(self, width: int) -> float:
        """Bits of a value, its share of the scale included."""
        scale = MX_SCALE_BITS if self.format == "mxfp4" else SCALE_BITS
        return self.bits + scale / min(self.group or width, width)


@dataclass(frozen=True)
class Scheme:
    """How the rows of a layer's input are rounded, and its weight with them.

    format      `int8`, `int4`, `fp8` or `mxfp4`
    shares      which values share a scale: `static`, `dynamic`, `row`, or so many channels of a row
    exact       columns of the sequence with any abs(x) >= 6 are left as they are, and so are their rows of the weight
    """

    name: str
    format: str
    bits: int
    shares: str | int
    weight: WeightScheme
    exact: bool = False

    @property
    def formula(self) -> tuple[str, str | int, bool]:
        """The same for schemes that round alike under two names."""
        return self.format, self.shares, self.exact

    @property
    def by_row(self) -> bool:
        """A row is rounded alike whatever rows are beside it."""
        return self.shares not in ("static", "dynamic") and not self.exact

    def __call__(self, x: Tensor, seen: Seen, largest: Callable[[Tensor], Tensor] = largest_abs) -> Tensor:
        """x (n, width), rounded; a new tensor.

        largest   of values (..., k) that share a scale: what it is made of, (..., 1)
        """
        rounded = _ROUNDED[self.format]
        if isinstance(self.shares, int):
            return in_groups(x, self.shares, lambda values: rounded(values, largest(values)))
        if self.exact:
            assert seen.kept is not None
            inner = x * seen.kept
            return rounded(inner, largest(inner)).add_(x - inner)
        if self.shares == "row":
            return rounded(x, largest(x))
        known = seen.static if self.shares == "static" else seen.dynamic
        assert known is not None
        return rounded(x, torch.as_tensor(known, dtype=x.dtype, device=x.device))

    def mean_bits(self, width: int, exact: float, rows: float) -> float:
        """Bits of a value, scales and what is exact included.

        exact   share of values that are
        rows    of a tensor that shares a scale
        """
        if isinstance(self.shares, int):
            scale = (MX_SCALE_BITS if self.format == "mxfp4" else SCALE_BITS) / min(self.shares, width)
        else:
            scale = {"row": SCALE_BITS / width, "dynamic": SCALE_BITS / width / rows, "static": 0.0}[self.shares]
        return (1 - exact) * self.bits + exact * EXACT_BITS + scale


def in_groups(x: Tensor, size: int | None, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` (n, width) rounded, each group of so many channels by itself; the last may be shorter."""
    width = x.shape[-1]
    if size is None or size >= width:
        return rounded(x)
    whole = width - width % size
    parts = [rounded(x[..., :whole].unflatten(-1, (-1, size))).flatten(-2)]
    if whole < width:
        parts.append(rounded(x[..., whole:]))
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def to_int(x: Tensor, bits: int, largest: Tensor | None = None) -> Tensor:
    """Values that share the scale of `largest`, by themselves their largest abs."""
    most = 2 ** (bits - 1) - 1
    scale = _scale(largest_abs(x) if largest is None else largest, most)
    return (x / scale).round_().clamp_(-most, most).mul_(scale)


def to_fp8(x: Tensor, largest: Tensor | None = None) -> Tensor:
    scale = _scale(largest_abs(x) if largest is None else largest, FP8_MAX)
    return to_float(x / scale, *_E4M3, FP8_MAX).mul_(scale)


def to_mxfp4(x: Tensor, largest: Tensor | None = None) -> Tensor:
    found = largest_abs(x) if largest is None else largest
    scale = _power_below(found.clamp_min(2.0**-125)).mul_(0.25)  # the largest exponent of E2M1 is 2
    return to_float(x / scale, *_E2M1, FP4_MAX).mul_(scale)


def to_float(x: Tensor, mantissa: int, least: int, most: float) -> Tensor:
    """To the nearest number of a floating-point format, half to even; above its largest, to that.

    mantissa   its bits, without the leading one
    least      exponent of its smallest normal number, below which numbers are as far apart as there
    """
    step = _power_below(x).clamp_min_(2.0**least).mul_(2.0**-mantissa)
    return (x / step).round_().mul_(step).clamp_(-most, most)


def _power_below(x: Tensor) -> Tensor:
    """The largest power of two that is no larger than abs(x): its exponent's bits, alone."""
    return (x.to(torch.float32).view(torch.int32) & 0x7F800000).view(torch.float32)


def _scale(largest: Tensor, most: float) -> Tensor:
    scale = largest / most
    return torch.where(scale > 0, scale, torch.ones_like(scale))


_ROUNDED: dict[str, Callable[..., Tensor]] = {
    "int8": lambda x, largest=None: to_int(x, 8, largest),
    "int4": lambda x, largest=None: to_int(x, 4, largest),
    "fp8": to_fp8,
    "mxfp4": to_mxfp4,
}
_INT8, _INT4 = WeightScheme("int8", 8), WeightScheme("int4", 4, GROUP)
_FP8, _MXFP4 = WeightScheme("fp8", 8), WeightScheme("mxfp4", 4, BLOCK)
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8_tensor_static", "int8", 8, "static", _INT8),
        Scheme("int8_tensor_dynamic", "int8", 8, "dynamic", _INT8),
        Scheme("int8_token", "int8", 8, "row", _INT8),
        Scheme("int8_vector", "int8", 8, "row", _INT8),
        Scheme("llm_int8", "int8", 8, "row", _INT8, exact=True),
        Scheme("int4_token", "int4", 4, "row", _INT4),
        Scheme("int4_group128", "int4", 4, GROUP, _INT4),
        Scheme("fp8_tensor", "fp8", 8, "static", _FP8),
        Scheme("fp8_token", "fp8", 8, "row", _FP8),
        Scheme("mxfp4", "mxfp4", 4, BLOCK, _MXFP4),
    )
}
