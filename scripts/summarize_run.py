from pathlib import Path

from outlier_features.errors import stage
from outlier_features.summary.summarize_run import summarize_run

with stage(snakemake.log[0]):
    files = {name: Path(path) for name, path in snakemake.input.items() if path}
    summarize_run(
        tokens=files.pop("tokens"),
        model_source=files.pop("model_source"),
        corpus_source=files.pop("corpus_source", None),
        tables=files,
        summary=Path(snakemake.output.summary),
        strict=snakemake.params.strict,
    )
