from pathlib import Path

from outlier_features.files.missing import optional_stage

with optional_stage("channels", snakemake, of=snakemake.input.channel_stats) as wanted:
    if wanted:
        from outlier_features.quantize.export_quantization import export_quantization

        tables = ("norms", "prefix_tokens", "quantization", "quantization_sensitivity")
        export_quantization(
            source=Path(snakemake.input.source),
            tokens=Path(snakemake.input.tokens),
            channel_stats=Path(snakemake.input.channel_stats),
            tables={name: Path(path) for name, path in snakemake.input.items() if name in tables},
            scales=Path(snakemake.output.scales),
            imatrix=Path(snakemake.output.imatrix),
            llmcompressor=Path(snakemake.output.llmcompressor),
            bitsandbytes=Path(snakemake.output.bitsandbytes),
            prefix=Path(snakemake.output.prefix),
            scheme=snakemake.params.scheme,
        )
