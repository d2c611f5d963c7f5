from pathlib import Path

from outlier_features.cores import usable_cores
from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import detection_of
from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    dump = snakemake.params.dump
    files, settings = detection_of(snakemake)
    detect_outliers(
        activations=DumpRange(**dump) if dump else Path(snakemake.input.activations),
        first_chunk=DumpRange(**{**dump, "start": 0, "stop": 1}) if dump else Path(snakemake.input.first_chunk),
        tokens=Path(snakemake.input.tokens),
        files=files,
        settings=settings,
        gain_keys=snakemake.params.gain_keys,
        threads=usable_cores(snakemake.threads),
    )
