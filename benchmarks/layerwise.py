"""Weights that stay on disk: memory and time of extraction beside a whole load and beside accelerate's disk offload.

A Llama with random weights of some hundred MB is extracted in processes of their own, one after the other. `offload` is
accelerate's: each forward pass reads every weight; it runs the same sequences, with no site taken and no proof of any.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from outlier_features.extract.extract_activations import extract_activations
from outlier_features.files.tensorfile import write_tensors
from outlier_features.tokens.tokens import tokens_digest

VOCABULARY = 512


def make(folder: Path, blocks: int, width: int, sequences: int, tokens: int) -> int:
    """A model and its tokens; bytes of its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096, dtype="float32",
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model", max_shard_size="4GB")
    record = {"location": str(folder / "model"), "origin": "here", "revision": "0", "files": {}}
    (folder / "source.json").write_text(json.dumps(record))
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (sequences, tokens)).astype(np.int32)
    special, mask = np.zeros(ids.shape, bool), np.ones(ids.shape, bool)
    facts = {"model": "m", "corpus": "c", "corpus_sha256": "0" * 64, "tokens_sha256": tokens_digest(ids, special, mask)}
    arrays = {"tokens": ids, "special": special, "mask": mask, "offsets": np.zeros((*ids.shape, 2), np.int32)}
    write_tensors(folder / "tokens.safetensors", arrays, facts)
    return sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))


def extract(folder: Path, placement: str, keep: float, sequences: int) -> None:
    from outlier_features.model import placement as decisions

    decisions._KEPT_SHARE = keep
    extract_activations(
        folder / "source.json", folder / "tokens.safetensors", folder / f"{placement}.safetensors",
        folder / f"{placement}.losses.safetensors", folder / f"{placement}.neurons.safetensors",
        folder / f"{placement}.channels.safetensors",
        start=0, stop=sequences, sites=["resid_post"], batch_size=1,
        dtype="float32", device="cpu", attention="sdpa", threads=1, trust_remote_code=False, part=None,
        placement=placement,  # type: ignore[arg-type]
    )  # fmt: skip


def offload(folder: Path, blocks: int, sequences: int, tokens: int) -> None:
    torch.set_num_threads(1)
    places: dict[str, str] = {f"model.layers.{n}": "disk" for n in range(blocks)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=places, offload_folder=folder / "offload", dtype=torch.float32
    )
    with torch.inference_mode():
        for _ in range(sequences):
            model(torch.randint(3, VOCABULARY, (1, tokens)), use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        way, folder = options.run[0], Path(options.run[1])
        before, began = peak(), time.monotonic()
        if way == "offload":
            offload(folder, options.blocks, options.sequences, options.tokens)
        else:
            extract(folder, way.split()[0], 0.0 if way == "layerwise" else 1 / 3, options.sequences)
        print(json.dumps([time.monotonic() - began, peak() - before, before]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder, options.blocks, options.width, options.sequences, options.tokens)
        print(f"{size / 1e6:.0f} MB of weights, {options.sequences} x {options.tokens} tokens")
        for way in ("one", "layerwise", "layerwise, memory to keep blocks", "offload"):
            command = [sys.executable, __file__, *sys.argv[1:], "--run", way.replace(", ", " "), name]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            seconds, more, before = json.loads(done.stdout.splitlines()[-1])
            print(f"{way:34}{seconds:8.1f} s   {more / 1e6:8.0f} MB above the {before / 1e6:.0f} MB of the libraries")


def peak() -> int:
    """Most memory so far; that of `getrusage` begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
