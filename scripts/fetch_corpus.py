from pathlib import Path

from outlier_features.errors import stage
from outlier_features.fetch.fetch_corpus import fetch_corpus

with stage(snakemake.log[0]):
    fetch_corpus(source=dict(snakemake.params.source), directory=Path(snakemake.output.source).parent)
