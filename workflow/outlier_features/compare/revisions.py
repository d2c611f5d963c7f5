"""Revisions of one model: which have the same weights, and which of these stands for them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from outlier_features.files.model_source import record_of
from outlier_features.model_name import split_name, step_of
from outlier_features.wording import some


@dataclass(frozen=True)
class Revision:
    """What is known of a revision among those that were run.

    same_weights_as   the revision that stands for all with these weights; None: this one does
    """

    model: str
    revision: str
    step: int | None
    same_weights_as: str | None


def revisions_of(models: Iterable[str], sources: Mapping[str, Path]) -> dict[str, Revision]:
    """By name, `<model>@<revision>`, those among `models` that are revisions.

    sources   of each of them the record of its fetch

    Weights are the same where the files that hold them are, by name and byte for byte. Which step they are of cannot be
    known then: on a hub, early branches may hold later weights. So the one of the latest step stands for all, of
    several without a step the first, and the others are no point of a curve.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in dict.fromkeys(models):
        model, revision = split_name(name)
        if revision is not None:
            groups.setdefault((model, weights_sha256(sources[name])), []).append((name, revision))
    found = {}
    for (model, _), alike in groups.items():
        stands = max(
            (revision for _, revision in alike), key=lambda one: -1 if (step := step_of(one)) is None else step
        )
        for name, revision in alike:
            same = None if revision == stands else stands
            found[name] = Revision(model, revision, step_of(revision), same)
    return found


def same_weights(revisions: Iterable[tuple[str, str, str | None]]) -> list[str]:
    """A sentence for each revision that stands for others; `revisions`: model, revision and what stands for it."""
    alike: dict[tuple[str, str], dict[str, None]] = {}
    for model, revision, stands in revisions:
        if stands is not None:
            alike.setdefault((model, stands), {})[revision] = None
    return [
        f"{model}: {some([*others])} {'has' if len(others) == 1 else 'have'} the same weights as {stands}, byte for "
        f"byte, which stands for {'both' if len(others) == 1 else 'all'}"
        for (model, stands), others in alike.items()
    ]


def weights_sha256(source: Path) -> str:
    """Of the sorted lines `name sha256` of a fetched model's .safetensors files."""
    files = record_of(source, "files")["files"]
    lines = sorted(f"{name} {file['sha256']}\n" for name, file in files.items() if name.endswith(".safetensors"))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
