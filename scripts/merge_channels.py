from pathlib import Path

from outlier_features.files.missing import optional_stage

with optional_stage("channels", snakemake, of=snakemake.input.chunks[0]) as wanted:
    if wanted:
        from outlier_features.channels.merge_channels import merge_channels

        merge_channels(
            chunks=[Path(path) for path in snakemake.input.chunks],
            tokens=Path(snakemake.input.tokens),
            source=Path(snakemake.input.source),
            **{name: Path(path) for name, path in snakemake.output.items()},
        )
