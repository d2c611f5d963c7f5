"""Jobs that run a model once more, against its extraction: wall seconds of whole jobs, in turn.

Of the run that a configuration describes, one model on one corpus in one chunk, which is made first. Each job is
Snakemake's own: a process with its imports and its load of the model, timed by Snakemake. Ratios are of medians.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRACTION = "extract_activations"
# By rule, an output of it.
RULES = {
    EXTRACTION: "activations/*.safetensors",
    "ablate_dims": "ablation.parquet",
    "quantize_sites": "quantization.parquet",
    "record_examples": "gallery_values.parquet",
    "map_attention": "sinks.parquet",
    "trace_origin": "origin.parquet",
}


def snakemake(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"error: {folder}/{pattern}: found {len(found)} files, expected one of one model and one chunk")
    return found[0]


def seconds(folder: Path, rule: str, config: list[str]) -> float:
    """Of one more run of the rule's job."""
    output = only(folder, f"results/*/*/{RULES[rule]}").relative_to(folder)
    snakemake(folder, str(output), "--force", "--allowed-rules", rule, *config)
    with only(folder, f"results/benchmarks/{rule}/**/*.tsv").open() as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, help="of the run")
    parser.add_argument("--run", type=Path, help="a folder in which it is made already")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=[*RULES])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    config = ["--configfile", str(arguments.configfile.resolve())] if arguments.configfile else []
    rules = dict.fromkeys([EXTRACTION, *arguments.rules])
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.run or Path(name)
        snakemake(folder, "tables", *config)
        taken: dict[str, list[float]] = {rule: [] for rule in rules}
        for _ in range(arguments.repetitions):
            for rule, times in taken.items():
                times.append(seconds(folder, rule, config))
                print(f"{rule:20} {times[-1]:7.2f} s", flush=True)
        median = {rule: statistics.median(times) for rule, times in taken.items()}
        for rule in rules:
            print(f"{rule:20} {median[rule]:7.2f} s   ratio {median[rule] / median[EXTRACTION]:5.2f}")


if __name__ == "__main__":
    main()
