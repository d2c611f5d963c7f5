from pathlib import Path

from outlier_features.files.missing import optional_stage

with optional_stage("neurons", snakemake, of=snakemake.input.chunks[0]) as wanted:
    if wanted:
        from outlier_features.neurons.rank_neurons import rank_neurons

        rank_neurons(
            chunks=[Path(path) for path in snakemake.input.chunks],
            tokens=Path(snakemake.input.tokens),
            **{name: Path(path) for name, path in snakemake.output.items()},
            examples=snakemake.params.examples,
        )
