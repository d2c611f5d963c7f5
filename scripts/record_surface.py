from pathlib import Path

from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import stage
from outlier_features.files.missing import optional

with (
    stage(snakemake.log[0]),
    optional(
        "surface", snakemake.output, snakemake.log[0], of=snakemake.input.dims, off=snakemake.params.off
    ) as wanted,
):
    if wanted:
        from outlier_features.surface.record_surface import record_surface

        dump = snakemake.params.dump
        record_surface(
            activations=[DumpRange(**dump)] if dump else [Path(path) for path in snakemake.input.activations],
            **{name: Path(snakemake.input[name]) for name in ("statistics", "tokens", "texts", "dims")},
            surface=Path(snakemake.output.surface),
        )
