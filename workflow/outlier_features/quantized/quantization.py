"""What the weights of a model were dequantized from, as a run says it; without torch, for those that only tell it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from outlier_features.files.facts import Facts


@dataclass(frozen=True)
class Quantization(Facts):
    """The format, how many weights, bits of their values, which values share a scale (most frequent first)."""

    format: str
    weights: int
    bits: list[int]
    groups: list[str]

    @classmethod
    def of_weights(cls, method: str, weights: Iterable[tuple[int, str]]) -> "Quantization":
        """Of weights as their bits and groups."""
        bits, groups = zip(*weights, strict=True)
        return cls(method, len(bits), sorted(set(bits)), [group for group, _ in Counter(groups).most_common()])

    def __str__(self) -> str:
        bits, groups = (" or ".join(map(str, some)) for some in (self.bits, self.groups))
        return f"{self.format}: {self.weights} weights of {bits} bits, a scale for each {groups}"
