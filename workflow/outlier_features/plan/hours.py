"""How long a run may take here, from what each rule took in earlier runs into the same results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlier_features.run.summarize_costs import read_costs

# Rules whose time goes with the forward pass; that of the others goes with the values that it makes.
BY_FLOPS = {
    "extract_activations",
    "rerun_largest",
    "map_attention",
    "trace_origin",
    "rank_experts",
    "find_super_weights",
    "ablate_dims",
}


@dataclass(frozen=True)
class Work:
    """Of a run: FLOPs of its forward pass, and values of its activations; None where that is not known."""

    flops: int | None
    values: int | None

    def of(self, rule: str) -> int | None:
        return self.flops if rule in BY_FLOPS else self.values


@dataclass(frozen=True)
class Measured:
    """An earlier run: what it was, how much work, and seconds by rule."""

    name: str
    work: Work
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Expected:
    """seconds       of all rules that are known
    scaled_from   the earlier run by which; itself where it was this one
    unknown       rules that it has no time of, or whose work is not known
    """

    seconds: float
    scaled_from: str
    unknown: tuple[str, ...]


def seconds_of_run(benchmarks: Path, model: str, corpus: str) -> dict[str, float]:
    """By rule the seconds that jobs of a run took, all together; empty where none ran.

    Raises `InputError` where a file is not a benchmark.
    """
    seconds = {}
    for folder in sorted(benchmarks.glob("*")):
        for place in (folder / model / corpus, folder / model):
            if place.is_dir() or place.with_name(f"{place.name}.tsv").is_file():
                found = _total(place)
                if found is not None:
                    seconds[folder.name] = found
                break
    return seconds


def _total(place: Path) -> float | None:
    """Seconds of `<place>.tsv`, or of all files in the directory `place`."""
    raise NotImplementedError


def expected(name: str, work: Work, rules: Sequence[str], earlier: Sequence[Measured]) -> Expected | None:
    """What a run of these rules may take; None where nothing was measured that it can be scaled from."""
    same = [one for one in earlier if one.name == name]
    near = same or sorted(earlier, key=lambda one: _distance(one.work, work))
    for one in near[:1]:
        return _scaled(one, work, rules)
    return None
