import json
import re
import sys
from pathlib import Path

from outlier_features.code_version import code_version as version_of
from outlier_features.config import read_schema, require_files, resolve_config
from outlier_features.errors import InputError

ROOT = Path(workflow.basedir)

try:
    CONFIG = resolve_config(
        config, read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    )
    require_files(CONFIG)
except InputError as error:
    sys.exit(f"error: {error}")

RESULTS = CONFIG["results"]
RESOURCES = CONFIG["resources"]
RUN = f"{RESULTS}/{{model}}/{{corpus}}"
SITES = sorted(CONFIG["sites"])
# Of a job that runs a model: `auto` takes a GPU where there is one, and on a cluster a job sees only what it asked for.
GPUS = int(CONFIG["extract"]["device"] in ("auto", "cuda"))


def code_version(script):
    return version_of(ROOT / "scripts" / f"{script}.py")


def sample(wildcards):
    return CONFIG["catalog"]["corpora"][wildcards.corpus]["sample"]


def chunks(wildcards):
    """Names of a run's chunks, `first-last` sequence, in order; known before anything runs."""
    count, size = sample(wildcards)["sequences"], CONFIG["extract"]["chunk_sequences"]
    width = len(str(count - 1))
    return [
        f"{start:0{width}}-{min(start + size, count) - 1:0{width}}"
        for start in range(0, count, size)
    ]


def of_chunks(pattern):
    """An input function for `pattern` over all chunks of a run."""
    return lambda wildcards: [
        pattern.format(model=wildcards.model, corpus=wildcards.corpus, chunk=chunk)
        for chunk in chunks(wildcards)
    ]


def of_model(key):
    """A parameter function for a key that a model may override in the catalog."""
    return lambda wildcards: CONFIG["catalog"]["models"][wildcards.model].get(
        key, CONFIG["extract"].get(key)
    )


def of_runs(*names):
    """Files of every run: each model on each corpus."""
    return expand(
        f"{RUN}/{{name}}", model=CONFIG["models"], corpus=CONFIG["corpora"], name=names
    )


TABLES = of_runs(
    "layers.parquet",
    "dims.parquet",
    "emergence.parquet",
    "pairs.parquet",
    "sensitivity.parquet",
    "massive.parquet",
    "loss.parquet",
    "summary.json",
)


def local_files(source):
    """Files of a model or corpus that lies on this machine: an edit to them is a reason to run again."""
    if "pypi" in source or "hub" in source or "stdlib" in source:
        return []
    if "files" in source:
        return source["files"]
    return sorted(
        str(path)
        for path in Path(source["path"]).glob("*")
        if path.suffix in (".json", ".safetensors", ".model", ".txt")
    )


def first_sequence(wildcards):
    return int(wildcards.chunk.split("-")[0])


def model_mb(wildcards, input, attempt):
    """Memory for the weights (the size of their files, twice: bfloat16 may be widened) and a batch of activations."""
    source = Path(input.source)
    files = json.loads(source.read_text())["files"] if source.exists() else {}
    weights = sum(
        file["bytes"] for name, file in files.items() if name.endswith(".safetensors")
    )
    return (4000 + 2 * weights // 10**6) * attempt
