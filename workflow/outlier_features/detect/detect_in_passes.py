"""Rule detect_in_passes: hits and statistics of a chunk from a model's passes, whose activations are not written."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

from outlier_features.detect.detection import Detection, DetectionFiles, DetectionSettings, detecting, pilots_of
from outlier_features.extract.activations import Activations
from outlier_features.extract.block_by_block import place_beside
from outlier_features.extract.passes import Array, Passes
from outlier_features.extract.request import Request
from outlier_features.files.tensors_in_memory import TensorsInMemory
from outlier_features.model.loading import Loading
from outlier_features.neurons.ranked_at import Ranking
from outlier_features.scan.site_tensors import SiteTensors


def detect_in_passes(
    source: Path,
    tokens: Path,
    losses: Path,
    neurons: Path,
    files: DetectionFiles,
    settings: DetectionSettings,
    *,
    start: int,
    stop: int,
    first_stop: int,
    sites: list[str],
    batch_size: int,
    sample: Mapping[str, Any] | None = None,
    ranking: Ranking | None = None,
    log: Path | None = None,
    **loading: Unpack[Loading],
) -> None:
    """Run the sequences from `start` to before `stop` through a model, and count each pass's activations.

    first_stop   one past the last sequence of the run's first chunk

    The other arguments are those of `extract_activations` and `detect_outliers`, whose files these are, but for the
    activations: in memory lie those of one pass. A chunk that does not begin the run first runs the run's first
    sequences, whose means are the pilot of all chunks.

    Raises `InputError` as those do.
    """
    request = Request.read(source, tokens, start=start, stop=stop, sites=sites, sample=sample)
    threads = loading["threads"]
    if request.start == request.stop:
        request.write_nothing(losses, neurons)
        empty = Activations({}, {**request.run.provenance, **request.place})
        with detecting(empty, {}, request.run, settings, files, threads):
            return
    passes = Passes(
        request, batch_size=batch_size, kept=place_beside(losses), log=log or losses, ranking=ranking, **loading
    )
    at_once = max(passes.most_at_once, min(batch_size, first_stop))
    shapes = {name: (dtype, (at_once, *shape[1:])) for name, (dtype, shape) in passes.shapes.items()}
    memory = TensorsInMemory(f"{request.model['location']}: a pass", shapes)
    tensors = {site: SiteTensors.per_layer(memory, site) for site in passes.provenance["sites"]}
    chunk = Activations({site: one for site, one in tensors.items() if one}, passes.provenance, dict(passes.gains))

    def write(name: str, row: int, values: Array) -> None:
        memory.write(name, 0, values)

    with ExitStack() as opened:
        loss_file = opened.enter_context(passes.loss_file(losses))
        detection: Detection | None = None

        def detect() -> Detection:
            pilots = pilots_of(chunk.sites, request.run.parts[0])
            return opened.enter_context(detecting(chunk, pilots, request.run, settings, files, threads))

        def done(rows: slice) -> None:
            nonlocal detection
            detection = detection or detect()
            detection.add(chunk.sites, 0, rows.stop - rows.start)

        if request.start:
            passes.run_first(first_stop, write)
            detection = detect()
        passes.run(write, loss_file.write, done)
    passes.write_neurons(neurons)
    passes.finish()
