"""How long a run may take here, from what each rule took in earlier runs into the same results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlier_features.run.stages import STAGES
from outlier_features.run.summarize_costs import read_benchmark

_PASSES = ("extract_activations", "detect_in_passes", "detect_outliers")  # one of them is in every run


@dataclass(frozen=True)
class Work:
    """Of a run: FLOPs of its forward pass, and values of its activations; None where that is not known."""

    flops: int | None
    values: int | None

    def of(self, rule: str) -> int | None:
        return self.flops if rule in STAGES and STAGES[rule].runs_model else self.values


@dataclass(frozen=True)
class Measured:
    """An earlier run: its name `<model>/<corpus>`, how much work it was, and seconds by rule."""

    name: str
    work: Work
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Expected:
    """Seconds by rule, the earlier run that they are of, whether they are scaled, and rules that have none."""

    seconds: Mapping[str, float]
    measured: str
    scaled: bool
    unknown: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def measured_runs(benchmarks: Path) -> list[tuple[str, str]]:
    """Model and corpus of each run whose pass, or whose dump's, was measured."""
    places = [place for rule in _PASSES for place in benchmarks.glob(f"{rule}/*/*")]
    return list(dict.fromkeys((place.parent.name, place.name) for place in places if place.is_dir()))


def seconds_of_run(benchmarks: Path, model: str, corpus: str, sequences: int) -> dict[str, float]:
    """By rule the seconds that a run of so many sequences took; where some of its chunks ran, that all would take.

    Raises `InputError` where a file is not a benchmark.
    """
    seconds: dict[str, float] = {}
    for folder in sorted(path for path in benchmarks.glob("*") if path.is_dir()):
        place = folder / model / corpus
        whole = [file for file in (place.with_name(f"{corpus}.tsv"), folder / f"{model}.tsv") if file.is_file()]
        found = [(_seconds(file), sequences) for file in whole[:1]]
        found += [(_seconds(file), _length(file.stem, sequences)) for file in sorted(place.glob("*.tsv"))]
        if covered := sum(length for _, length in found):
            seconds[folder.name] = sum(took for took, _ in found) * sequences / covered
    return seconds


def _seconds(file: Path) -> float:
    return read_benchmark(file)["s"] or 0.0


def _length(chunk: str, sequences: int) -> int:
    """How many of the run's sequences are in the chunk `<first>-<last>`."""
    first, _, last = chunk.partition("-")
    return max(0, min(int(last) + 1, sequences) - int(first)) if first.isdigit() and last.isdigit() else 0


def expected_time(name: str, work: Work, rules: Sequence[str], earlier: Sequence[Measured]) -> Expected | None:
    """What a run of these rules may take, in proportion to its work: by itself if it ran, else by the nearest.

    None where there is no earlier run.
    """
    if not earlier:
        return None
    nearest = min(earlier, key=lambda one: (one.name != name, _distance(one.work, work)))
    same, seconds = nearest.name == name and nearest.work == work, {}
    for rule in rules:
        took, before, now = nearest.seconds.get(rule), nearest.work.of(rule), work.of(rule)
        if took is not None and same:
            seconds[rule] = took
        elif took is not None and before and now is not None:
            seconds[rule] = took * now / before
    return Expected(seconds, nearest.name, not same, tuple(rule for rule in rules if rule not in seconds))


def _distance(one: Work, other: Work) -> float:
    if one.flops and other.flops:
        return abs(math.log(one.flops / other.flops))
    return abs(math.log(one.values / other.values)) + 100 if one.values and other.values else math.inf
