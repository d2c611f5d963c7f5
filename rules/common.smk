import re
import sys
from pathlib import Path

from outlier_features.code_version import code_version as version_of
from outlier_features.config import read_schema, resolve_config
from outlier_features.errors import InputError

ROOT = Path(workflow.basedir)

try:
    CONFIG = resolve_config(
        config, read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    )
except InputError as error:
    sys.exit(f"error: {error}")

RESULTS = CONFIG["results"]
RESOURCES = CONFIG["resources"]
RUN = f"{RESULTS}/{{model}}/{{corpus}}"
SITES = sorted(CONFIG["sites"])


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


def rules_tables():
    tables = [
        "layers.parquet",
        "dims.parquet",
        "emergence.parquet",
        "pairs.parquet",
        "sensitivity.parquet",
        "massive.parquet",
        "loss.parquet",
        "summary.json",
    ]
    return expand(
        f"{RUN}/{{table}}",
        model=CONFIG["models"],
        corpus=CONFIG["corpora"],
        table=tables,
    )
