"""Rule filter_systematic: the rules that select by hits, applied to the hits; the activations are not needed again.

Of a sequence with too many hits to be listed, the counts of each pair and position take their place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.detect.hits_schema import COUNTED_PAIRS
from outlier_features.dims.dims_schema import MASSIVE, PAIRS, POSITIONS, SENSITIVITY
from outlier_features.dims.pairs import counts_of, pairs_of
from outlier_features.dims.position_profile import HitsOfSite, PositionProfile
from outlier_features.dims.rule_hits import ChunkHits, HitFiles, HitReader, in_population, without_scale
from outlier_features.files.tables import provenance_of, write_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.populations import population_sizes
from outlier_features.progress import item_bar
from outlier_features.rules.configured import counted_at, scaled_at
from outlier_features.rules.kinds import applied_sites, hit_rules
from outlier_features.rules.rule import HitRule
from outlier_features.rules.systematic import LAYER_READINGS, POSITION_READINGS
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens


def filter_systematic(
    hits: HitFiles,
    scaled_hits: Sequence[Path],
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
    rules: Mapping[str, Mapping[str, Any]],
    grid: Mapping[str, Sequence[float]],
) -> None:
    """Write the pairs of every rule, how sensitive systematic ones are to their criteria, the hits of rules that
    list them, and the positions of hits.

    hits                per site its Parquet files, in the order of their sequences, one for each chunk
    scaled_hits         for each chunk the hits of rules with a scale
    counted_pairs       for each chunk the pairs of sequences whose hits are not all listed
    counted_positions   for each chunk the positions of sequences whose hits at a site are not listed
    rules               the configuration's rules; those of kinds that do not select by hits are recorded only
    grid                layer_shares and position_shares of the sensitivity table

    The hits are read chunk by chunk, so memory does not grow with their number.
    """
    run = Tokens.read(tokens)
    file = run.files.tensors(statistics)
    facts = _Facts.of(file, run, without_scale(counted_pairs))
    applied = {name: rule for name, rule in hit_rules(rules).items() if facts.sites_of(rule)}
    needed, scaled = counted_at(rules), scaled_at(rules, [*facts.tensors])
    reader = HitReader(hits, scaled_hits, counted_pairs, counted_positions, file, run.files, needed, scaled)
    provenance = {
        **file.provenance,
        "rules": {name: dict(rule) for name, rule in rules.items()},
        "dense": facts.dense(file),
        "without_scale": facts.without_scale,
        "gains_left_out": provenance_of(counted_pairs[0], COUNTED_PAIRS).get("gains_left_out", {}),
    }
    with_rule = {site for rule in applied.values() if rule.scale is None for site in rule.sites}
    cells, profile = _Grid(grid, facts.dims), PositionProfile(run.parts)
    pair_frames, listed = [pl.DataFrame(schema=PAIRS.schema)], list[pl.DataFrame]()
    for index in item_bar(range(len(counted_pairs)), "apply rules", "chunk"):
        chunk = reader.chunk(index)
        for rule in applied.values():
            for population in facts.positions:
                of = _Application(rule, facts.sites_of(rule), population, chunk, facts)
                of.profile(profile)
                for threshold, frame in of.pairs().items():
                    if threshold == rule.threshold:
                        pair_frames.append(frame)
                    if threshold in rule.grid:
                        cells.add(frame, (population, rule.name, "+".join(of.sites), threshold))
            if rule.lists_hits:
                listed += [chunk.listed_hits(rule, site) for site in facts.sites_of(rule)]
        for site in sorted(facts.tensors.keys() - with_rule):
            facts.profile_floor(profile, chunk, site, file.provenance["floors"][site])
    write_table(pairs, pl.concat(pair_frames).sort("population", "rule", "sequence", "dim"), PAIRS, provenance)
    write_table(sensitivity, cells.table(), SENSITIVITY, provenance)
    write_table(massive, _with_tokens(listed, run, texts), MASSIVE, provenance)
    write_table(positions, profile.table(), POSITIONS, provenance)


@dataclass(frozen=True)
class _Facts:
    """What shares are taken of: blocks, site tensors (by site) and positions (by population) of a run."""

    blocks: int
    dims: int
    tensors: dict[str, int]
    positions: dict[str, pl.DataFrame]
    unlisted: dict[str, list[int]]  # by site the sequences whose hits are counted
    without_scale: Mapping[str, Mapping[str, str]]  # by site and scale why it is not known

    @classmethod
    def of(cls, file: TensorFile, run: Tokens, absent: Mapping[str, Mapping[str, str]]) -> "_Facts":
        provenance = file.provenance
        positions = {
            population: pl.DataFrame({"sequence": np.arange(len(size), dtype=np.uint32), "positions": size})
            for population, size in population_sizes(run.parts).items()
        }
        tensors = {site: len(file.array(f"{site}.layers")) for site in provenance["sites"]}
        dims = max((file.array(f"{site}.pilot").shape[1] for site in tensors), default=0)
        unlisted = {site: np.flatnonzero(file.array(f"{site}.listed") == 0).tolist() for site in tensors}
        return cls(provenance.get("layers_saved", provenance["blocks"]), dims, tensors, positions, unlisted, absent)

    def sites_of(self, rule: HitRule) -> list[str]:
        """Those of the rule that the run has."""
        return applied_sites(rule, {"sites": self.tensors, "without_scale": self.without_scale})

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

    def profile_floor(self, profile: PositionProfile, chunk: ChunkHits, site: str, floor: float) -> None:
        """Add a chunk's values of a site that no rule is applied to, at or above its floor."""
        of = HitsOfSite(site, None, floor)
        for population in self.positions:
            kept = chunk.listed(site).filter(in_population(population))
            profile.add(of, population, kept, kept)
            profile.add_counted(of, population, chunk.counted_positions.filter(in_population(population), site=site))


@dataclass(frozen=True)
class _Application:
    """A rule applied to a chunk in a population."""

    rule: HitRule
    sites: list[str]
    population: str
    chunk: ChunkHits
    facts: _Facts

    @cached_property
    def _values(self) -> pl.DataFrame:
        return self.chunk.of_rule(self.rule, self.sites, self.population)

    @property
    def _counted(self) -> bool:
        """Whether hits that are too many to be listed are counted for the rule."""
        return self.rule.scale is None and self.rule.counts_suffice

    def pairs(self) -> dict[float, pl.DataFrame]:
        """The pairs with a hit, by threshold: the rule's own and those of the sensitivity table."""
        values = self._values
        if self._counted:
            dense = sorted({sequence for site in self.sites for sequence in self.facts.unlisted[site]})
            values = values.filter(~pl.col("sequence").is_in(dense))
        return {threshold: self._pairs_at(values, threshold) for threshold in {self.rule.threshold, *self.rule.grid}}

    def _pairs_at(self, values: pl.DataFrame, threshold: float) -> pl.DataFrame:
        counts = counts_of(values.filter(self.rule.is_hit(threshold)))
        if self._counted:
            counted = self.chunk.counted_for(self.sites, self.population, threshold)
            counts = pl.concat([counts, counted.select(counts.columns)])
        tensors = sum(self.facts.tensors[site] for site in self.sites)
        return (
            pairs_of(counts, self.facts.positions[self.population], self.facts.blocks, tensors)
            .with_columns(
                population=pl.lit(self.population),
                rule=pl.lit(self.rule.name),
                sites=pl.lit("+".join(self.sites)),
                passes=self.rule.passes(),
            )
            .select(pl.col(name).cast(dtype) for name, dtype in PAIRS.schema.items())
        )

    def profile(self, profile: PositionProfile) -> None:
        """Add the chunk's values of each site to `profile`."""
        for number, site in enumerate(self.sites):
            of = HitsOfSite(site, self.rule.name, self.rule.threshold)
            kept = self._values.filter(site=number)
            counted = self.chunk.counted_positions.filter(in_population(self.population), site=site)
            if self._counted:
                kept = kept.filter(~pl.col("sequence").is_in(self.facts.unlisted[site]))
                counted = counted.filter(threshold=self.rule.threshold)
            profile.add(of, self.population, kept, kept.filter(self.rule.is_hit(self.rule.threshold)))
            if self.rule.scale is None:
                profile.add_counted(of, self.population, counted, largest_only=not self._counted)


def _with_tokens(frames: Sequence[pl.DataFrame], run: Tokens, texts: Path) -> pl.DataFrame:
    if not frames:
        return pl.DataFrame(schema=MASSIVE.schema)
    listed, text = pl.concat(frames), read_texts(texts, run)
    where = listed.select("sequence", "token").rows()
    return listed.with_columns(
        token_id=pl.Series([run.token_id(n, t) for n, t in where], dtype=pl.Int64),
        token_text=pl.Series([token_text(text, run, n, t) for n, t in where], dtype=pl.String),
    ).sort("sequence", "layer", "token", "dim", "rule", "site")


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
        for layer_reading in LAYER_READINGS:
            layers = pairs[layer_reading].to_numpy()
            for position_reading in POSITION_READINGS:
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
