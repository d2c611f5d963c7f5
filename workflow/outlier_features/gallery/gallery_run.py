"""What pages are made from: the tables of a run, checked to belong together."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.ablate.ablation_schema import ABLATION
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.emergence_schema import EMERGENCE
from outlier_features.errors import InputError
from outlier_features.files.missing import MISSING, require_had
from outlier_features.files.model_source import source_of
from outlier_features.files.tables import Table, provenance_of, read_batches
from outlier_features.gallery.gallery_schema import GALLERY_DIMS, GALLERY_NEURONS, GALLERY_VALUES
from outlier_features.gallery.names import THE_NEURON, Neuron
from outlier_features.gallery.token_pieces import pieces_of
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.norms.norms_schema import GAINS
from outlier_features.origin.origin_schema import LIFECYCLE, ORIGIN_NEURONS
from outlier_features.published import published_examples
from outlier_features.tokens.token_text import read_texts
from outlier_features.tokens.tokens import Array, Tokens
from outlier_features.tokens.vocabulary import Vocabulary

LOSSES = "token_losses.safetensors"
_PUBLISHED = {"layer": pl.Int64, "neuron": pl.Int64}


@dataclass(frozen=True)
class GalleryRun:
    """A run's directory, what its tokens say, and `published_examples` of its model's neurons."""

    directory: Path
    tokens: Tokens
    texts: list[bytes]
    vocabulary: Vocabulary
    published: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_PUBLISHED))

    @classmethod
    def read(cls, directory: Path, source: Path | None = None, published: Path | None = None) -> "GalleryRun":
        """source      the record of the model's fetch, whose tokenizer says what tokens are
        published   the table of published examples, if there is a source to compare with
        """
        tokens = Tokens.read(directory / "tokens.safetensors")
        texts = read_texts(directory / "texts.parquet", tokens)
        if source is None:
            return cls(directory, tokens, texts, Vocabulary())
        record = source_of(source, weights=False)
        tokens.files.require({"model_revision": record["revision"]}, source)
        read = cls(directory, tokens, texts, Vocabulary.read(Path(record["location"])))
        return replace(read, published=published_examples(published, record)) if published else read

    @property
    def name(self) -> str:
        return f"{self.tokens.provenance['model']} on {self.tokens.provenance['corpus']}"

    def path(self, table: Table) -> Path:
        return self.directory / f"{table.name}.parquet"

    def rows(self, table: Table) -> pl.DataFrame:
        """A table of the run; without rows where the run has none."""
        if not self.path(table).exists():
            return pl.DataFrame(schema=table.schema)
        return self.tokens.files.rows(self.path(table), table)

    def rows_of(self, table: Table, neurons: Collection[Neuron]) -> pl.DataFrame:
        """Of a table, the rows of these neurons."""
        wanted, batches = keys_of(neurons), self._batches(table, {neuron.layer for neuron in neurons})
        return pl.concat(batch.join(wanted, on=THE_NEURON, how="semi", nulls_equal=True) for batch in batches)

    def values_of(self, neurons: Collection[Neuron]) -> Iterator[tuple[Neuron, dict[int, pl.Series]]]:
        """What was recorded of neurons, one after the other in the table's order: values by sequence."""
        wanted = keys_of(neurons)
        rest = pl.DataFrame(schema=GALLERY_VALUES.schema)
        for batch in self._batches(GALLERY_VALUES):
            rest = pl.concat([rest, batch.join(wanted, on=THE_NEURON, how="semi", nulls_equal=True)])
            parts = by_neuron(rest)
            yield from ((neuron, _by_sequence(frame)) for neuron, frame in parts[:-1])
            rest = parts[-1][1] if parts else rest
        yield from ((neuron, _by_sequence(frame)) for neuron, frame in by_neuron(rest))

    def _batches(self, table: Table, layers: Collection[int] | None = None) -> Iterator[pl.DataFrame]:
        path = self.path(table)
        if not path.exists():
            yield pl.DataFrame(schema=table.schema)
            return
        self.tokens.files.require(provenance_of(path, table), path)
        yield from read_batches(path, table, layers)

    def require_ranking(self) -> None:
        """Raise `InputError` where the run has no ranking of neurons, with why."""
        if not self.path(NEURONS).exists():
            raise InputError(f"{self.path(NEURONS)}: expected the ranking of the run's neurons, found no such file")
        require_had(provenance_of(self.path(NEURONS), NEURONS))

    @cached_property
    def statistics(self) -> pl.DataFrame:
        """Of every neuron over all positions, without histograms."""
        batches = self._batches(NEURON_STATISTICS)
        return pl.concat(one.filter(population="all").drop("histogram") for one in batches).sort(THE_NEURON)

    @cached_property
    def pages(self) -> pl.DataFrame:
        return self.rows(GALLERY_NEURONS)

    @cached_property
    def neurons_with_page(self) -> list[Neuron]:
        """In the order of the blocks."""
        return [Neuron(*row) for row in self.pages.select(THE_NEURON).sort(THE_NEURON).rows()]

    @cached_property
    def recorded(self) -> pl.DataFrame:
        """Values of dims, and of norms, along the text."""
        return self.rows(GALLERY_DIMS)

    @cached_property
    def dims_with_page(self) -> list[int]:
        """In the table's order: dims by their size."""
        return self.recorded["dim"].drop_nulls().unique(maintain_order=True).to_list()

    @cached_property
    def sequences_with_page(self) -> list[int]:
        return self.recorded["sequence"].unique().sort().to_list()

    @cached_property
    def emergence(self) -> pl.DataFrame:
        return self.rows(EMERGENCE)

    @cached_property
    def selected(self) -> pl.DataFrame:
        return self.rows(DIMS).filter("selected")

    @cached_property
    def lifecycle(self) -> pl.DataFrame:
        return self.rows(LIFECYCLE)

    @cached_property
    def gains(self) -> pl.DataFrame:
        return self.rows(GAINS)

    @cached_property
    def ablation(self) -> pl.DataFrame:
        return self.rows(ABLATION)

    @cached_property
    def origin_neurons(self) -> pl.DataFrame:
        return self.rows(ORIGIN_NEURONS)

    def pages_of(self, neurons: Collection[Neuron]) -> pl.DataFrame:
        return self.pages.join(keys_of(neurons), on=THE_NEURON, how="semi", nulls_equal=True)

    def length(self, sequence: int) -> int:
        """Tokens of a sequence, without padding."""
        return int(self.tokens.mask[sequence].sum())

    def pieces(self, sequence: int) -> list[str]:
        return pieces_of(self.texts, self.tokens, sequence, self.vocabulary)

    def losses_of(self, sequence: int) -> Array | None:
        """What each token of a sequence cost the model, NaN where it was not predicted; None if it was not recorded."""
        path = self.directory / LOSSES
        if not path.exists():
            return None
        file = self.tokens.files.tensors(path)
        return None if MISSING in file.provenance else file.array("nll")[sequence, : self.length(sequence)]


def keys_of(neurons: Collection[Neuron]) -> pl.DataFrame:
    schema = {name: GALLERY_NEURONS.schema[name] for name in THE_NEURON}
    return pl.DataFrame([*neurons], schema=schema, orient="row")


def by_neuron(frame: pl.DataFrame) -> list[tuple[Neuron, pl.DataFrame]]:
    """The rows of each neuron, in the order in which they come."""
    parts: Mapping[tuple[Any, ...], pl.DataFrame] = frame.partition_by(THE_NEURON, as_dict=True, maintain_order=True)
    return [(Neuron(*key), rows) for key, rows in parts.items()]


def _by_sequence(frame: pl.DataFrame) -> dict[int, pl.Series]:
    return dict(zip(frame["sequence"].to_list(), frame["values"], strict=True))
