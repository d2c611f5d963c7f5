from pathlib import Path

from outlier_features.dump.dumps import DumpRange
from outlier_features.files.missing import optional_stage

params = snakemake.params
with optional_stage("quantization", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.quantize.quantize_dump import quantize_dump

        quantize_dump(
            **{name: Path(snakemake.input[name]) for name in ("tokens", "dims", "massive")},
            dump=DumpRange(**params.dump),
            quantization=Path(snakemake.output.quantization),
            schemes=params.schemes,
            remedied=params.remedied,
            seeds=params.seeds,
        )
