"""Detection against reading the same bytes once with numpy, in one run: ratios of CPU time, and anonymous memory.

The data are planted: (N, 24, 16, 384) float32, two one-sided dims, 0.45 % of the values at or above 6. Every mode is a
process of its own with compiled code warm, in which reading and detecting take turns, so that both find the caches in
the same state; the ratio is that of the medians. Reading means: map the file and take numpy's maximum of all values.
Hits stay in memory but for the modes that write them to Parquet, and that count far more of them.

The first mode is a bound: no detection with a histogram can be faster.
The ratios are of a file just written. One that left the page cache and was read again lies there in smaller pieces, and
mapping these takes longer than reading them, so that every ratio falls.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit

from outlier_features.detect.dense_rows import DenseRows, groups_of
from outlier_features.detect.detection import hits_frame, scaled_frame
from outlier_features.detect.hits_schema import HITS, SCALED_HITS
from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tensorfile import TensorFile, TensorFileWriter
from outlier_features.scan import scan_kernel
from outlier_features.scan.scales import Scale
from outlier_features.scan.scan import Hits, pilot_means, scan
from outlier_features.scan.site_tensors import SiteTensors

LAYERS, TOKENS, DIMS = 24, 16, 384
PROVENANCE = {"start": 0}


def plant(path: Path, sequences: int) -> None:
    """Ordinary values, and dims 58 and 264 that are large from layer 1 on and fade."""
    rng = np.random.default_rng(0)
    layer = np.arange(LAYERS)
    mean = np.where(layer == 0, 3.0, 13.0 - 7.5 * np.clip((layer - 1) / 22, 0, None)).reshape(1, LAYERS, 1)
    with TensorFileWriter(path, {"acts": ("F32", (sequences, LAYERS, TOKENS, DIMS))}, PROVENANCE) as writer:
        for start in range(0, sequences, 64):
            x = rng.standard_normal((64, LAYERS, TOKENS, DIMS), dtype=np.float32) * np.float32(0.71)
            for dim, sign in ((58, 1), (264, -1)):
                drift = rng.standard_normal((64, 1, TOKENS)) * 0.9
                x[..., dim] = sign * np.clip(mean + drift + 0.15 * x[..., dim], 0.1, None)
            writer.write("acts", start, x)


def read(path: Path, folder: Path) -> None:
    TensorFile(path).array("acts").max()


def detector(
    threads: int, profile: bool, histogram: bool = True, write: bool = False, scales: tuple[str, ...] = ()
) -> Callable[[Path, Path], None]:
    def detect(path: Path, folder: Path) -> None:
        tensors = SiteTensors.stacked(TensorFile(path), "acts")
        parts = np.ones((tensors.shape[0], TOKENS), np.uint8)
        gains = np.full((LAYERS, DIMS), 2.0)
        scaled = {name: Scale(4.0, gains if name == "gain" else None) for name in scales}
        with (
            TableWriter(folder / "hits.parquet", HITS, PROVENANCE) as writer,
            TableWriter(folder / "scaled.parquet", SCALED_HITS, PROVENANCE) as scaled_writer,
        ):
            scan(
                tensors, parts, pilot_means(tensors, parts[0]), 6.0,
                on_hits=(lambda hits: writer.write(hits_frame(hits, 0))) if write else keep,
                scaled=scaled,
                on_scaled_hits=(lambda hits: scaled_writer.write(scaled_frame(hits, "acts", 0))) if write else keep,
                threads=threads, profile=profile, histogram=histogram,
            )  # fmt: skip

    return detect


def count(path: Path, folder: Path) -> None:
    """Half of all values are hits, too many to be listed."""
    tensors = SiteTensors.stacked(TensorFile(path), "acts")
    parts, floor = np.ones((tensors.shape[0], TOKENS), np.uint8), 0.5
    pilot = pilot_means(tensors, parts[0])
    statistics = scan(tensors, parts, pilot, floor, on_hits=keep, max_density=0.02, profile=False)
    counted = {"dettmers": {"sites": ["attn_norm"], "thresholds": [0.5, 4.0, 5.0, 6.0, 7.0, 8.0]}}
    groups = groups_of(["attn_norm"], {}, {"pairs": counted, "listed": {}})
    sites, listed = {"attn_norm": tensors}, {"attn_norm": statistics.listed.astype(bool)}
    rows = DenseRows(sites, parts, listed, groups, {"attn_norm": floor}, ["all"])
    for sequence in rows.sequences:
        rows.of(sequence, sequence)


@njit(nogil=True)
def add_to_histogram(raw, histogram):  # type: ignore[no-untyped-def]
    for begin in range(0, raw.size, 1 << 12):
        some = raw[begin : begin + (1 << 12)]
        scan_kernel._add_to_histogram(some, some, histogram)


def histogram_alone(path: Path, folder: Path) -> None:
    """Nothing but the increments: memory takes one a cycle at most."""
    add_to_histogram(TensorFile(path).array("acts").reshape(-1).view(np.uint32), np.zeros(1 << 16, np.uint32))


def keep(hits: Hits) -> None:
    """Hits that stay in memory."""


MODES = {
    "a histogram and nothing else": histogram_alone,
    "counts and sums": detector(1, profile=False, histogram=False),
    "with histogram": detector(1, profile=False),
    "with histogram, 2 threads": detector(2, profile=False),
    "with histogram, hits written": detector(1, profile=False, write=True),
    "with histogram, hits counted": count,
    "with medians and token kurtosis": detector(1, profile=True),
    "and hits against both RMS": detector(1, profile=True, scales=("token_rms", "layer_rms")),
    "and hits against a gain": detector(1, profile=True, scales=("gain",)),
    "and both RMS, all hits written": detector(1, profile=True, write=True, scales=("token_rms", "layer_rms")),
}


def anonymous_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def seconds(work: Callable[[Path, Path], None], path: Path, folder: Path) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work(path, folder)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(mode: str, path: Path, repetitions: int) -> dict[str, float]:
    """Medians of CPU and wall seconds of reading and of a mode, as ratios, and the peak of anonymous memory."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mib())

    with tempfile.TemporaryDirectory() as folder:
        MODES[mode](path, Path(folder))
        pairs = [
            (seconds(read, path, Path(folder)), seconds(MODES[mode], path, Path(folder))) for _ in range(repetitions)
        ]
        watcher = threading.Thread(target=watch)  # only now: it costs time
        watcher.start()
        MODES[mode](path, Path(folder))
        done.set()
        watcher.join()
    base, found = (np.median(column, axis=0) for column in zip(*pairs, strict=True))
    return {
        "cpu": found[0] / base[0],
        "wall": found[1] / base[1],
        "anonymous_mib": peak[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1024, help="N; also measured at 2 N and 4 N")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("MODE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mode, path = arguments.measure
        print(json.dumps(measure(mode, Path(path), arguments.repetitions)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'N':>6}  {'mode':32} {'CPU / read':>10} {'wall / read':>11} {'anonymous MiB':>14}")
        for factor in (1, 2, 4):
            path = Path(folder) / "planted.safetensors"
            plant(path, factor * arguments.sequences)
            for mode in MODES:
                command = [sys.executable, __file__, "--repetitions", str(arguments.repetitions), "--measure", mode]
                found = json.loads(subprocess.run([*command, str(path)], check=True, capture_output=True).stdout)
                print(
                    f"{factor * arguments.sequences:6}  {mode:32} {found['cpu']:10.2f} {found['wall']:11.2f} "
                    f"{found['anonymous_mib']:14.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
