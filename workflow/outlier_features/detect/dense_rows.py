"""The rows of the tables of counted hits, for a sequence whose hits are too many to be listed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from outlier_features.files.tables import COUNTED_PAIRS, COUNTED_POSITIONS, Table
from outlier_features.populations import EXCLUDED, PADDING
from outlier_features.scan.dense import DenseCounts, count_dense
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import Array


@dataclass(frozen=True)
class Group:
    """Sites whose hits are counted together: those of a rule, or one alone at its floor."""

    rule: str | None
    sites: tuple[str, ...]
    thresholds: Sequence[float]


def groups_of(sites: Sequence[str], floors: Mapping[str, float], counted: Mapping[str, Any]) -> list[Group]:
    """`counted`: as `scan.counted_at.counted_at` has it."""
    by_rule = [
        Group(rule, tuple(site for site in wanted if site in sites), counted["thresholds"])
        for rule, wanted in counted["pairs"].items()
    ]
    alone = [site for site in sites if site not in chain(*counted["pairs"].values())]
    return [group for group in by_rule if group.sites] + [Group(None, (site,), [floors[site]]) for site in alone]


@dataclass(frozen=True)
class DenseRows:
    """Counts the sequences of a chunk that are dense at some site."""

    tensors: Mapping[str, SiteTensors]
    parts: Array  # uint8 (N, T), see `populations`: of the chunk
    listed: Mapping[str, Array]  # bool (N,) by site
    groups: Sequence[Group]
    floors: Mapping[str, float]
    populations: Sequence[str]

    @property
    def sequences(self) -> list[int]:
        """Those whose hits are not listed at some site."""
        return np.flatnonzero(~np.all(list(self.listed.values()), axis=0)).tolist() if self.listed else []

    def of(self, sequence: int, name: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows of `COUNTED_PAIRS` and of `COUNTED_POSITIONS` of a sequence, which the run calls `name`."""
        pairs, positions = [pl.DataFrame(schema=COUNTED_PAIRS.schema)], [pl.DataFrame(schema=COUNTED_POSITIONS.schema)]
        for group in self.groups:
            dense = [site for site in group.sites if not self.listed[site][sequence]]
            if dense:
                sites = {site: self.tensors[site] for site in group.sites}
                counts = count_dense(sites, self.parts[sequence], sequence, group.thresholds)
                pairs += self._pairs(group, counts, name) if group.rule else []
                positions += [self._positions(site, group, counts, name) for site in dense]
        return pl.concat(pairs), pl.concat(positions)

    def _pairs(self, group: Group, counts: DenseCounts, name: int) -> Iterator[pl.DataFrame]:
        for population in self.populations:
            for k, threshold in enumerate(group.thresholds):
                yield _rows(
                    COUNTED_PAIRS,
                    counts.pairs(population, k),
                    population=population,
                    rule=group.rule,
                    sites="+".join(group.sites),
                    threshold=threshold,
                    sequence=name,
                )

    def _positions(self, site: str, group: Group, counts: DenseCounts, name: int) -> pl.DataFrame:
        largest = counts.token_largest[site]
        tokens = np.flatnonzero((counts.parts != PADDING) & (largest >= np.float32(self.floors[site])))
        columns = {
            "token": tokens,
            "excluded": counts.parts[tokens] == EXCLUDED,
            "max_abs": largest[tokens],
        }
        return pl.concat(
            _rows(
                COUNTED_POSITIONS,
                {**columns, "occurrences": counts.token_counts[site][k, tokens]},
                site=site,
                threshold=threshold,
                sequence=name,
            )
            for k, threshold in enumerate(group.thresholds)
        )


def _rows(table: Table, columns: Mapping[str, Array], **constants: str | float | None) -> pl.DataFrame:
    frame = pl.DataFrame(dict(columns)).with_columns(**{name: pl.lit(value) for name, value in constants.items()})
    return frame.select(pl.col(name).cast(dtype) for name, dtype in table.schema.items())
