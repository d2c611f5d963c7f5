"""The stretches of a sequence that a page shows around its examples."""

from collections.abc import Iterable

BEFORE, AFTER = 50, 10


def window(position: int, length: int) -> tuple[int, int]:
    """First position, and one past the last, of up to 50 before and 10 after `position` in a sequence."""
    return max(0, position - BEFORE), min(length, position + AFTER + 1)


def joined_windows(positions: Iterable[int], length: int) -> list[tuple[int, int]]:
    """The windows of `positions`, those that meet or overlap as one, in order."""
    joined: list[tuple[int, int]] = []
    for position in sorted(positions):
        first, end = window(position, length)
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((first, end))
    return joined
