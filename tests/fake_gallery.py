"""A small run with a gallery: its activations are chosen, and its tables are made from them one value at a time."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fake_run import FakeRun
from outlier_features.files.artifacts import write_json
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.gallery.gallery_schema import GALLERY_DIMS, GALLERY_EXAMPLES, GALLERY_NEURONS, GALLERY_VALUES
from outlier_features.gallery.names import Neuron
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS

POPULATIONS = ("all", "without_first", "without_high_norm")
BINS = 16


@dataclass
class FakeGallery:
    """`neurons` in each of the run's blocks or, with `experts`, of each expert, all with a page but those of `bare`
    blocks; of each side and population `examples`. Position 2 of each sequence is one of high norm."""

    run: FakeRun = field(default_factory=lambda: FakeRun(pieces=tuple(f" w{n}" for n in range(90)), sequences=3))
    neurons: int = 4
    experts: int = 0
    examples: int = 2
    bare: tuple[int, ...] = (0,)
    values: bool = True

    @cached_property
    def acts(self) -> dict[Neuron, np.ndarray]:
        """mlp_act of each neuron at each sequence and position; NaN where its expert was not given the token."""
        rng = np.random.default_rng(7)
        shape = self.run.sequences, len(self.run.pieces)
        found = {}
        for layer in range(self.run.layers):
            for expert in range(self.experts) if self.experts else (None,):
                for neuron in range(self.neurons):
                    act = (rng.standard_normal(shape) * 10.0 ** (neuron - 1)).astype(np.float32)
                    act[:, 0] = 3 * abs(act).max()
                    if expert is not None:
                        act[rng.random(shape) < 0.3] = np.nan
                    found[Neuron(layer, expert, neuron)] = act
        return found

    @cached_property
    def with_page(self) -> list[Neuron]:
        return [one for one in self.acts if one.layer not in self.bare]

    @property
    def dims(self) -> tuple[int, ...]:
        return self.run.massive

    def along(self, dim: int | None, layer: int, sequence: int) -> np.ndarray:
        """A dim of resid_post along the text, or the norm."""
        rng = np.random.default_rng([1000 if dim is None else dim, layer, sequence])
        values = rng.standard_normal(len(self.run.pieces)).astype(np.float32)
        values[0] = -300.0
        return abs(values) if dim is None else values

    def inside(self, population: str) -> np.ndarray:
        """Which positions of each sequence a population has."""
        found = np.ones(len(self.run.pieces), bool)
        if population == "without_first":
            found[0] = False
        if population == "without_high_norm":
            found[2] = False
        return found

    def best(self, neuron: Neuron, population: str, side: str) -> list[tuple[float, int, int]]:
        """Value, sequence and position of the examples, by looking at each."""
        sign = 1 if side == "max" else -1
        each = []
        for sequence, act in enumerate(self.acts[neuron]):
            places = [n for n in range(len(act)) if self.inside(population)[n] and not np.isnan(act[n])]
            if places:
                place = max(places, key=lambda n: (sign * act[n], -n))
                each.append((float(act[place]), sequence, place))
        return sorted(each, key=lambda one: (-sign * one[0], one[1]))[: self.examples]

    def loss(self, sequence: int) -> np.ndarray:
        """Of each token; the first is not predicted."""
        losses = np.linspace(0.5, 4.0 + sequence, len(self.run.pieces), dtype=np.float32)
        losses[0] = np.nan
        return losses

    def write(self, directory: Path) -> Path:
        self.run.write(directory)
        losses = np.stack([self.loss(sequence) for sequence in range(self.run.sequences)])
        write_tensors(directory / "token_losses.safetensors", {"nll": losses}, self.run.provenance)
        frames = {
            NEURONS: self._ranked(), NEURON_STATISTICS: self._statistics(), GALLERY_NEURONS: self._pages(),
            GALLERY_EXAMPLES: self._examples(), GALLERY_VALUES: self._values(), GALLERY_DIMS: self._dims(),
        }  # fmt: skip
        for table, rows in frames.items():
            frame = pl.DataFrame(rows, schema=table.schema)
            write_table(directory / f"{table.name}.parquet", frame, table, self.run.provenance)
        return directory

    def write_source(self, directory: Path) -> Path:
        """The record of the fetch of a model with a byte-level tokenizer of 300 tokens."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        directory.mkdir(parents=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({one: place for place, one in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(directory / "tokenizer.json"))
        record = {
            "kind": "pypi",
            "origin": "a wheel",
            "revision": "0" * 8,
            "licence": None,
            "location": ".",
            "files": {},
        }
        write_json(directory / "source.json", record)
        return directory / "source.json"

    def _ranked(self) -> list[dict[str, Any]]:
        return [
            {"population": population, **neuron._asdict(), "side": side, "rank": rank, "value": value,
             "sequence": sequence, "token": token}
            for population in POPULATIONS
            for neuron in self.acts
            for side in ("max", "min")
            for rank, (value, sequence, token) in enumerate(self.best(neuron, population, side), start=1)
        ]  # fmt: skip

    def _statistics(self) -> list[dict[str, Any]]:
        rows = []
        for population in POPULATIONS:
            for neuron, act in self.acts.items():
                values = act[:, self.inside(population)].astype(float).ravel()
                values = values[~np.isnan(values)]
                width = 2.0 ** np.ceil(np.log2((values.max() - values.min()) / BINS))
                low = np.floor(values.min() / width) * width
                places = np.floor((values - low) / width).astype(int)
                spread = values - values.mean()
                rows.append({
                    "population": population, **neuron._asdict(), "tokens": len(values),
                    "active_share": (values > 0).mean(), "mean": values.mean(), "std": values.std(),
                    "kurtosis": (spread**4).mean() / (spread**2).mean() ** 2, "min": values.min(), "max": values.max(),
                    "histogram_low": low, "histogram_width": width, "histogram": np.bincount(places).tolist(),
                })  # fmt: skip
        return rows

    def _pages(self) -> list[dict[str, Any]]:
        return [
            {**neuron._asdict(), "reasons": ["kurtosis", *(f"feeds dim {dim}" for dim in self.dims)],
             "writes_dims": [*self.dims], "writes": [-2.5 * (n + 1) for n in range(len(self.dims))],
             "writes_weights": [0.5] * len(self.dims), "top_tokens": [220, 32], "top_logits": [0.5, 0.25],
             "bottom_tokens": [195], "bottom_logits": [-0.125],
             "nearest": [str(one) for one in self.with_page if one != neuron][:3],
             "cosines": [0.75, 0.5, -0.25][: len(self.with_page) - 1]}
            for neuron in self.with_page
        ]  # fmt: skip

    def _examples(self) -> list[dict[str, Any]]:
        """Of each interval the first positions, at most five."""
        rows = []
        for neuron in self.with_page:
            act = self.acts[neuron]
            ends = np.linspace(np.nanmin(act), np.nanmax(act), 11)
            for interval, (low, high) in enumerate(pairwise(ends)):
                last = interval == 9
                inside = np.argwhere((act >= low) & ((act <= high) if last else (act < high)))
                row = {**neuron._asdict(), "interval": interval, "low": low, "high": high, "in_interval": len(inside)}
                rows += [
                    {**row, "rank": rank, "value": act[sequence, token], "sequence": sequence, "token": token}
                    for rank, (sequence, token) in enumerate(inside[:5].tolist(), start=1)
                ] or [row]
        return rows

    def _values(self) -> list[dict[str, Any]]:
        return [
            {**neuron._asdict(), "sequence": sequence, "values": self.acts[neuron][sequence].tolist()}
            for neuron in self.with_page
            for sequence in range(self.run.sequences)
            if self.values
        ]

    def _dims(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "dim": dim, "sequence": sequence, "values": self.along(dim, layer, sequence).tolist()}
            for dim in (*self.dims, None)
            for layer in range(self.run.layers)
            for sequence in range(self.run.sequences)
        ]
