"""Ranking neurons against the obvious programs, and an extraction that ranks against one that does not.

Lists of the largest k of each neuron are kept while batches of sequences come, each with its largest value of every
neuron; CPU seconds on one thread, the best of some repetitions, in turn. Where values differ in the end, the benchmark
ends with an error.

sorted    a batch is sorted from the largest row on; row by row, what is larger than the smallest of a neuron's list
          takes its place, until a row changes nothing: the loop of notebooks on max-activating examples
topk      torch.topk of the lists and the batch put together
ours      `insert_rows` of the ranking

The extraction is of a finished run, or of the default run, which is made first: jobs in processes of their own, on one
thread, in turn. "pass" is the CPU time of the passes alone, without the load of the model and the imports.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUN, SOURCE = "results/smollm2-135m/python-docs", "resources/models/smollm2-135m/source.json"
RANKING = {"examples": 20, "high_norm": 10.0}
LEAST = 10.0  # times as fast as the loop
MOST = 1.15  # of an extraction that ranks, times one that does not


def sorted_loop(batches: Any, k: int) -> Any:
    import torch

    lists = torch.full((k, batches[0].shape[1]), -torch.inf)
    places = torch.full(lists.shape, -1, dtype=torch.long)
    begin = 0
    for batch in batches:
        values, order = batch.sort(dim=0, descending=True)
        for row, numbers in zip(values, order + begin, strict=True):
            least, where = lists.min(dim=0)
            larger = row > least
            lists[where[larger], larger] = row[larger]
            places[where[larger], larger] = numbers[larger]
            if not larger.any():
                break
        begin += len(batch)
    return lists.sort(dim=0, descending=True).values


def topk(batches: Any, k: int) -> Any:
    import torch

    lists = torch.full((k, batches[0].shape[1]), -torch.inf)
    places = torch.full(lists.shape, -1, dtype=torch.long)
    begin = 0
    for batch in batches:
        numbers = torch.arange(begin, begin + len(batch))[:, None].expand_as(batch)
        lists, order = torch.cat([lists, batch]).topk(k, dim=0)
        places = torch.cat([places, numbers]).gather(0, order)
        begin += len(batch)
    return lists


def ours(batches: Any, k: int) -> Any:
    import numpy as np
    import torch

    from outlier_features.neurons.neurons_kernel import insert_rows, new_store

    neurons = batches[0].shape[1]
    store, begin = new_store(neurons, k), 0
    tokens = np.zeros(batches[0].shape, np.int32)
    for batch in batches:
        sequences = np.arange(begin, begin + len(batch))
        insert_rows(batch.numpy(), tokens, sequences, store.value[0], store.place[0], store.least[0], 0, neurons)
        begin += len(batch)
    return torch.from_numpy(store.value[0].T)


def cpu_seconds(program: Callable[[Any, int], Any], batches: Any, k: int) -> tuple[float, Any]:
    before = time.process_time()
    found = program(batches, k)
    return time.process_time() - before, found


def lists(repetitions: int) -> Iterator[str]:
    import torch

    torch.set_num_threads(1)
    ours([torch.zeros(2, 4)], 2)  # compiled before it is timed
    for neurons, rows in ((2048, 8192), (16384, 2048)):
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(rows, neurons, generator=generator)
        for data, values in (("random", random), ("ascending", random.sort(dim=0).values)):
            for k in (10, 20):
                for size in (16, 64):
                    batches = list(values.split(size))
                    taken: dict[str, list[float]] = {"sorted": [], "topk": [], "ours": []}
                    found = {}
                    for _ in range(repetitions):
                        for program in (sorted_loop, topk, ours):
                            name = program.__name__.removesuffix("_loop")
                            seconds, found[name] = cpu_seconds(program, batches, k)
                            taken[name].append(seconds)
                    if not all(torch.equal(found["ours"], other) for other in found.values()):
                        sys.exit(f"the lists differ at {neurons} neurons, k {k}, batches of {size}, {data}")
                    best = {name: min(times) for name, times in taken.items()}
                    ratios = {name: best[name] / best["ours"] for name in ("sorted", "topk")}
                    yield (
                        f"{neurons:6} neurons  k {k}  batch {size}  {data:9}  ours {best['ours'] * 1e3:6.0f} ms  "
                        f"sorted {ratios['sorted']:5.1f}  topk {ratios['topk']:5.1f}"
                        + ("" if ratios["sorted"] >= LEAST else f"  less than {LEAST:g} times")
                    )


def extract(run: Path, source: Path, ranking: dict[str, Any] | None, folder: Path) -> None:
    """One job; prints the CPU seconds of its passes."""
    from outlier_features.extract.extract_activations import extract_activations
    from outlier_features.extract.passes import Passes
    from outlier_features.files.tensorfile import TensorFile

    provenance = TensorFile(run / "losses" / next((run / "losses").iterdir()).name).provenance
    run_passes, spent = Passes.run, []

    def timed(self: Passes, *arguments: Any) -> None:
        before = time.process_time()
        run_passes(self, *arguments)
        spent.append(time.process_time() - before)

    Passes.run = timed  # type: ignore[method-assign]
    extract_activations(
        source, run / "tokens.safetensors",
        *(folder / kind for kind in ("activations", "losses", "neurons", "channels")), start=0,
        stop=provenance["sequences"], sites=provenance["sites"], batch_size=8, dtype=provenance["dtype"], device="cpu",
        attention=provenance["attention"], threads=1, trust_remote_code=False, part=provenance["part"],
        placement="one", ranking=ranking,
    )  # fmt: skip
    print(spent[0])


def jobs(run: Path, source: Path, repetitions: int) -> Iterator[str]:
    taken: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    for repetition in range(repetitions + 1):
        for job, times in taken.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, __file__, "--run", str(run), "--source", str(source), "--job", job]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            if repetition:  # the first may compile
                times.append((whole, float(done.stdout.split()[-1])))
                yield f"extraction {job:8} job {whole:6.1f} s  passes {times[-1][1]:6.1f} s"
    for part, name in enumerate(("job", "passes")):
        median = {job: statistics.median(one[part] for one in times) for job, times in taken.items()}
        ratio = median["with"] / median["without"]
        yield f"{name}: with / without {ratio:5.3f}" + ("" if ratio <= MOST else f"  more than {MOST:g} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a finished run's results")
    parser.add_argument("--source", type=Path, help="its model's source.json, whose location is below this folder")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=("lists", "extraction"))
    parser.add_argument("--job", choices=("without", "with"), help="do this one alone, and measure nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.job:
            ranking = RANKING if arguments.job == "with" else None
            extract(arguments.run, arguments.source, ranking, folder)
            return
        if arguments.only != "extraction":
            for line in lists(arguments.repetitions):
                print(line, flush=True)
        if arguments.only == "lists":
            return
        if not arguments.run:
            made = subprocess.run(
                [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2",
                 "--until", "extract_activations"],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                sys.exit(made.stderr)
        run, source = arguments.run or folder / RUN, arguments.source or folder / SOURCE
        for line in jobs(run, source, arguments.repetitions):
            print(line, flush=True)


if __name__ == "__main__":
    main()
