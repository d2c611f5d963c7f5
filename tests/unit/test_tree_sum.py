"""Sums over sequences, in any chunks, in chunks of chunks, and in an order of additions that is written down here."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_features.scan.tree_sum import TreeSum


def halves(values):
    """The sum of a node, by its definition."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return halves(values[:half]) + halves(values[half:])


def joined(pieces):
    together = TreeSum()
    for piece in pieces:
        for (first, size), values in zip(piece.nodes.tolist(), piece.sums(0), strict=True):
            together.add(first, size, values)
    return together


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 70), cuts=st.sets(st.integers(1, 69)), data=st.data())
def test_no_cut_changes_a_bit(seed, count, cuts, data):
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, 3)) * 10.0 ** random.integers(-8, 9, (count, 3))
    bounds = [0, *sorted(cut for cut in cuts if cut < count), count]
    pieces = []
    for first, last in pairwise(bounds):
        pieces.append(TreeSum())
        for n in range(first, last):
            pieces[-1].add(n, 1, values[n])
    middle = data.draw(st.integers(0, len(pieces)))
    groups = [group for group in (pieces[:middle], pieces[middle:]) if group]
    for together in (joined(pieces), joined([joined(group) for group in groups])):
        first, expected = 0, []
        for size in (1 << k for k in reversed(range(7)) if count >> k & 1):
            expected.append((first, size, halves(values[first : first + size])))
            first += size
        assert together.nodes.tolist() == [[begin, size] for begin, size, _ in expected]
        assert together.sums(0).tobytes() == np.stack([total for *_, total in expected]).tobytes()
    assert math.isclose(together.sums(0)[:, 0].sum(), math.fsum(values[:, 0]), rel_tol=1e-9, abs_tol=1e-6)


def test_what_was_added_is_not_changed():
    values = np.ones((4, 2))
    tree = TreeSum()
    for n in range(4):
        tree.add(n, 1, values[n])
    assert tree.sums(0).tolist() == [[4.0, 4.0]] and (values == 1).all()


def test_few_nodes_are_kept_of_many_sequences():
    tree = TreeSum()
    for n in range(3, 1003):
        tree.add(n, 1, np.zeros(1))
    assert len(tree.nodes) <= 2 * math.log2(1000)
