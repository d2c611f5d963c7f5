"""Rule rank_neurons: for every neuron its statistics, and the sequences that make it largest and smallest."""

from collections.abc import Sequence
from pathlib import Path

from outlier_features.files.artifacts import holds_sequences
from outlier_features.files.run_files import require_whole
from outlier_features.files.tensorfile import TensorFile
from outlier_features.neurons.merge_stores import merge
from outlier_features.neurons.neuron_tables import write_neuron_tables
from outlier_features.neurons.neurons_schema import WITHOUT_HIGH_NORM
from outlier_features.populations import populations_of
from outlier_features.tokens.tokens import Tokens


def rank_neurons(
    chunks: Sequence[Path], tokens: Path, neurons: Path, neuron_statistics: Path, store: Path, *, examples: int
) -> None:
    """Merge what the run's chunks left of its neurons to one store, and write its tables.

    chunks     files of the extraction, see `kept_neurons`
    examples   sequences in a list: at most as many as the chunks were ranked with

    Memory grows with the neurons of a block, not with sequences or chunks. Raises `InputError` where the files are
    damaged or of another run, and where the neurons could not be ranked.
    """
    run = Tokens.read(tokens)
    files = [file for file in map(run.files.tensors, chunks) if holds_sequences(file.provenance)]
    require_whole([(file.path, file.provenance) for file in files])
    populations = [*populations_of(run.parts), WITHOUT_HIGH_NORM]
    provenance = {**files[-1].provenance, "start": 0, "populations": populations}
    merge(files, [0] * len(files), store, provenance, examples)
    merged = TensorFile(store)
    write_neuron_tables(merged, neurons, neuron_statistics, populations, merged.provenance)
