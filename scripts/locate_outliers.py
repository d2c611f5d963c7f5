from pathlib import Path

from outlier_features.cores import usable_cores
from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import stage
from outlier_features.locate.count_locations import LocationRule
from outlier_features.locate.locate_outliers import locate_outliers

with stage(snakemake.log[0]):
    rule, dump = snakemake.params.location, snakemake.params.dump
    locate_outliers(
        chunks=[DumpRange(**dump)] if dump else [Path(path) for path in snakemake.input.chunks],
        tokens=Path(snakemake.input.tokens),
        locations=Path(snakemake.output.locations),
        sites=list(snakemake.params.sites),
        name=rule["name"],
        rule=LocationRule(rule["threshold"], rule["inclusive"], rule["layer_share"]),
        threads=usable_cores(snakemake.threads),
    )
