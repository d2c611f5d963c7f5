"""The default run against one bare forward pass over the same tokens: the ratios of wall times in one run.

In turn: the bare pass; the tables with every follow-up analysis off, activations kept or counted in the passes; and all
of the default run. The model is fetched and compiled code warm before anything is timed. The bare pass is a process
that imports, loads the model and runs AutoModelForCausalLM once over the run's tokens.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from outlier_features.files.missing import ANALYSES

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


SKIP = [*ANALYSES]
WAYS = {
    "tables, follow-ups off": ("tables", {"skip": SKIP}),
    "the same in the passes": ("tables", {"skip": SKIP, "extract": {"keep_activations": False}}),
    "whole default run": ("all", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {}
        for number, (way, (target, config)) in enumerate(WAYS.items()):
            overlay = folder / f"{number}.yaml"
            overlay.write_text(json.dumps(config))
            commands[way] = [*snakemake, target, "--configfile", overlay.name]
        seconds(commands["whole default run"], folder)
        ratios: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(arguments.repetitions):
            bare = seconds([sys.executable, "-c", BARE], folder)
            print(f"{'bare forward pass':24} {bare:6.1f} s", flush=True)
            for way, command in commands.items():
                for made in ("results", ".snakemake", "resources/corpora"):
                    shutil.rmtree(folder / made)
                ours = seconds(command, folder)
                ratios[way].append(ours / bare)
                print(f"{way:24} {ours:6.1f} s   ratio {ours / bare:5.2f}", flush=True)
        for way, found in ratios.items():
            print(f"{way:24} median ratio {statistics.median(found):5.2f}")


if __name__ == "__main__":
    main()
