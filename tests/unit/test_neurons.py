"""What is kept of neurons, against sorted lists of all their values; the same however the work is cut."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from outlier_features.neurons.bank import Bank
from outlier_features.neurons.kept_neurons import BankShape, KeptNeurons, merged, split_places
from outlier_features.neurons.neurons_kernel import bins_exponent, insert_rows, new_store
from outlier_features.neurons.position_classes import PADDED, POPULATION_CLASSES, position_classes

T, NEURONS, SEQUENCES, EXAMPLES = 12, 40, 37, 5
MOMENTS = {"rel": 1e-9, "abs": 1e-12}


def some_values(rng, shape):
    """Of many kinds, one after the other from neuron to neuron."""
    plain = rng.standard_normal(shape)
    kinds = [
        plain,
        np.maximum(plain, 0) * rng.choice([-1.0, 1.0], shape),  # zeros of both signs
        np.full(shape, 0.3),
        np.full(shape, -0.0),
        1000 + 1e-3 * plain,
        rng.integers(-1, 2, shape),
        plain * 1e-43,
        np.exp(8 * plain),
        plain - 5,
        np.where(plain > 2.5, 3e30, plain),
    ]
    values = np.empty(shape, np.float32)
    for n in range(shape[-1]):
        values[..., n] = kinds[n % len(kinds)][..., n]
    return values


def list_by_hand(cells, neuron, side, examples):
    """(value, sequence, position) of the sequences whose extreme is the most; `cells`: sequence, positions, values."""
    sign = 1 if side == "max" else -1
    found = []
    for sequence, tokens, values in cells:
        if len(tokens):
            column = (sign * values[:, neuron]).tolist()
            first = column.index(max(column))
            found.append((-column[first], sequence, int(tokens[first])))
    return [(-sign * value + 0.0, *place) for value, *place in sorted(found)[:examples]]


def statistics_by_hand(cells, neuron):
    x = np.concatenate([values[:, neuron] for _, _, values in cells]).astype(np.float64)
    low, high = x.min(), x.max()

    def fits(exponent):
        width = 2.0**exponent
        return max(abs(low), abs(high)) < width * 2**24 and high // width - low // width < 64

    width = 2.0 ** next(exponent for exponent in range(-149, 128) if fits(exponent))
    edges = width * np.arange(low // width, high // width + 2)
    away = x - x.mean()
    varies = low < high
    return {
        "tokens": len(x), "active_share": (x > 0).mean(), "mean": x.mean(), "std": np.sqrt((away**2).mean()) * varies,
        "kurtosis": (away**4).mean() / (away**2).mean() ** 2 if varies else None, "min": low, "max": high,
        "histogram_low": edges[0], "histogram_width": width, "histogram": np.histogram(x, edges)[0].tolist(),
    }  # fmt: skip


def keep(values, classes, sequences, shape, routed=None, threads=1):
    """What a bank keeps of sequences by class, with positions of each expert."""
    bank = Bank(shape, min(EXAMPLES, len(sequences)), threads)
    for sequence in sequences:
        for expert in range(max(shape.experts, 1)):
            tokens = np.arange(T) if routed is None else np.flatnonzero(routed[sequence] == expert)
            for job in bank.jobs(expert, values[sequence][tokens], tokens, classes[sequence], sequence):
                assert job()
    return dict(bank.kept())


def bits(kept):
    return {field.name: getattr(kept, field.name).tobytes() for field in fields(kept) if field.name != "moments"}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    classes = rng.choice([0, 0, 0, 0, 1, 2, 3, PADDED], (SEQUENCES, T))
    classes[5] = PADDED
    values = some_values(rng, (SEQUENCES, T, NEURONS))
    values[7], classes[7] = values[3], classes[3]  # all of a sequence is a tie
    return values, classes, rng.integers(0, 3, (SEQUENCES, T))


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("population", POPULATION_CLASSES)
def test_against_all_values(data, experts, population):
    values, classes, routed = data
    shape, routed = BankShape("4", 4, experts, NEURONS), routed if experts else np.zeros_like(routed)
    by_class = keep(values, classes, range(SEQUENCES), shape, routed)
    wanted = POPULATION_CLASSES[population]
    kept = merged([by_class[one] for one in wanted], shape, EXAMPLES)
    sequence, token = split_places(kept.place)
    for expert in range(max(experts, 1)):
        here = np.isin(classes, wanted) & (routed == expert)
        cells = [(n, np.flatnonzero(here[n]), values[n][here[n]]) for n in range(SEQUENCES)]
        for neuron in range(NEURONS):
            row = expert * NEURONS + neuron
            for side, sign in enumerate((1, -1)):
                found = zip(sign * kept.value[side, row], sequence[side, row], token[side, row], strict=True)
                expected = list_by_hand(cells, neuron, ("max", "min")[side], EXAMPLES)
                assert [(float(value), *place) for value, *place in found] == expected
            expected = statistics_by_hand(cells, neuron)
            n = kept.counts[row]
            mean, second, _, fourth = kept.moments[:, row]
            assert n == expected["tokens"] and kept.active[row] / n == expected["active_share"]
            assert mean == pytest.approx(expected["mean"], **MOMENTS)
            assert np.sqrt(second / n) == pytest.approx(expected["std"], rel=1e-9)
            if expected["std"] > 1e-40:
                assert n * fourth / second**2 == pytest.approx(expected["kurtosis"], rel=1e-9)
            assert (kept.low[row], kept.high[row]) == (expected["min"], expected["max"])
            width = 2.0 ** bins_exponent(kept.low[row], kept.high[row])
            numbers = int(expected["min"] // width) + np.arange(len(expected["histogram"]))
            assert width == expected["histogram_width"]
            assert kept.histogram[row, numbers % 64].tolist() == expected["histogram"]
            assert kept.histogram[row].sum() == n


@pytest.mark.parametrize("seed", range(6))
def test_however_it_is_cut_and_put_together(data, seed):
    values, classes, routed = data
    rng = np.random.default_rng(seed)
    shape = BankShape("4.experts", 4, 3, NEURONS) if seed % 2 else BankShape("4", 4, 0, NEURONS)
    routed = routed if shape.experts else None
    whole = keep(values, classes, range(SEQUENCES), shape, routed)
    cuts = [0, *sorted(rng.choice(np.arange(1, SEQUENCES), rng.integers(1, 9), replace=False)), SEQUENCES]
    chunks = [
        keep(values, classes, range(a, b), shape, routed, threads=int(rng.integers(1, 4))) for a, b in pairwise(cuts)
    ]
    rng.shuffle(chunks)
    for one, expected in whole.items():
        kept = merged([chunk[one] for chunk in chunks if one in chunk], shape, EXAMPLES)
        assert bits(kept) == bits(expected)
        for power, (found, wanted) in enumerate(zip(kept.moments, expected.moments, strict=True), start=1):
            odd = np.sqrt(expected.moments[1]) ** power * (power % 2)  # which may cancel
            assert (np.abs(found - wanted) <= 1e-9 * (np.abs(wanted) + odd)).all()


def test_a_constant_has_no_deviation_to_the_last_bit(data):
    values, classes, _ = data
    shape = BankShape("0", 0, 0, NEURONS)
    chunks = [keep(values, classes, range(a, a + 10), shape) for a in (0, 10, 20)]
    kept = merged([one for chunk in chunks for one in chunk.values()], shape, EXAMPLES)
    constant = np.flatnonzero(kept.low == kept.high)
    assert set(constant) >= {2, 3, 12, 13} and not kept.moments[1:, constant].any()


@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize("order", ["random", "ascending", "descending", "equal"])
def test_lists_in_any_order_of_values(batch, order):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 1000, (200, NEURONS)).astype(np.float32)
    rows = {"random": rows, "ascending": np.sort(rows, 0), "descending": -np.sort(-rows, 0), "equal": rows * 0}[order]
    tokens = rng.integers(0, 9, rows.shape).astype(np.int32)
    store = new_store(NEURONS, 20)
    for first in range(0, len(rows), batch):
        part = slice(first, first + batch)
        sequences = np.arange(len(rows))[part]
        insert_rows(rows[part], tokens[part], sequences, store.value[0], store.place[0], store.least[0], 0, NEURONS)
    expected = np.argsort(-rows, axis=0, kind="stable")[:20]
    sequence, token = split_places(store.place[0])
    assert np.array_equal(sequence.T, expected)
    assert np.array_equal(token.T, np.take_along_axis(tokens, expected, 0))
    assert np.array_equal(store.value[0].T, np.take_along_axis(rows, expected, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told(value):
    values = np.zeros((1, T, NEURONS), np.float32)
    values[0, 3, 37] = value
    bank = Bank(BankShape("0", 0, 0, NEURONS), 2, 1)
    (job,) = bank.jobs(0, values[0], np.arange(T), np.zeros(T, np.int64), 0)
    assert not job()


def test_the_classes_of_positions():
    """High is more than so many medians of the norms of the sequence's own positions; 2 is padding."""
    parts = np.array([0, 1, 1, 1, 0, 1, 1, 2, 2])
    norms = np.array([21.0, 1, 2, 20, 2, 20.1, 1, 1e9, 0])
    assert position_classes(parts, norms, 10).tolist() == [3, 0, 0, 0, 1, 2, 0, PADDED, PADDED]
    assert position_classes(np.full(3, 2), np.ones(3), 10).tolist() == [PADDED] * 3


def test_sequences_that_are_counted_further_on(data):
    values, classes, _ = data
    shape = BankShape("0", 0, 0, NEURONS)
    first, second = (
        keep(values[part], classes[part], range(n), shape) for part, n in ((slice(0, 20), 20), (slice(20, 37), 17))
    )
    whole = keep(values, classes, range(SEQUENCES), shape)
    for one, expected in whole.items():
        kept = merged([first[one], second[one].later(20)], shape, EXAMPLES)
        assert bits(kept) == bits(expected)
    assert (KeptNeurons.nothing(shape, 3).later(5).place == -1).all()
