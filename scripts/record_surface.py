from pathlib import Path

from outlier_features.dump.dumps import DumpRange
from outlier_features.files.missing import optional_stage

with optional_stage("surface", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.surface.record_surface import record_surface

        dump = snakemake.params.dump
        record_surface(
            activations=[DumpRange(**dump)] if dump else [Path(path) for path in snakemake.input.activations],
            **{name: Path(snakemake.input[name]) for name in ("statistics", "tokens", "texts", "dims")},
            surface=Path(snakemake.output.surface),
        )
