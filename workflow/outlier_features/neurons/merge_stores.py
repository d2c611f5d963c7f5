"""Stores of neurons made one: those of a run's chunks, or of runs of a model on several corpora."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import require_equal
from outlier_features.files.missing import require_had
from outlier_features.files.tensorfile import TensorFile, TensorFileWriter
from outlier_features.neurons.kept_neurons import ABSENT, BANKS, BankShape, KeptNeurons, merged
from outlier_features.neurons.position_classes import CLASSES
from outlier_features.neurons.ranked_at import RANKING

_SAME = ("model", "model_revision", "dtype")
_OF_A_CORPUS = ("corpus", "corpus_sha256", "tokens_sha256", "sample", "start", "stop", "job")


def merge_stores(stores: Sequence[Path], out: Path, *, examples: int | None = None) -> None:
    """Merge what `rank_neurons` left of runs of one model to what one run over all their sequences leaves.

    stores     in the order in which their sequences are counted: those of the second begin where those of the first
               end, and so on; the provenance of `out` says so (`corpora`)
    examples   sequences in a list; as many as the shortest lists were made for, if None

    Memory does not grow with the number of stores or sequences. Raises `InputError` where a file is damaged, or they
    are not of one model, or ranked in different ways.
    """
    files = [TensorFile(path) for path in stores]
    for file in files:
        require_equal(files[0].provenance, file.provenance, _SAME, file.path)
    sequences = [file.provenance["sequences"] for file in files]
    firsts = [0, *accumulate(sequences)][:-1]
    keys = ("corpus", "corpus_sha256", "tokens_sha256", "sequences")
    corpora = [
        {"first": first, **{key: file.provenance[key] for key in keys}}
        for first, file in zip(firsts, files, strict=True)
    ]
    provenance = {key: value for key, value in files[0].provenance.items() if key not in _OF_A_CORPUS}
    provenance |= {"corpora": corpora, "sequences": sum(sequences)}
    merge(files, firsts, out, provenance, examples)


def merge(
    files: Sequence[TensorFile],
    firsts: Sequence[int],
    out: Path,
    provenance: Mapping[str, Any],
    examples: int | None = None,
) -> None:
    """Write one store of several.

    firsts       by how much the sequences of each are counted further on
    provenance   of the store; `sequences`: how many there are in all
    """
    for file in files:
        require_had(file.provenance)
    rankings = [_ranking(file) for file in files]
    for file, ranking in zip(files, rankings, strict=True):
        require_equal(rankings[0], ranking, ("high_norm",), file.path)
    shortest = min(ranking["examples"] for ranking in rankings)
    if examples is not None and examples > shortest:
        raise DamagedFile(files[0].path, f"has the {shortest} largest of each neuron, expected {examples}")
    listed = examples or shortest
    length = min(listed, provenance["sequences"])
    shapes, absent = _banks(files)
    classes = {shape.name: [c for c in CLASSES if any(_parts(files, firsts, shape.name, c))] for shape in shapes}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for shape in shapes:
        for of_class in classes[shape.name]:
            tensors |= KeptNeurons.formats(shape, length, of_class)
    facts = {
        RANKING: {**rankings[0], "examples": listed},
        BANKS: {shape.name: [shape.experts, shape.neurons] for shape in shapes},
        ABSENT: absent,
    }
    with TensorFileWriter(out, tensors, {**provenance, **facts}) as writer:
        for shape in shapes:
            for of_class in classes[shape.name]:
                parts = _parts(files, firsts, shape.name, of_class)
                for name, array in merged(parts, shape, length).arrays(shape.name, of_class).items():
                    writer.write(name, 0, array)


def _parts(files: Sequence[TensorFile], firsts: Sequence[int], bank: str, of_class: int) -> Iterator[KeptNeurons]:
    for file, first in zip(files, firsts, strict=True):
        if kept := KeptNeurons.read(file, bank, of_class):
            yield kept.later(first) if first else kept


def _ranking(file: TensorFile) -> Mapping[str, Any]:
    ranking = file.provenance[RANKING]
    if ranking is None:
        raise DamagedFile(file.path, "ranks no neurons, expected those of the model")
    return ranking  # type: ignore[no-any-return]


def _banks(files: Sequence[TensorFile]) -> tuple[list[BankShape], dict[str, str]]:
    """The banks that all stores have, and by block why there is none."""
    all_of = [{shape.name: shape for shape in BankShape.all_of(file.provenance)} for file in files]
    everywhere = [shape for name, shape in all_of[0].items() if all(name in shapes for shapes in all_of)]
    for file, shapes in zip(files, all_of, strict=True):
        if different := [one for one in everywhere if shapes[one.name] != one]:
            raise DamagedFile(file.path, f"its bank {different[0].name} has another shape than in {files[0].path}")
    absent = {block: reason for file in files for block, reason in file.provenance[ABSENT].items()}
    return everywhere, absent
