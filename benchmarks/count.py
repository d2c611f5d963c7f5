"""`outlier-features count` against reading the same bytes once and against the obvious program, which holds them all.

The dumps are (N, 24, 16, 384), float32 and bfloat16, at N, 2 N and 4 N sequences; 1,024 different sequences come again
and again. Planted: two one-sided dims, 0.45 % of the values above 6. Heavy: 14 more dims and a tail over all dims, 5 %.

count     the command as a user runs it, a process from its start to its end, with exact quartiles and as many threads
          as there are cores; medians, with compiled code and page cache warm
read      numpy's maximum over the mapped file, in a process that is warm: one thread, nothing but the bytes
in core   at N only, once: torch loads the tensor, takes the mask abs(x) > 6, its sum over layers, the mask of the
          locations that 6 of 24 layers hit, that mask's sums by dim, sign, layer and token, the first layers, abs(x)
          of the kept occurrences, sorted for their quartiles, and the quartiles of 2,000,000 random values; `count`
          takes those of all values. Its time is taken without its imports. Where a number of both programs differs,
          the benchmark ends with an error.

Anonymous memory is the largest that was seen in 5 ms steps; the peak counts mapped pages of the file as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, TOKENS, DIMS = 24, 16, 384
BLOCK = 64  # sequences
DTYPES = {"F32": "float32", "BF16": "bfloat16"}
HEADER = 4096  # bytes, with the 8 of its length
PLANTED = ((58, 1), (264, -1))


def activations(rng: np.random.Generator, heavy: bool) -> np.ndarray:
    """Ordinary values, and dims 58 and 264 that are large from layer 1 on and fade; if heavy, outliers everywhere."""
    x = rng.standard_normal((BLOCK, LAYERS, TOKENS, DIMS), dtype=np.float32) * np.float32(0.71)
    if heavy:
        tail = rng.random(x.shape, dtype=np.float32) < 0.02
        x = np.where(tail, np.copysign(6.01 + 3 * np.abs(x), x), x).astype(np.float32)
        locations = rng.random((BLOCK, 1, TOKENS, 14)) < 0.7
        large = 6.01 + rng.exponential(2, (BLOCK, LAYERS, TOKENS, 14))
        x[..., 100:114] = np.where(locations, large, x[..., 100:114])
    layer = np.arange(LAYERS)
    mean = np.where(layer == 0, 3.0, 13.0 - 7.5 * np.clip((layer - 1) / 22, 0, None)).reshape(1, LAYERS, 1)
    for dim, sign in PLANTED:
        drift = rng.standard_normal((BLOCK, 1, TOKENS)) * 0.9
        x[..., dim] = sign * np.clip(mean + drift + 0.15 * x[..., dim], 0.1, None)
    return x


class Dump:
    """A dump that grows."""

    def __init__(self, path: Path, dtype: str, heavy: bool):
        self.path, self.dtype, self.sequences = path, dtype, 0
        rng = np.random.default_rng(0)
        self._blocks = [self._stored(activations(rng, heavy)) for _ in range(16)]
        path.write_bytes(b"")

    def _stored(self, x: np.ndarray) -> np.ndarray:
        if self.dtype == "F32":
            return x
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even

    @property
    def nbytes(self) -> int:
        return self.sequences * self._blocks[0][0].nbytes

    def grow(self, sequences: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(HEADER + self.nbytes)
            for start in range(self.sequences, sequences, BLOCK):
                file.write(self._blocks[start // BLOCK % len(self._blocks)].data)
            self.sequences = sequences
            shape = [sequences, LAYERS, TOKENS, DIMS]
            header = json.dumps({"acts": {"dtype": self.dtype, "shape": shape, "data_offsets": [0, self.nbytes]}})
            file.seek(0)
            file.write((HEADER - 8).to_bytes(8, "little") + header.ljust(HEADER - 8).encode())

    def read(self) -> tuple[float, float]:
        """Wall and CPU seconds of numpy's maximum over the file."""
        values = np.memmap(self.path, self._blocks[0].dtype, "r", HEADER)
        wall, cpu = time.perf_counter(), time.process_time()
        values.max()
        return time.perf_counter() - wall, time.process_time() - cpu


@dataclass(frozen=True)
class Run:
    wall: float  # seconds
    cpu: float  # seconds
    anonymous: float  # MiB
    peak: float  # MiB
    found: dict[str, Any]


def run(arguments: list[str], cwd: Path) -> Run:
    """Run Python with some arguments; what it prints is JSON."""
    with (cwd / "out.json").open("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=out)
        anonymous = peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            now, highest = _memory(process.pid)
            anonymous, peak = max(anonymous, now), max(peak, highest)
            time.sleep(0.005)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {' '.join(arguments)} ended with status {process.returncode}")
        out.seek(0)
        found = json.load(out)
    return Run(wall, usage.ru_utime + usage.ru_stime, anonymous / 1024, peak / 1024, found)


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous memory now and the peak so far, KiB; the system's record of a child counts its parent's, too."""
    with open(f"/proc/{pid}/status") as status:
        sizes = {line.split()[0]: int(line.split()[1]) for line in status if line.startswith(("RssAnon", "VmHWM"))}
    return sizes.get("RssAnon:", 0), sizes.get("VmHWM:", 0)  # none once it ended


def in_core(path: Path) -> None:
    """The obvious program; prints what it found, and its wall and CPU seconds."""
    import torch
    from safetensors.torch import load_file

    wall, cpu = time.perf_counter(), time.process_time()
    x = load_file(path)["acts"]
    mask = x.abs() > 6
    over = mask.sum()
    kept = mask.sum(dim=1) >= 6
    mask = mask & kept.unsqueeze(1)
    dims, layers, tokens = mask.sum(dim=(0, 1, 2)), mask.sum(dim=(0, 2, 3)), mask.sum(dim=(0, 1, 3))
    positive, negative = (mask & (x > 0)).sum(dim=(0, 1, 2)), (mask & (x < 0)).sum(dim=(0, 1, 2))
    first_layers = mask.to(torch.uint8).argmax(dim=1)[kept].bincount(minlength=LAYERS)
    magnitudes = x.abs()[mask].float().sort().values
    places = (len(magnitudes) - 1) * torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    drawn = x.flatten()[torch.randint(x.numel(), (2_000_000,))].float()
    quartiles = drawn.quantile(torch.tensor([0.25, 0.5, 0.75]))
    low, high = magnitudes[places.floor().long()].double(), magnitudes[places.ceil().long()].double()
    found = {
        "elements_over_threshold": int(over),
        "locations": int(kept.sum()),
        "dims": {
            dim: [int(dims[dim]), int(positive[dim]), int(negative[dim])] for dim in dims.nonzero().flatten().tolist()
        },
        "layers": layers.tolist(),
        "first_layers": first_layers.tolist(),
        "tokens": tokens.tolist(),
        "magnitudes": (low + (high - low) * places.frac()).tolist(),
        "quartiles": quartiles.tolist(),
    }
    print(json.dumps({**found, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))


def require_same(counted: dict[str, Any], obvious: dict[str, Any]) -> None:
    mine = {
        **{name: counted[name] for name in ("elements_over_threshold", "locations")},
        **{name: [row["count"] for row in counted[name]] for name in ("layers", "first_layers", "tokens")},
        "dims": {str(row["dim"]): [row["count"], row["positive"], row["negative"]] for row in counted["dims"]},
    }
    for name, value in mine.items():
        if value != obvious[name]:
            sys.exit(f"error: {name} is {value}, in core {obvious[name]}")
    magnitudes = [counted["magnitudes"][name] for name in ("min", "q1", "median", "q3", "max")]
    quartiles = [counted["quantiles"][name] for name in ("q1", "median", "q3")]
    np.testing.assert_allclose(magnitudes, obvious["magnitudes"], rtol=1e-12)
    np.testing.assert_allclose(quartiles, obvious["quartiles"], atol=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4096, help="N, a multiple of 64; the largest file has 4 N")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the files, up to 9 GiB (default: TMPDIR)")
    parser.add_argument("--in-core", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_core:
        in_core(arguments.in_core)
        return
    print(f"{'dump':17} {'N':>6} {'GiB':>5}  {'program':8}", end="")
    print(f"{'wall s':>8} {'CPU s':>7} {'wall / read':>12} {'CPU / read':>11} {'anonymous MiB':>14} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for dtype in DTYPES:
            for heavy in (False, True):
                measure(Dump(Path(folder) / "dump.safetensors", dtype, heavy), heavy, arguments)


def measure(dump: Dump, heavy: bool, arguments: argparse.Namespace) -> None:
    folder = dump.path.parent
    command = ["-m", "outlier_features.command.main", "count", "--input", str(dump.path), "--key", "acts", "--quiet"]
    for factor in (1, 2, 4):
        dump.grow(factor * arguments.sequences)
        name = f"{'heavy' if heavy else 'planted'} {DTYPES[dump.dtype]}"
        title = f"{name:17} {dump.sequences:6} {dump.nbytes / 2**30:5.2f}"
        dump.read(), run([*command, "--format", "json"], folder)
        reads, runs = [], []
        for _ in range(arguments.repetitions):
            reads.append(dump.read())
            runs.append(run([*command, "--format", "json"], folder))
        read_wall, read_cpu = np.median(reads, axis=0)
        wall, cpu = np.median([(one.wall, one.cpu) for one in runs], axis=0)

        def show(program: str, wall: float, cpu: float, run: Run | None, note: str = "") -> None:
            memory = f"{run.anonymous:14.0f} {run.peak:9.0f}" if run else ""
            ratios = f"{wall / read_wall:12.1f} {cpu / read_cpu:11.1f}"  # noqa: B023
            print(f"{title}  {program:8}{wall:8.2f} {cpu:7.2f} {ratios} {memory}{note}", flush=True)  # noqa: B023

        show("read", read_wall, read_cpu, None)
        show("count", wall, cpu, max(runs, key=lambda one: one.anonymous))
        if factor == 1:
            obvious = run([__file__, "--in-core", str(dump.path)], folder)
            require_same(runs[0].found["acts"], obvious.found)
            show("in core", obvious.found["wall"], obvious.found["cpu"], obvious,
                 f"   count is {obvious.found['wall'] / wall:.0f} times as fast")  # fmt: skip


if __name__ == "__main__":
    main()
