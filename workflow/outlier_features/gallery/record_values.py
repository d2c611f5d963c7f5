"""What is recorded of the neurons and dims that have pages, one sequence after the other."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from outlier_features.errors import InputError
from outlier_features.gallery.choose_pages import ranked_sequences
from outlier_features.gallery.gallery_schema import GALLERY_DIMS, GALLERY_NEURONS, GALLERY_VALUES
from outlier_features.gallery.names import THE_NEURON, Neuron
from outlier_features.gallery.nearest_neurons import MOST, NearestNeurons
from outlier_features.gallery.sequence_values import SequenceValues
from outlier_features.gallery.typical_examples import (
    EXAMPLES,
    INTERVALS,
    TypicalExamples,
    interval_bounds,
    position_keys,
)
from outlier_features.model.verify_sites import TOLERANCE
from outlier_features.neurons.position_classes import norms_of

Array = np.ndarray[Any, Any]
_OF_EXAMPLES = 2048  # bytes of a neuron's typical examples
Write = Callable[[pl.DataFrame], None]


class ValueRecorder:
    """Values of the neurons that have pages, and of dims.

    differing   neurons whose smallest or largest value is not bit by bit that of the run's statistics, as on a device
                where a pass of one sequence is not that of a batch
    """

    def __init__(
        self,
        values: SequenceValues,
        pages: pl.DataFrame,
        texts: Sequence[bytes],
        neurons: Path,
        *,
        seed: int,
        at_once: int,
    ):
        """pages     of `choose_pages`
        texts     of the sequences
        neurons   the run's table of ranked neurons
        seed      see `position_keys`
        at_once   bytes of values of neurons that are held
        """
        self._values, self._pages, self._texts, self._neurons = values, pages, texts, neurons
        self._seed, self._at_once = seed, at_once
        dense = pages["expert"].is_null().to_numpy()
        self._compared = np.flatnonzero(dense)
        self._nearest = NearestNeurons(len(self._compared)) if 0 < len(self._compared) <= MOST else None
        self._dims: list[dict[str, Any]] = []
        self.differing = 0

    def run(self, write_examples: Write, write_values: Write, dims: Sequence[int], sequences: int) -> None:
        """Run the model over all sequences, once or, where the values of all neurons are too many to be held, once for
        so many neurons as can be.

        dims        of which values are recorded, with the norm, in the first `sequences` sequences

        Raises `InputError` where the model's values are not those of the run.
        """
        groups = list(self._groups())
        for number, (start, stop) in enumerate(groups):
            desc = "record examples" + (f" {number + 1}/{len(groups)}" if len(groups) > 1 else "")
            group = _Group(self._pages[start:stop], ranked_sequences(self._neurons, self._pages[start:stop]))
            everything = number == 0 and self._nearest is not None
            own = slice(start, stop) if everything else slice(None)
            asked = self._pages if everything else self._pages[start:stop]
            for n in tqdm(range(len(self._texts)), desc=desc, unit="sequence", file=sys.stderr):
                stream = number == 0 and n < sequences
                found, streams = self._values.record(n, asked, stream=stream)
                positions = self._values.positions(n)
                group.add(n, positions, position_keys(self._seed, self._texts[n], positions), found[:, own])
                if everything and self._nearest:
                    self._nearest.add(found[:, self._compared])
                self._add_dims(n, streams, dims)
            self._require_same(group)
            write_examples(group.examples())
            for frame in group.values():
                write_values(frame)

    def nearest(self) -> dict[str, pl.Series]:
        """The columns `nearest` and `cosines` of the pages; null where they are too many to be compared."""
        names: list[Any] = [None] * len(self._pages)
        cosines: list[Any] = [None] * len(self._pages)
        spelled = [str(Neuron(*row)) for row in self._pages.select(THE_NEURON).rows()]
        for own, others in zip(self._compared, self._nearest.nearest() if self._nearest else [], strict=False):
            names[own] = [spelled[self._compared[one]] for one, _ in others]
            cosines[own] = [cosine for _, cosine in others]
        columns: dict[str, list[Any]] = {"nearest": names, "cosines": cosines}
        return {name: pl.Series(name, column, dtype=GALLERY_NEURONS.schema[name]) for name, column in columns.items()}

    def dim_rows(self) -> pl.DataFrame:
        """The rows of `GALLERY_DIMS`: dim by dim in their order, then the norm, by layer and sequence."""
        frame = pl.DataFrame(self._dims, schema={"at": pl.Int64, **GALLERY_DIMS.schema})
        return frame.sort("at", "layer", "sequence")

    def _groups(self) -> Iterator[tuple[int, int]]:
        """From which page on and up to which the values of their examples can be held together."""
        length = self._values.run.mask.shape[1]
        most = self._pages["ranked"].fill_null(0).to_numpy().astype(np.int64) + INTERVALS * EXAMPLES
        sizes = np.minimum(most, len(self._texts)) * length * np.dtype(np.float32).itemsize + _OF_EXAMPLES
        start, held = 0, 0
        for at, size in enumerate(sizes.tolist()):
            if held and held + size > self._at_once:
                yield start, at
                start, held = at, 0
            held += size
        yield start, len(sizes)

    def _add_dims(self, sequence: int, streams: dict[int, Array], dims: Sequence[int]) -> None:
        for layer, values in streams.items():
            norms = norms_of(values).astype(np.float32)
            each = [*((dim, values[:, dim]) for dim in dims), (None, norms)]
            for at, (dim, along) in enumerate(each):
                row = {"at": at, "layer": layer, "dim": dim, "sequence": sequence}
                self._dims.append({**row, "values": along.copy()})

    def _require_same(self, group: "_Group") -> None:
        """Raise `InputError` where the extremes are not those of the run's statistics, within what another order of the
        model's sums makes of them."""
        low, high, found_low, found_high = group.extremes()
        off = (low != found_low) | (high != found_high)
        self.differing += int(off.sum())
        size = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
        moved = np.maximum(np.abs(found_low - low), np.abs(found_high - high))
        allowed = max(1e-3, 3 * TOLERANCE[self._values.loaded.dtype])
        wrong = ~(moved <= allowed * size)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(
                f"neuron_statistics.parquet: has {low[at]:.6g} to {high[at]:.6g} for neuron {group.name(at)}, but the "
                f"model gives {found_low[at]:.6g} to {found_high[at]:.6g}, expected the same values; delete the run's "
                "tables to have them made again"
            )


class _Group:
    """Neurons whose values are held together: those at the sequences of an example, of which ones are known before, and
    others come and go with the typical ones."""

    def __init__(self, pages: pl.DataFrame, ranked: list[set[int]]):
        self._pages, self._ranked = pages, ranked
        self._low, self._high = (pages[name].to_numpy() for name in ("min", "max"))
        self._typical = TypicalExamples(interval_bounds(self._low, self._high))
        self._held: list[dict[int, Array]] = [{} for _ in ranked]

    def name(self, at: int) -> str:
        return str(Neuron(*self._pages.select(THE_NEURON).row(at)))

    def add(self, sequence: int, positions: Array, keys: Array, values: Array) -> None:
        """A sequence's values, float32 (T, n)."""
        taken = self._typical.add(sequence, positions, keys, values)
        by_neuron = np.ascontiguousarray(values.T)
        for at, held in enumerate(self._held):
            if taken[at] or sequence in self._ranked[at]:
                held[sequence] = by_neuron[at].copy()
                if len(held) > len(self._ranked[at]) + INTERVALS * EXAMPLES:
                    self._forget(at)

    def _forget(self, at: int) -> None:
        needed = self._ranked[at] | self._typical.sequences(at)
        self._held[at] = {sequence: values for sequence, values in self._held[at].items() if sequence in needed}

    def extremes(self) -> tuple[Array, Array, Array, Array]:
        """Smallest and largest values by the run's statistics, and as they were found."""
        return self._low, self._high, self._typical.chosen.low, self._typical.chosen.high

    def examples(self) -> pl.DataFrame:
        """The rows of `GALLERY_EXAMPLES`."""
        columns = self._typical.rows()
        neurons = self._pages.select(THE_NEURON)[columns.pop("at")]
        rows = neurons.with_columns(pl.Series(name, values) for name, values in columns.items())
        there = pl.col("rank") > 0
        return rows.with_columns(
            pl.when(there).then(pl.col(name)).alias(name) for name in ("value", "sequence", "token", "rank")
        )

    def values(self) -> Iterator[pl.DataFrame]:
        """The rows of `GALLERY_VALUES`, a layer's at a time."""
        for layer in self._pages["layer"].unique(maintain_order=True):
            rows: dict[str, list[Any]] = {name: [] for name in GALLERY_VALUES.schema}
            for at in np.flatnonzero((self._pages["layer"] == layer).to_numpy()).tolist():
                self._forget(at)
                neuron = self._pages.select(THE_NEURON).row(at, named=True)
                for sequence in sorted(self._held[at]):
                    for name, value in {**neuron, "sequence": sequence, "values": self._held[at][sequence]}.items():
                        rows[name].append(value)
                self._held[at] = {}
            yield pl.DataFrame(rows, schema=GALLERY_VALUES.schema)
