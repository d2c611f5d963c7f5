"""Rule filter_systematic: the named rules applied to the hits; the activations are not needed again.

Of a sequence with too many hits to be listed, the counts of each pair and position take their place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features import rules
from outlier_features.detect.hits_schema import COUNTED_PAIRS, COUNTED_POSITIONS, HITS
from outlier_features.dims.dims_schema import MASSIVE, PAIRS, POSITIONS, SENSITIVITY
from outlier_features.dims.pairs import counts_of, dettmers_passes, massive_in, pairs_of
from outlier_features.dims.position_profile import HitsOfSite, PositionProfile
from outlier_features.errors import InputError
from outlier_features.files.artifacts import holds_sequences, require_equal, require_same_run, require_sequences
from outlier_features.files.tables import Table, read_table, write_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.populations import population_sizes
from outlier_features.progress import item_bar
from outlier_features.scan.counted_at import CountedAt, counted_at, uncounted
from outlier_features.scan.statistics import SiteStatistics
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens

HitFiles = Mapping[str, Sequence[Path]]


def filter_systematic(
    hits: HitFiles,
    counted_pairs: Sequence[Path],
    counted_positions: Sequence[Path],
    statistics: Path,
    tokens: Path,
    texts: Path,
    pairs: Path,
    sensitivity: Path,
    massive: Path,
    positions: Path,
    *,
    dettmers: Mapping[str, Any],
    massive_rule: Mapping[str, Any],
    grid: Mapping[str, Sequence[float]],
) -> None:
    """Write the pairs of every rule, the sensitivity of `dettmers` to its criteria, the massive activations, and the
    positions of hits.

    hits                per site its Parquet files, in the order of their sequences, one for each chunk
    counted_pairs       for each chunk the pairs of sequences whose hits are not all listed
    counted_positions   for each chunk the positions of sequences whose hits at a site are not listed
    dettmers            threshold, layer_share, position_share, layer_reading, position_reading
    massive_rule        threshold, ratio
    grid                thresholds, layer_shares, position_shares of the sensitivity table

    The hits are read chunk by chunk, so memory does not grow with their number.
    """
    file, run = TensorFile(statistics), Tokens.read(tokens)
    require_same_run(run.provenance, file.provenance, statistics)
    facts = _Facts.of(file, run)
    provenance = {
        **file.provenance,
        "rules": {"dettmers": dict(dettmers), "massive": dict(massive_rule)},
        "dense": facts.dense(file),
    }
    needed = counted_at(dettmers, massive_rule, grid)
    cells, profile = _Grid(grid, facts.dims), PositionProfile(run.parts)
    without_rule = facts.tensors.keys() - {rules.MASSIVE_SITE, *chain(*rules.DETTMERS_SITES.values())}
    pair_frames, massive_frames = [pl.DataFrame(schema=PAIRS.schema)], []
    for chunk in item_bar(range(len(counted_pairs)), "apply rules", "chunk"):
        pair_counts = _read_counted(counted_pairs[chunk], COUNTED_PAIRS, file.provenance, needed)
        position_counts = _read_counted(counted_positions[chunk], COUNTED_POSITIONS, file.provenance, needed)
        for rule, wanted in rules.DETTMERS_SITES.items():
            sites = [site for site in wanted if site in facts.tensors and site in hits]
            if sites:
                found = _read_hits(hits, sites, chunk, file.provenance)
                passes = dettmers_passes(dettmers)
                for number, site in enumerate(sites):
                    of = HitsOfSite(site, rule, dettmers["threshold"])
                    here = found.filter(site=number)
                    facts.profile(profile, of, here, here.filter(pl.col("value").abs() >= of.threshold))
                    facts.profile_counted(profile, of, position_counts.filter(threshold=of.threshold))
                listed = found.filter(~pl.col("sequence").is_in(facts.dense_sequences(sites)))
                for population in facts.positions:
                    counted = pair_counts.filter(population=population, rule=rule)
                    made = {
                        threshold: facts.pairs(
                            listed.filter(pl.col("value").abs() >= threshold), population, rule, sites, passes,
                            counted.filter(threshold=threshold),
                        )
                        for threshold in {dettmers["threshold"], *grid["thresholds"]}
                    }  # fmt: skip
                    pair_frames.append(made[dettmers["threshold"]])
                    for threshold in grid["thresholds"]:
                        cells.add(made[threshold], (population, rule, "+".join(sites), threshold))
        site = rules.MASSIVE_SITE
        if site in facts.tensors and site in hits:
            found = _read_hits(hits, [site], chunk, file.provenance)
            extreme = _with_medians(
                found.filter(pl.col("value").abs() > massive_rule["threshold"]),
                SiteStatistics.read(file, site),
                massive_rule,
            )
            massive_frames.append(extreme)
            of = HitsOfSite(site, "massive", massive_rule["threshold"])
            facts.profile(profile, of, found, extreme)
            facts.profile_counted(profile, of, position_counts, largest_only=True)
            for population in facts.positions:
                pair_frames.append(facts.pairs(extreme, population, "massive", [site], pl.lit(True)))
        for site in sorted(without_rule & hits.keys()):
            found = _read_hits(hits, [site], chunk, file.provenance)
            of = HitsOfSite(site, None, file.provenance["floors"][site])
            facts.profile(profile, of, found, found)
            facts.profile_counted(profile, of, position_counts)
    write_table(pairs, pl.concat(pair_frames).sort("population", "rule", "sequence", "dim"), PAIRS, provenance)
    write_table(sensitivity, cells.table(), SENSITIVITY, provenance)
    if massive_frames:
        extremes = _with_tokens(pl.concat(massive_frames), run, texts)
    else:
        extremes = pl.DataFrame(schema=MASSIVE.schema)
    write_table(massive, extremes, MASSIVE, provenance)
    write_table(positions, profile.table(), POSITIONS, provenance)


@dataclass(frozen=True)
class _Facts:
    """What shares are taken of: blocks, site tensors (by site) and positions (by population) of a run."""

    blocks: int
    dims: int
    tensors: dict[str, int]
    positions: dict[str, pl.DataFrame]
    unlisted: dict[str, list[int]]  # by site the sequences whose hits are counted

    @classmethod
    def of(cls, file: TensorFile, run: Tokens) -> "_Facts":
        provenance = file.provenance
        positions = {
            population: pl.DataFrame({"sequence": np.arange(len(size), dtype=np.uint32), "positions": size})
            for population, size in population_sizes(run.parts).items()
        }
        tensors = {site: len(file.array(f"{site}.layers")) for site in provenance["sites"]}
        dims = max((file.array(f"{site}.pilot").shape[1] for site in tensors), default=0)
        unlisted = {site: np.flatnonzero(file.array(f"{site}.listed") == 0).tolist() for site in tensors}
        return cls(provenance.get("layers_saved", provenance["blocks"]), dims, tensors, positions, unlisted)

    def dense(self, file: TensorFile) -> dict[str, Any]:
        """By site with sequences whose hits are counted: how many, the floor, and the share of hits in all values."""
        found = {}
        for site, unlisted in self.unlisted.items():
            if unlisted:
                values = file.array(f"{site}.positions").sum() * file.array(f"{site}.pilot").size
                share = file.array(f"{site}.hits").sum() / values
                floor = file.provenance["floors"][site]
                found[site] = {"floor": floor, "share": float(share), "sequences": len(unlisted)}
        return found

    def dense_sequences(self, sites: list[str]) -> list[int]:
        """Those whose pairs at `sites` are counted."""
        return sorted({sequence for site in sites for sequence in self.unlisted[site]})

    def pairs(
        self,
        hits: pl.DataFrame,
        population: str,
        rule: str,
        sites: list[str],
        passes: pl.Expr,
        counted: pl.DataFrame | None = None,
    ) -> pl.DataFrame:
        """The pairs of a rule in a population: of its listed hits, and those that were counted."""
        counts = counts_of(hits.filter(_in_population(population, hits)))
        if counted is not None:
            counts = pl.concat([counts, counted.select(counts.columns)])
        tensors = sum(self.tensors[site] for site in sites)
        return (
            pairs_of(counts, self.positions[population], self.blocks, tensors)
            .with_columns(
                population=pl.lit(population), rule=pl.lit(rule), sites=pl.lit("+".join(sites)), passes=passes
            )
            .select(pl.col(name).cast(dtype) for name, dtype in PAIRS.schema.items())
        )

    def profile(self, profile: PositionProfile, of: HitsOfSite, kept: pl.DataFrame, hits: pl.DataFrame) -> None:
        """Add a chunk's values of a site to `profile`, for each population."""
        for population in self.positions:
            profile.add(
                of,
                population,
                kept.filter(_in_population(population, kept)),
                hits.filter(_in_population(population, hits)),
            )

    def profile_counted(
        self, profile: PositionProfile, of: HitsOfSite, counted: pl.DataFrame, largest_only: bool = False
    ) -> None:
        """Add what was counted of the site in a chunk to `profile`, for each population."""
        here = counted.filter(site=of.site)
        for population in self.positions:
            profile.add_counted(of, population, here.filter(_in_population(population, here)), largest_only)


def _in_population(population: str, hits: pl.DataFrame) -> pl.Expr:
    """Massive activations bear their own flag per population, since the median depends on it."""
    if f"massive_{population}" in hits.columns:
        return pl.col(f"massive_{population}")
    return pl.lit(True) if population == "all" else ~pl.col("excluded")


def _read_hits(hits: HitFiles, sites: Sequence[str], chunk: int, provenance: Mapping[str, Any]) -> pl.DataFrame:
    frames = []
    for number, site in enumerate(sites):
        path = hits[site][chunk]
        frame, found = read_table(path, HITS)
        require_same_run(provenance, found, path)
        require_sequences(found, path)
        exactly = {"site": site, "floor": provenance["floors"][site]}
        if holds_sequences(found):
            exactly["attention"] = provenance["attention"]
        require_equal(exactly, found, tuple(exactly), path)
        frames.append(frame.with_columns(site=pl.lit(number, pl.UInt8)))
    return pl.concat(frames)


def _read_counted(path: Path, table: Table, provenance: Mapping[str, Any], needed: CountedAt) -> pl.DataFrame:
    frame, found = read_table(path, table)
    require_same_run(provenance, found, path)
    require_sequences(found, path)
    if not holds_sequences(found):
        return frame  # nothing ran there, so nothing is said of how
    require_equal(provenance, found, ("attention",), path)
    missing = uncounted(found["counted"]["at"], needed, found["counted"]["dense"])
    if missing:
        raise InputError(f"{path}: lacks {missing}, expected what the rules need; run detect_outliers again")
    return frame


def _with_medians(hits: pl.DataFrame, statistics: SiteStatistics, rule: Mapping[str, Any]) -> pl.DataFrame:
    """Hits with the median abs(x) of their layer and sequence in both populations; only those massive by either."""
    row = {int(layer): i for i, layer in enumerate(statistics.layers)}
    rows = hits["layer"].replace_strict(row, return_dtype=pl.Int64).to_numpy()
    medians = statistics.median[rows, hits["sequence"].to_numpy()]
    magnitude = pl.col("value").abs().cast(pl.Float64)
    massive = {
        population: massive_in(magnitude, pl.col(column), rule)
        for population, column in (("all", "median"), ("without_first", "median_without_first"))
    }
    return (
        hits.with_columns(median=medians[:, 0], median_without_first=medians[:, 1])
        .with_columns(
            massive_all=massive["all"],
            massive_without_first=massive["without_first"] & ~pl.col("excluded"),
            ratio=magnitude / pl.col("median"),
            ratio_without_first=pl.when(~pl.col("excluded")).then(magnitude / pl.col("median_without_first")),
        )
        .filter(pl.col("massive_all") | pl.col("massive_without_first"))
    )


def _with_tokens(massive: pl.DataFrame, run: Tokens, texts: Path) -> pl.DataFrame:
    text = read_texts(texts, run)
    where = massive.select("sequence", "token").rows()
    return massive.with_columns(
        rule=pl.lit("massive"),
        site=pl.lit(rules.MASSIVE_SITE),
        token_id=pl.Series([run.token_id(n, t) for n, t in where], dtype=pl.Int64),
        token_text=pl.Series([token_text(text, run, n, t) for n, t in where], dtype=pl.String),
    ).sort("sequence", "layer", "token", "dim")


class _Grid:
    """Counts of passing pairs and their dims over a grid of criteria, added up chunk by chunk."""

    def __init__(self, shares: Mapping[str, Sequence[float]], dims: int):
        self._layer_shares, self._position_shares = shares["layer_shares"], shares["position_shares"]
        self._dims = dims
        self._pairs: dict[tuple[Any, ...], Any] = {}
        self._seen: dict[tuple[Any, ...], Any] = {}

    def add(self, pairs: pl.DataFrame, key: tuple[Any, ...]) -> None:
        """`pairs` of one `key`: population, rule, sites, threshold."""
        dim = pairs["dim"].to_numpy()
        for layer_reading in rules.LAYER_READINGS:
            layers = pairs[layer_reading].to_numpy()
            for position_reading in rules.POSITION_READINGS:
                positions = pairs[position_reading].to_numpy()
                for layer_share in self._layer_shares:
                    for position_share in self._position_shares:
                        cell = (*key, layer_reading, position_reading, layer_share, position_share)
                        passing = dim[(layers >= layer_share) & (positions >= position_share)]
                        self._pairs[cell] = self._pairs.get(cell, 0) + len(passing)
                        self._seen.setdefault(cell, np.zeros(self._dims, bool))[passing] = True

    def table(self) -> pl.DataFrame:
        names = ("population", "rule", "sites", "threshold", "layer_reading", "position_reading")
        rows = [
            dict(zip((*names, "layer_share", "position_share"), cell, strict=True))
            | {"pairs": self._pairs[cell], "dims": int(self._seen[cell].sum())}
            for cell in self._pairs
        ]
        return pl.DataFrame(rows, schema=SENSITIVITY.schema)
