from pathlib import Path

from outlier_features.errors import stage
from outlier_features.summarize_run import summarize_run

TABLES = ("tokens", "layers", "dims", "pairs", "massive", "loss", "experts", "routing")

with stage(snakemake.log[0]):
    summarize_run(
        **{name: Path(snakemake.input[name]) for name in (*TABLES, "model_source", "corpus_source")},
        summary=Path(snakemake.output.summary),
    )
