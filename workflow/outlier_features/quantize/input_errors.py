"""What rounding does to the input of a linear layer, added up while the model runs; and rows kept for its output."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from outlier_features.channels.linear_layers import Rows
from outlier_features.files.quantization_columns import NONE
from outlier_features.populations import EXCLUDED, PADDING, POPULATIONS, REST
from outlier_features.quantize.remedies import Read, Treatment
from outlier_features.quantize.schemes import Scheme, Seen
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
Tensor = torch.Tensor
PARTS = (EXCLUDED, REST)
# A token is sought out beside exact ones if its largest abs(x) is above so many medians of the tokens'.
LARGE = 8.0
# Of those that are sought out, so many times `keep` of a sequence are kept for certain: where they are many, they are
# drawn like others.
MOST_CERTAIN = 4


@dataclass(frozen=True)
class SequencePlaces:
    """Of the positions of a sequence, (T,).

    parts     see `position_parts`
    exact     bool, see `exact_tokens`
    order     in which positions are drawn
    """

    parts: Array
    exact: Array
    order: Array


@dataclass
class KeptRows:
    """Rows of an input on which the error of the layer's output is measured.

    values    (n, width)
    parts     (n,)
    exact     bool (n,), see `exact_tokens`
    weight    (n,): how many rows each stands for, 1 where its like are all there
    experts   (n,), of an input of experts the one that reads the row
    seen      by treatment, what its schemes know of each row's sequence, or of its expert's rows there
    """

    values: Tensor
    parts: Array
    exact: Tensor
    weight: Array
    experts: Tensor | None
    seen: list[Seen]

    @classmethod
    def joined(cls, kept: "Sequence[KeptRows]") -> "KeptRows":
        sizes = [len(one.values) for one in kept]
        return cls(
            torch.cat([one.values for one in kept]),
            np.concatenate([one.parts for one in kept]),
            torch.cat([one.exact for one in kept]),
            np.concatenate([one.weight for one in kept]),
            None if kept[0].experts is None else torch.cat([one.experts for one in kept if one.experts is not None]),
            [
                Seen.joined(list(zip(parts, sizes, strict=True)), kept[0].values.device)
                for parts in zip(*(one.seen for one in kept), strict=True)
            ],
        )


@dataclass
class InputErrors:
    """Of one input, for its treatments: by treatment and scheme, sums over the tokens of each part.

    absmax     largest abs(x) of each channel over the run, (width,)
    keep       rows of a sequence that are drawn, of those that stay exact and of the others each, beside the first and
               the largest of exact and large ones, `MOST_CERTAIN` times as many; None: none are kept at all
    noise      by (treatment, scheme's name), the sums of (x - Q(x))^2 of each part; of remedies, which are many, on the
               rows that are kept, each for as many as it stands for, unless none are
    signal     by treatment, those of x^2, of what is rounded
    tokens     rows of each part; `exact`: those that `exact_positions` leaves exact
    """

    one: Read
    treatments: Sequence[Treatment]
    schemes: Sequence[Scheme]
    remedied: Sequence[Scheme]
    absmax: Tensor
    keep: int | None = None
    noise: dict[tuple[int, str], Array] = field(default_factory=dict)
    signal: dict[int, Array] = field(default_factory=dict)
    tokens: Array = field(default_factory=lambda: np.zeros(2, np.int64))
    exact: Array = field(default_factory=lambda: np.zeros(2, np.int64))
    kept: list[KeptRows] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tried: list[dict[Any, list[Scheme]]] = []
        for treatment in self.treatments:
            alike: dict[Any, list[Scheme]] = {}
            for scheme in self.schemes if treatment.remedy == NONE else self.remedied:
                if treatment.suits(scheme):
                    alike.setdefault(scheme.formula, []).append(scheme)
            self._tried.append(alike)

    def schemes_of(self, treatment: int) -> list[Scheme]:
        """Those that it is tried with; of schemes that round alike, the first."""
        return [schemes[0] for schemes in self._tried[treatment].values()]

    def names_of(self, treatment: int, scheme: Scheme) -> list[str]:
        """Of the schemes that it is tried with and that round like this one."""
        return [one.name for one in self._tried[treatment][scheme.formula]]

    def like_none(self, treatment: int, scheme: Scheme) -> bool:
        """Its rows are rounded as without a remedy, but for those that are exact."""
        return self.treatments[treatment].positions and scheme.by_row and scheme.formula in self._tried[0]

    def add(self, rows: Rows, places: Sequence[SequencePlaces]) -> None:
        """Of a batch, the sequences of which lie at `places`."""
        length = len(places[0].parts)
        for number, place in enumerate(places):
            positions = rows.positions - number * length
            inside = (positions >= 0) & (positions < length)
            here = positions[inside].cpu().numpy()
            there = torch.from_numpy(place.parts[here] != PADDING).to(rows.values.device)
            x, at = rows.values[inside][there].float(), here[there.cpu().numpy()]
            if not len(x):
                continue
            if rows.experts is None:
                self._add(x, at, None, place)
            else:
                experts, order = torch.sort(rows.experts[inside][there], stable=True)
                self._add(x[order], at[order.cpu().numpy()], experts, place)

    def _add(self, x: Tensor, positions: Array, experts: Tensor | None, place: SequencePlaces) -> None:
        """experts   ascending, of rows that they read; each sees its own alone"""
        parts = place.parts[positions]
        exact = place.exact[positions]
        on_device = torch.from_numpy(exact).to(x.device)
        for n, part in enumerate(PARTS):
            self.tokens[n] += int((parts == part).sum())
            self.exact[n] += int((exact & (parts == part)).sum())
        counts = [len(x)] if experts is None else torch.unique_consecutive(experts, return_counts=True)[1].tolist()
        seen = [self._seen(index, x, on_device, counts) for index in range(len(self.treatments))]
        whole = range(len(seen)) if self.keep is None else (0,)
        self._sum_errors(x, on_device, parts, np.ones(len(x)), seen, whole)
        if self.keep is None:
            return
        chosen, weight = self._chosen(x, parts == EXCLUDED, exact, place.order[positions])
        at = torch.from_numpy(chosen).to(x.device)
        of_rows = seen if len(counts) == 1 else [one.at(at) for one in seen]
        self.kept.append(
            KeptRows(x[at], parts[chosen], on_device[at], weight, None if experts is None else experts[at], of_rows)
        )

    def _seen(self, index: int, x: Tensor, exact: Tensor, counts: Sequence[int]) -> Seen:
        """What the schemes of a treatment know of x, so many rows of which are read together."""
        treatment, schemes = self.treatments[index], self.schemes_of(index)
        if all(scheme.by_row for scheme in schemes):
            return Seen()
        parts = list(zip(treatment.input(x).split(counts), exact.split(counts), strict=True))
        found = [treatment.seen(own, self.absmax, rows, schemes) for own, rows in parts]
        return found[0] if len(found) == 1 else Seen.joined(list(zip(found, counts, strict=True)), x.device)

    def add_remedies(self, kept: KeptRows) -> None:
        """The sums of remedies, on the rows that were kept."""
        self._sum_errors(kept.values, kept.exact, kept.parts, kept.weight, kept.seen, range(1, len(self.treatments)))

    def _sum_errors(
        self, x: Tensor, exact: Tensor, parts: Array, weight: Array, seen: Sequence[Seen], treatments: Iterable[int]
    ) -> None:
        for index in treatments:
            treatment = self.treatments[index]
            changed = treatment.input(x)
            self._sum(self.signal, index, changed.square().sum(1), parts, weight)
            for scheme in self.schemes_of(index) if treatment.changes_input else ():
                lost = treatment.rounded(scheme, changed, seen[index], exact).sub_(changed)
                self._sum(self.noise, (index, scheme.name), lost.square_().sum(1), parts, weight)

    def _sum(self, sums: dict[Any, Array], key: Any, by_row: Tensor, parts: Array, weight: Array) -> None:
        values = by_row.double().cpu().numpy() * weight
        sums[key] = sums.get(key, 0) + np.array([values[parts == part].sum() for part in PARTS])

    def _chosen(self, x: Tensor, first: Array, exact: Array, order: Array) -> tuple[Array, Array]:
        """Rows that are kept, and how many each stands for."""
        assert self.keep is not None
        largest = x.abs().amax(1).cpu().numpy()
        sought = np.flatnonzero(exact | (largest > LARGE * np.median(largest)))
        ranked = sought[np.lexsort((-largest[sought], ~first[sought]))]
        chosen = [np.sort(ranked[: MOST_CERTAIN * self.keep])]
        weight = [np.ones(len(chosen[0]))]
        left = np.setdiff1d(np.arange(len(x)), chosen[0])
        for stratum in (left[~exact[left]], left[exact[left]]):
            drawn = stratum[np.argsort(order[stratum], kind="stable")[: self.keep]]
            chosen.append(drawn)
            weight.append(np.full(len(drawn), len(stratum) / max(len(drawn), 1)))
        return np.concatenate(chosen), np.concatenate(weight)


def of_population(sums: Array, population: str) -> Any:
    """Of sums by part, those of a population."""
    return sum(sums[PARTS.index(part)] for part in POPULATIONS[population])


def sequence_places(run: Tokens, exact: Array) -> list[SequencePlaces]:
    """Of each sequence of a run.

    exact   bool (N, T), see `exact_tokens`
    """
    length = run.tokens.shape[1]
    return [
        SequencePlaces(parts, found, np.random.default_rng([sequence, length]).permutation(length))
        for sequence, (parts, found) in enumerate(zip(run.parts, exact, strict=True))
    ]
