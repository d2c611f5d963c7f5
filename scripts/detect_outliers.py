from pathlib import Path

from outlier_features.cores import usable_cores
from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    floors, dump = snakemake.params.floors, snakemake.params.dump
    detect_outliers(
        activations=DumpRange(**dump) if dump else Path(snakemake.input.activations),
        first_chunk=DumpRange(**{**dump, "start": 0, "stop": 1}) if dump else Path(snakemake.input.first_chunk),
        tokens=Path(snakemake.input.tokens),
        hits={site: Path(snakemake.output[site]) for site in floors},
        pairs=Path(snakemake.output.counted_pairs),
        positions=Path(snakemake.output.counted_positions),
        scaled_hits=Path(snakemake.output.scaled_hits),
        statistics=Path(snakemake.output.statistics),
        floors=floors,
        max_density=snakemake.params.max_density,
        counted=snakemake.params.counted,
        scaled=snakemake.params.scaled,
        gain_keys=snakemake.params.gain_keys,
        threads=usable_cores(snakemake.threads),
    )
