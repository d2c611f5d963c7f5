"""Rule record_examples: what the pages of a gallery show, from one more pass of the model over the run."""

import uuid
from pathlib import Path
from typing import Unpack

import torch
import transformers

from outlier_features import __version__
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.missing import require_had
from outlier_features.files.run_files import RunFiles
from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tables import Table, provenance_of, write_table
from outlier_features.gallery.choose_pages import Wanted, choose_pages, known_neurons, selected_dims
from outlier_features.gallery.describe_pages import describe_pages
from outlier_features.gallery.gallery_schema import GALLERY_DIMS, GALLERY_EXAMPLES, GALLERY_NEURONS, GALLERY_VALUES
from outlier_features.gallery.logit_effects import LogitEffects
from outlier_features.gallery.record_values import ValueRecorder
from outlier_features.gallery.sequence_values import SequenceValues
from outlier_features.gallery.written_weights import WrittenWeights
from outlier_features.model.loading import Loading
from outlier_features.model.models import load_model
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.origin.origin_schema import ORIGIN_NEURONS
from outlier_features.tokens.token_text import read_texts
from outlier_features.tokens.tokens import Tokens

AT_ONCE = 2**30  # bytes of recorded values that are held


def record_examples(
    source: Path,
    tokens: Path,
    texts: Path,
    dims: Path,
    neurons: Path,
    statistics: Path,
    origin_neurons: Path,
    gallery_neurons: Path,
    gallery_examples: Path,
    gallery_values: Path,
    gallery_dims: Path,
    *,
    wanted: Wanted,
    kurtosis: int,
    most_dims: int,
    sequences: int,
    seed: int,
    at_once: int = AT_ONCE,
    **loading: Unpack[Loading],
) -> None:
    """Choose the neurons and dims that get a page, and record what it shows of them.

    source, tokens, texts, dims, neurons, statistics, origin_neurons   of the run
    wanted, kurtosis                                                   see `choose_pages`
    most_dims                                                          that get a page, of those that rules selected
    sequences                                                          first ones of which dims and norms are recorded
    seed                                                               of the draw of typical examples
    at_once                                                            bytes of values of neurons that are held: of more
                                                                       neurons some are recorded at a time, each time in
                                                                       passes of their own

    Writes the tables `gallery_neurons`, `gallery_examples`, `gallery_values` and `gallery_dims`.

    Raises `InputError` where a file is of another run or lacks what is asked, or the model's values are not the run's.
    """
    run = Tokens.read(tokens)
    spelled = read_texts(texts, run)
    dim_rows, about = run.files.table(dims, DIMS)
    record = run.files.model(source)
    origin_rows = run.files.rows(origin_neurons, ORIGIN_NEURONS)
    for path, table in ((neurons, NEURONS), (statistics, NEURON_STATISTICS)):
        _require_had(run.files, path, table)
    known = known_neurons(statistics, neurons)
    chosen_dims = selected_dims(dim_rows, about["rules"], most_dims)
    values = SequenceValues.of(load_model(Path(record["location"]), **loading), run)
    weights = WrittenWeights(values.loaded, values.blocks, values.experts)
    pages = choose_pages(known, chosen_dims, origin_rows, weights, wanted=wanted, kurtosis=kurtosis)
    try:
        effects, no_logits = LogitEffects(values.loaded, values.blocks, values.experts), None
    except InputError as error:
        effects, no_logits = None, error.found
    provenance = {
        **about,
        "gallery": {
            "neurons": wanted,
            "kurtosis": kurtosis,
            "dims": chosen_dims,
            "sequences": min(sequences, len(run.tokens)),
            "seed": seed,
        },
        "no_logits": no_logits,
        "device": values.loaded.device.type,
        "threads": [torch.get_num_threads()],
        "job": uuid.uuid4().hex,
        "package_version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with (
        TableWriter(gallery_examples, GALLERY_EXAMPLES, provenance) as example_rows,
        TableWriter(gallery_values, GALLERY_VALUES, provenance) as value_rows,
    ):
        recorder = ValueRecorder(values, pages, spelled, neurons, seed=seed, at_once=at_once)
        recorder.run(example_rows.write, value_rows.write, chosen_dims, sequences)
        provenance["neurons_that_differ"] = recorder.differing
        described = describe_pages(pages, chosen_dims, weights, effects)
        described = described.with_columns(**recorder.nearest())
        write_table(gallery_neurons, described, GALLERY_NEURONS, provenance)
        write_table(gallery_dims, recorder.dim_rows(), GALLERY_DIMS, provenance)


def _require_had(files: RunFiles, path: Path, table: Table) -> None:
    """Raise `InputError` where a table is of another run, or stands for what could not be had."""
    found = provenance_of(path, table)
    files.require(found, path)
    require_had(found)
