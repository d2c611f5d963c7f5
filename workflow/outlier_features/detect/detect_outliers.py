"""Rule detect_outliers: hits and statistics of one chunk of activations that lie in files."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from outlier_features.detect.detection import DetectionFiles, DetectionSettings, detecting, pilots_of
from outlier_features.dump.dumps import DumpRange
from outlier_features.extract.activations import Activations
from outlier_features.files.artifacts import require_equal
from outlier_features.scan.scan import read_ahead
from outlier_features.tokens.tokens import Tokens


def detect_outliers(
    activations: Path | DumpRange,
    first_chunk: Path | DumpRange,
    tokens: Path,
    files: DetectionFiles,
    settings: DetectionSettings,
    *,
    gain_keys: Mapping[str, str] = MappingProxyType({}),
    threads: int,
) -> None:
    """Scan the activations of a chunk; count the hits of sequences that have too many to be listed.

    activations   a file with tensors `{site}.{layer}` of shape (n, T, H), or sequences of a dump
    first_chunk   the run's first such file or sequences: the mean of the first sequence is the pilot of all chunks
    files         what to write
    gain_keys     of a dump, its gains' keys, by site or by another name; empty: those under `rmsnorm_gammas/<module>`

    Raises `InputError` on activations that are not finite or of another run.
    """
    run = Tokens.read(tokens)
    chunk, first = Activations.open(activations, run, gain_keys), Activations.open(first_chunk, run)
    require_equal({"start": 0}, first.provenance, ("start",), str(first_chunk))
    sites = {site: tensors for site, tensors in chunk.sites.items() if site in files.hits}
    pilots = pilots_of({site: first.sites[site] for site in sites}, run.parts[0])
    count = chunk.provenance["stop"] - chunk.provenance["start"]
    with (
        detecting(chunk, pilots, run, settings, files, threads) as detection,
        tqdm(total=count, desc="detect", unit="seq", mininterval=2, file=sys.stderr) as bar,
    ):
        for begin, end in read_ahead(list(sites.values())):
            detection.add(sites, begin, end)
            for tensors in sites.values():
                tensors.drop(begin, end)
            bar.update(end - begin)
