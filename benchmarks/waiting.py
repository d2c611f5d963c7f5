"""A forward pass on an idle machine and beside one busy process, by how torch's threads wait for one another.

Each way is a process of its own, since OpenMP reads its settings once; all ways are measured in turn, round by round,
on a random Llama of 135M parameters. Wall seconds of a pass of 256 tokens, medians, and their ratio to the threads that
spin on an idle machine. Nothing else should run.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections import defaultdict

PASS = """
import sys, time, torch
from transformers import LlamaConfig, LlamaModel
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                     num_key_value_heads=3, vocab_size=49152)
model, ids = LlamaModel(config).eval(), torch.arange(256)[None]
print(flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    with torch.inference_mode():
        model(ids, use_cache=False)
    print(time.perf_counter() - start, flush=True)
"""
BOTH = len(os.sched_getaffinity(0))
WAYS = {
    f"spinning, {BOTH} threads": ({}, BOTH),
    **{f"GOMP_SPINCOUNT={n}, {BOTH} threads": ({"GOMP_SPINCOUNT": str(n)}, BOTH) for n in (100, 1000, 10000, 100000)},
    f"OMP_WAIT_POLICY=passive, {BOTH} threads": ({"OMP_WAIT_POLICY": "passive"}, BOTH),
    "1 thread": ({}, 1),
}


def spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    models = {
        way: subprocess.Popen([sys.executable, "-c", PASS, str(threads)], env=plain | settings, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for way, (settings, threads) in WAYS.items()
    }  # fmt: skip
    for model in models.values():
        model.stdout.readline()
    seconds = defaultdict(list)
    for busy in (False, True):
        other = multiprocessing.Process(target=spin, daemon=True)
        if busy:
            other.start()
        for n in range(rounds + 1):
            for way, model in models.items():
                model.stdin.write("\n")
                model.stdin.flush()
                taken = float(model.stdout.readline())
                if n:  # the first pass of each warms it
                    seconds[way, busy].append(taken)
        if busy:
            other.terminate()
    idle = statistics.median(seconds[next(iter(WAYS)), False])
    for way in WAYS:
        alone, beside = (statistics.median(seconds[way, busy]) for busy in (False, True))
        print(f"{way:36} idle {alone:6.2f} s ({alone / idle:5.2f})   busy {beside:6.2f} s ({beside / idle:5.2f})")


if __name__ == "__main__":
    main()
