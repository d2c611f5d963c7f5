from pathlib import Path

from outlier_features.errors import stage
from outlier_features.tokens.tokenize_corpus import tokenize_corpus

with stage(snakemake.log[0]):
    tokenize_corpus(
        model=snakemake.wildcards.model,
        corpus=snakemake.wildcards.corpus,
        model_source=Path(snakemake.input.model),
        documents=Path(snakemake.input.documents),
        corpus_source=Path(snakemake.input.corpus),
        tokens=Path(snakemake.output.tokens),
        texts=Path(snakemake.output.texts),
        sample=snakemake.params.sample,
        part=snakemake.params.part,
    )
