"""Rule detect_in_passes: hits and statistics of a chunk from a model's passes, whose activations are not written."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Unpack

from outlier_features.detect.detection import Detection, DetectionFiles, DetectionSettings, detecting, pilots_of
from outlier_features.extract.activations import Activations
from outlier_features.extract.block_by_block import place_beside
from outlier_features.extract.passes import Passes
from outlier_features.extract.proven_sites import Array, Done, Write
from outlier_features.extract.request import Request
from outlier_features.files.tensors_in_memory import TensorsInMemory
from outlier_features.model.loading import Loading
from outlier_features.neurons.ranked_at import Ranking
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.tokens.tokens import Tokens


def detect_in_passes(
    source: Path,
    tokens: Path,
    losses: Path,
    neurons: Path,
    channels: Path,
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
    recording: bool = False,
    scoring: bool = True,
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
        request.write_nothing(losses, neurons, channels)
        empty = Activations({}, {**request.run.provenance, **request.place})
        with detecting(empty, {}, request.run, settings, files, threads):
            return
    passes = Passes.of_fetched(
        request,
        batch_size=batch_size,
        kept=place_beside(losses),
        log=log or losses,
        ranking=ranking,
        recording=recording,
        scoring=scoring,
        **loading,
    )
    at_once = max(passes.most_at_once, min(batch_size, first_stop))
    first = (lambda write: passes.run_first(first_stop, write)) if request.start else None
    with passes.loss_file(losses) as loss_file:
        count_in_passes(passes, request.run, files, settings, loss_file.write, at_once, threads, first)
    passes.write_beside(neurons, channels)
    passes.finish()


class Counted(Protocol):
    """Passes of a model: see `Passes`, which are some."""

    provenance: dict[str, Any]
    gains: dict[str, Array]

    @property
    def shapes(self) -> Mapping[str, tuple[str, tuple[int, ...]]]: ...

    def run(self, write: Write, write_losses: Write, done: Done) -> None: ...


def count_in_passes(
    passes: Counted,
    run: Tokens,
    files: DetectionFiles,
    settings: DetectionSettings,
    write_losses: Write,
    at_once: int,
    threads: int,
    first: Callable[[Write], None] | None = None,
    progress: Callable[[int], object] = lambda sequences: None,
) -> None:
    """Run all sequences of `passes` and write the hits and statistics of their activations to `files`.

    at_once   the most sequences of a pass
    first     runs the first sequences of the run, where the passes do not begin with them: their means are the pilot
    progress  told of how many more are done

    Raises `InputError` where an activation is not finite.
    """
    provenance = passes.provenance
    shapes = {name: (dtype, (at_once, *shape[1:])) for name, (dtype, shape) in passes.shapes.items()}
    memory = TensorsInMemory(f"{provenance['model']}: a pass", shapes)
    tensors = {site: SiteTensors.per_layer(memory, site) for site in provenance["sites"]}
    chunk = Activations({site: one for site, one in tensors.items() if one}, provenance, dict(passes.gains))

    def write(name: str, row: int, values: Array) -> None:
        memory.write(name, 0, values)

    with ExitStack() as opened:
        detection: Detection | None = None

        def detect() -> Detection:
            pilots = pilots_of(chunk.sites, run.parts[0])
            return opened.enter_context(detecting(chunk, pilots, run, settings, files, threads))

        def done(rows: slice) -> None:
            nonlocal detection
            detection = detection or detect()
            detection.add(chunk.sites, 0, rows.stop - rows.start)
            progress(rows.stop - rows.start)

        if first:
            first(write)
            detection = detect()
        passes.run(write, write_losses, done)
