from pathlib import Path

from outlier_features.dims.filter_systematic import filter_systematic
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    filter_systematic(
        hits={site: [Path(path) for path in snakemake.input.get(site)] for site in snakemake.params.sites},
        scaled_hits=[Path(path) for path in snakemake.input.get("scaled_hits")],
        counted_pairs=[Path(path) for path in snakemake.input.get("counted_pairs")],
        counted_positions=[Path(path) for path in snakemake.input.get("counted_positions")],
        statistics=Path(snakemake.input.statistics),
        tokens=Path(snakemake.input.tokens),
        texts=Path(snakemake.input.texts),
        pairs=Path(snakemake.output.pairs),
        sensitivity=Path(snakemake.output.sensitivity),
        massive=Path(snakemake.output.massive),
        positions=Path(snakemake.output.positions),
        rules=snakemake.params.rules,
        grid=snakemake.params.grid,
    )
