"""The rows of the tables of counted hits, for a sequence whose hits are too many to be listed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from outlier_features.scan.dense import count_dense
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import Array


@dataclass(frozen=True)
class Group:
    """Sites whose hits are counted together: those of a rule, or one alone at its floor."""

    rule: str | None
    sites: tuple[str, ...]
    thresholds: Sequence[float]


def groups_of(sites: Sequence[str], floors: Mapping[str, float], counted: Mapping[str, Any]) -> list[Group]:
    """`counted`: as `rules.configured.counted_at` has it."""
    by_rule = [
        Group(rule, tuple(site for site in entry["sites"] if site in sites), entry["thresholds"])
        for rule, entry in counted["pairs"].items()
    ]
    alone = [site for site in sites if not any(site in group.sites for group in by_rule)]
    return [group for group in by_rule if group.sites] + [Group(None, (site,), [floors[site]]) for site in alone]


Rows = dict[str, Array]  # columns by name; `label` is an index into the labels, which hold the text of the rows


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

    @property
    def pair_labels(self) -> pl.DataFrame:
        """Of `COUNTED_PAIRS`."""
        labels = [
            {"population": population, "rule": group.rule, "sites": "+".join(group.sites)}
            for group in self.groups
            for population in self.populations
        ]
        return pl.DataFrame(labels)

    @property
    def position_labels(self) -> pl.DataFrame:
        """Of `COUNTED_POSITIONS`."""
        return pl.DataFrame({"site": list(self.tensors)})

    def of(self, sequence: int, name: int) -> tuple[list[Rows], list[Rows]]:
        """Rows of `COUNTED_PAIRS` and of `COUNTED_POSITIONS` of a sequence, which the run calls `name`."""
        pairs: list[Rows] = []
        positions: list[Rows] = []
        counted: dict[str, list[float]] = {site: [] for site in self.tensors}  # a site may be in several groups
        for number, group in enumerate(self.groups):
            dense = [site for site in group.sites if not self.listed[site][sequence]]
            if not dense:
                continue
            sites = {site: self.tensors[site] for site in group.sites}
            counts = count_dense(sites, self.parts[sequence], sequence, group.thresholds)
            for p, population in enumerate(self.populations if group.rule else ()):
                label = number * len(self.populations) + p
                pairs.append(_rows(*counts.pairs(population), group.thresholds, label, name))
            for site in dense:
                label = list(self.tensors).index(site)
                rows = _rows(*counts.positions(site, self.floors[site]), group.thresholds, label, name)
                new = ~np.isin(rows["threshold"], counted[site])
                positions.append({column: values[new] for column, values in rows.items()})
                counted[site] += group.thresholds
        return pairs, positions


def _rows(k: Array, columns: Rows, thresholds: Sequence[float], label: int, sequence: int) -> Rows:
    threshold = np.asarray(thresholds, float)[k]
    return columns | {"threshold": threshold, "label": np.full(len(k), label), "sequence": np.full(len(k), sequence)}


def rows_frame(rows: Sequence[Rows], labels: pl.DataFrame) -> pl.DataFrame:
    """The rows of a table, with their labels; made of many at once, since each frame costs more than what it holds."""
    together = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    return pl.concat([pl.DataFrame(together), labels[together["label"]]], how="horizontal")
