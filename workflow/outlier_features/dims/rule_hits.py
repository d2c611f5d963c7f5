"""The hits of a rule: values that were listed at its sites, with what the rule compares them to."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import polars as pl

from outlier_features.detect.hits_schema import COUNTED_PAIRS, COUNTED_POSITIONS, HITS, SCALED_HITS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import holds_sequences, require_equal
from outlier_features.files.run_files import RunFiles
from outlier_features.files.tables import Table, provenance_of
from outlier_features.files.tensorfile import TensorFile
from outlier_features.populations import POPULATIONS
from outlier_features.rules.rule import LAYER_RMS, HitRule
from outlier_features.scan.counted_at import CountedAt, uncounted
from outlier_features.scan.statistics import Array

HitFiles = Mapping[str, Sequence[Path]]


class HitReader:
    """What was listed and counted of a run, and checked to be the run's and to serve the rules."""

    def __init__(
        self,
        hits: HitFiles,
        scaled_hits: Sequence[Path],
        counted_pairs: Sequence[Path],
        counted_positions: Sequence[Path],
        statistics: TensorFile,
        files: RunFiles,
        counted: CountedAt,
        scaled: Mapping[str, Mapping[str, float]],
    ):
        """`counted` and `scaled`: what the rules need, see `rules.configured`."""
        self.files = files
        self.hits, self.scaled_hits = hits, scaled_hits
        self.counted_pairs, self.counted_positions = counted_pairs, counted_positions
        self.provenance = statistics.provenance
        self.counted, self.scaled = counted, scaled
        self._statistics = statistics
        self._beside: dict[tuple[str, str], Array] = {}

    def rows_beside(self, site: str, hits: pl.DataFrame) -> tuple[Array, Array]:
        """Of each hit the index of its layer in the arrays of the site's statistics, and its sequence."""
        row = {int(layer): i for i, layer in enumerate(self._array(site, "layers"))}
        return hits["layer"].replace_strict(row, return_dtype=pl.Int64).to_numpy(), hits["sequence"].to_numpy()

    def medians(self, site: str, hits: pl.DataFrame) -> Array:
        """Median abs(x) of the layer and sequence of each hit in both populations, float64 (hits, 2)."""
        rows, sequences = self.rows_beside(site, hits)
        medians: Array = self._array(site, "median")[rows, sequences]
        return medians

    def layer_rms(self, site: str, hits: pl.DataFrame, population: str) -> Array:
        """RMS over the population's positions and the dims of the layer and sequence of each hit, float64 (hits,)."""
        rows, sequences = self.rows_beside(site, hits)
        parts = POPULATIONS[population]
        squares = self._array(site, "square")[:, :, parts].sum(axis=2)[rows, sequences]
        positions = self._array(site, "positions")[:, parts].sum(axis=1)[sequences]
        dims = self._array(site, "pilot").shape[1]
        rms: Array = (squares / (positions * dims)) ** 0.5
        return rms

    def _array(self, site: str, name: str) -> Array:
        if (site, name) not in self._beside:
            self._beside[site, name] = self._statistics.array(f"{site}.{name}")
        return self._beside[site, name]

    def chunk(self, index: int) -> "ChunkHits":
        return ChunkHits(self, index)


class ChunkHits:
    """The hits of one chunk, each file read once."""

    def __init__(self, reader: HitReader, index: int):
        self._reader, self._index = reader, index
        self._read: dict[str, pl.DataFrame] = {}

    @cached_property
    def counted_pairs(self) -> pl.DataFrame:
        return self._counted(self._reader.counted_pairs[self._index], COUNTED_PAIRS)

    @cached_property
    def counted_positions(self) -> pl.DataFrame:
        return self._counted(self._reader.counted_positions[self._index], COUNTED_POSITIONS)

    def listed(self, site: str) -> pl.DataFrame:
        """The values of a site at or above its floor, as in the table `hits`."""
        if site not in self._read:
            provenance, path = self._reader.provenance, self._reader.hits[site][self._index]
            frame, found = self._reader.files.table(path, HITS)
            exactly = {"site": site, "floor": provenance["floors"][site]}
            if holds_sequences(found):
                exactly["attention"] = provenance["attention"]
            require_equal(exactly, found, tuple(exactly), path)
            self._read[site] = frame
        return self._read[site]

    @cached_property
    def scaled(self) -> pl.DataFrame:
        """The values that reach a scaled threshold, as in the table `scaled_hits`."""
        path = self._reader.scaled_hits[self._index]
        frame, found = self._reader.files.table(path, SCALED_HITS)
        if holds_sequences(found):
            require_equal(self._reader.provenance, found, ("attention",), path)
            for site, scales in self._reader.scaled.items():
                for scale, least in scales.items():
                    if scale in found.get("without_scale", {}).get(site, {}):
                        continue
                    if not found["scaled"].get(site, {}).get(scale, float("inf")) <= least:
                        raise InputError(
                            f"{path}: lacks hits of {site} from {least:g} on scale {scale}, expected what the rules "
                            "need; run detect_outliers again"
                        )
        return frame

    def of_rule(self, rule: HitRule, sites: Sequence[str], population: str) -> pl.DataFrame:
        """The values at the rule's sites that may be hits in a population, with the columns of `HitRule.is_hit`."""
        frames, asked = [], rule.is_hit(rule.threshold).meta.root_names()
        for number, site in enumerate(sites):
            frame = self.listed(site) if rule.scale is None else self.scaled.filter(site=site, scale=rule.scale)
            frame = frame.filter(in_population(population)).drop("site", "scale", strict=False)
            size = pl.col("value").abs()
            if rule.scale == LAYER_RMS:
                size = size.cast(pl.Float64) / pl.Series(self._reader.layer_rms(site, frame, population))
            elif rule.scale is not None:
                size = pl.col("scaled").abs()
            if "median" in asked:
                medians = self._reader.medians(site, frame)[:, [*POPULATIONS].index(population)]
                frame = frame.with_columns(median=pl.Series(medians))
            frames.append(frame.with_columns(size=size, site=pl.lit(number, pl.UInt8)).drop("scaled", strict=False))
        return pl.concat(frames)

    def listed_hits(self, rule: HitRule, site: str) -> pl.DataFrame:
        """The rule's hits at a site in either population: the columns of the table `massive` but for the tokens."""
        key = ("sequence", "layer", "token", "dim")
        hits = {
            population: self.of_rule(rule, [site], population).filter(rule.is_hit(rule.threshold)).select(*key)
            for population in POPULATIONS
        }
        every = pl.concat(list(hits.values())).unique()
        frame = self.of_rule(rule, [site], "all").join(every, on=key, maintain_order="left")
        medians = self._reader.medians(site, frame)
        size = pl.col("value").abs().cast(pl.Float64)
        for population, those in hits.items():
            here = those.with_columns(pl.lit(True).alias(f"massive_{population}"))
            frame = frame.join(here, on=key, how="left", maintain_order="left")
        return frame.select(
            *key, "value", "excluded", *(pl.col(f"massive_{one}").fill_null(False) for one in hits)
        ).with_columns(
            rule=pl.lit(rule.name),
            site=pl.lit(site),
            median=pl.Series(medians[:, 0]),
            median_without_first=pl.Series(medians[:, 1]),
            ratio=size / pl.Series(medians[:, 0]),
            ratio_without_first=pl.when(~pl.col("excluded")).then(size / pl.Series(medians[:, 1])),
        )

    def counted_for(self, sites: Sequence[str], population: str, threshold: float) -> pl.DataFrame:
        """The pairs at a threshold, jointly at `sites`, of sequences whose hits are not all listed."""
        recorded = self.counted_pairs
        if recorded.is_empty():
            return recorded
        names = [name for name in recorded["sites"].unique() if set(name.split("+")) == set(sites)]
        return recorded.filter(pl.col("sites").is_in(names), population=population, threshold=threshold)

    def _counted(self, path: Path, table: Table) -> pl.DataFrame:
        frame, found = self._reader.files.table(path, table)
        if not holds_sequences(found):
            return frame  # nothing ran there, so nothing is said of how
        require_equal(self._reader.provenance, found, ("attention",), path)
        missing = uncounted(found["counted"]["at"], self._reader.counted, found["counted"]["dense"])
        if missing:
            raise InputError(f"{path}: lacks {missing}, expected what the rules need; run detect_outliers again")
        return frame


def without_scale(counted_pairs: Sequence[Path]) -> dict[str, dict[str, str]]:
    """By site and scale why the run does not know the scale, from what its chunks say.

    Hits of a sequence that are too many on a scale are not listed; then nothing is said of the site by that scale.
    """
    found: dict[str, dict[str, str]] = {}
    for path in counted_pairs:
        provenance = provenance_of(path, COUNTED_PAIRS)
        for site, scales in provenance.get("without_scale", {}).items():
            found.setdefault(site, {}).update(scales)
        for site, sequences_of in provenance.get("unlisted", {}).items():
            for scale, sequences in sequences_of.items():
                reason = f"too many values of sequence {sequences[0]} are hits on this scale to be listed"
                found.setdefault(site, {}).setdefault(scale, reason)
    return found


def in_population(population: str) -> pl.Expr:
    """Which rows with a column `excluded` a population has."""
    return pl.lit(True) if population == "all" else ~pl.col("excluded")
