"""The default run's tables against one bare forward pass over the same tokens: the ratio of wall times in one run.

The model is fetched and compiled code warm before anything is timed. The bare pass is a process that imports, loads the
model and runs AutoModelForCausalLM once over the run's tokens.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = "results/smollm2-135m/python-docs"
BARE = f"""
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(2)
tokens = load_file("{RUN}/tokens.safetensors")["tokens"].long()
model = AutoModelForCausalLM.from_pretrained("resources/models/smollm2-135m", dtype=torch.float32).eval()
with torch.inference_mode():
    for batch in tokens.split(8):
        model(batch, use_cache=False)
"""


def seconds(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    tables = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "tables"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds(tables, folder)
        ratios = []
        for _ in range(arguments.repetitions):
            bare = seconds([sys.executable, "-c", BARE], folder)
            for made in ("results", ".snakemake", "resources/corpora"):
                shutil.rmtree(folder / made)
            ours = seconds(tables, folder)
            ratios.append(ours / bare)
            print(f"tables {ours:6.1f} s   bare forward pass {bare:6.1f} s   ratio {ours / bare:.2f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
