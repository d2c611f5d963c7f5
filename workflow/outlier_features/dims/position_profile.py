"""At which positions of a sequence hits lie: counts that add up chunk by chunk."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import polars as pl

from outlier_features.dims.dims_schema import POSITIONS
from outlier_features.populations import POPULATIONS
from outlier_features.scan.statistics import Array


@dataclass(frozen=True)
class HitsOfSite:
    """What is a hit at a site: by a rule, or without one at or above the site's floor."""

    site: str
    rule: str | None
    threshold: float


class PositionProfile:
    """Adds up over chunks, in memory that grows with the positions of a sequence and not with the sequences."""

    def __init__(self, parts: Array):
        """`parts` (N, T), see `populations`."""
        self._parts = parts
        length = parts.shape[1]
        self._counts: dict[tuple[str, HitsOfSite], Array] = defaultdict(lambda: np.zeros((2, length), np.int64))
        self._largest: dict[tuple[str, HitsOfSite], Array] = defaultdict(lambda: np.zeros(length))

    def add(self, of: HitsOfSite, population: str, kept: pl.DataFrame, hits: pl.DataFrame) -> None:
        """Add the values of a population and some whole sequences.

        kept   sequence, token, value: at or above the site's floor
        hits   those of `kept` that are hits
        """
        by_token = hits.group_by("token").agg(pl.col("sequence").n_unique(), pl.len())
        self._counts[population, of][:, by_token["token"].to_numpy()] += by_token.select("sequence", "len").to_numpy().T
        self._raise(of, population, kept.group_by("token").agg(pl.col("value").abs().max()))

    def add_counted(self, of: HitsOfSite, population: str, rows: pl.DataFrame, largest_only: bool = False) -> None:
        """Add rows of `COUNTED_POSITIONS` of the population, of that site and threshold.

        largest_only   what is a hit is another question
        """
        if not largest_only:
            counts = rows.group_by("token").agg(
                (pl.col("occurrences") > 0).sum(), pl.col("occurrences").sum().alias("n")
            )
            self._counts[population, of][:, counts["token"].to_numpy()] += (
                counts.select("occurrences", "n").to_numpy().T
            )
        self._raise(of, population, rows.group_by("token").agg(pl.col("max_abs").max()))

    def _raise(self, of: HitsOfSite, population: str, largest: pl.DataFrame) -> None:
        """`largest`: tokens and the largest abs(x) at each."""
        tokens, values = (column.to_numpy() for column in largest.get_columns())
        here = self._largest[population, of]
        here[tokens] = np.maximum(here[tokens], values)

    def table(self) -> pl.DataFrame:
        """A row for each population, site and position that the population has in some sequence."""
        frames = [pl.DataFrame(schema=POSITIONS.schema)]
        for (population, of), (sequences_hit, occurrences) in self._counts.items():
            frame = pl.DataFrame(
                {
                    "token": np.arange(self._parts.shape[1]),
                    "sequences": np.isin(self._parts, POPULATIONS[population]).sum(axis=0),
                    "sequences_hit": sequences_hit,
                    "occurrences": occurrences,
                    "max_abs": self._largest[population, of],
                }
            ).with_columns(
                population=pl.lit(population),
                site=pl.lit(of.site),
                rule=pl.lit(of.rule, pl.String),
                threshold=of.threshold,
                max_abs=pl.when(pl.col("max_abs") > 0).then("max_abs"),
            )
            frames.append(
                frame.filter(pl.col("sequences") > 0).select(
                    pl.col(name).cast(dtype) for name, dtype in POSITIONS.schema.items()
                )
            )
        return pl.concat(frames).sort("population", "site", "token", "rule")
