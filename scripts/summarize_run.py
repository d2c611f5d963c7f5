from pathlib import Path

from outlier_features.errors import stage
from outlier_features.summarize_run import summarize_run

with stage(snakemake.log[0]):
    given = snakemake.input
    summarize_run(
        **{name: Path(given[name]) for name in ("tokens", "layers", "dims", "pairs", "massive", "model_source")},
        **{name: Path(given[name]) if given[name] else None for name in ("loss", "locations", "corpus_source")},
        summary=Path(snakemake.output.summary),
    )
