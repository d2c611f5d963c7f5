"""Where the names of points stand in a panel, so that none covers another or a point."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTER, LINE = 6.8, 14.0  # pixels of a name's letter and line, of 11 pixels' type
_POINT = 6.0  # half of a point's size
_DISTANCES = (0.0, 14.0, 30.0, 50.0, 75.0)
_SHIFTS = (0.0, 0.5, -0.5, 0.9, -0.9)  # of half a name above or below its point

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class PlacedName:
    """A name beside one of its points: the middle of its text is so many pixels to the right and above it."""

    name: str
    point: int
    right: float
    up: float
    apart: bool  # too far from it to be its without a line


def place_names(
    names: Sequence[tuple[str, Sequence[int]]],
    points: Sequence[tuple[float, float]],
    bars: Sequence[Box],
    width: float,
    height: float,
) -> list[PlacedName]:
    """Names in the order in which they get room; one for which there is none is left out.

    names    each with the points that it may stand beside, the first ones rather
    points   pixels from the panel's left and bottom
    bars     what no name should cover: intervals, lines
    """
    on_points = [_around(x, y, _POINT, _POINT) for x, y in points]
    texts: list[Box] = []
    lines = [*bars]
    placed = []
    for name, mine in names:
        wide, tall = len(name) * LETTER / 2, LINE / 2
        free = []
        for point, right, up, distance in _places(mine, wide, tall):
            x, y = points[point]
            box = _around(x + right, y + up, wide, tall)
            leader = [*along((x, y), (x + right, y + up))] if distance else []
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            crosses = any(_touch(part, text) for part in leader for text in texts)
            if inside and not crosses and not any(_touch(box, other) for other in (*texts, *on_points)):
                free.append((PlacedName(name, point, right, up, distance > 0), box, leader))
                if not any(_touch(box, line) for line in lines):
                    break
        else:
            free = free[:1]  # across a line rather than nowhere
        if free:
            one, box, leader = free[-1]
            placed.append(one)
            texts.append(box)
            lines += leader
    return placed


def _places(points: Sequence[int], wide: float, tall: float) -> Iterator[tuple[int, float, float, float]]:
    for distance in _DISTANCES:
        gap = _POINT + 2 + distance
        sides = [(across * (gap + wide), 0.0) for across in (1, -1)]
        sides += [(shift * wide, up * (gap + tall)) for shift in _SHIFTS for up in (1, -1)]
        sides += [(across * (gap + wide), up * (gap + tall)) for across in (1, -1) for up in (1, -1)]
        yield from ((point, right, up, distance) for point in points for right, up in sides)


def along(start: tuple[float, float], end: tuple[float, float]) -> Iterator[Box]:
    """Small boxes that cover a line."""
    steps = max(1, round(math.dist(start, end) / 6))
    for step in range(steps + 1):
        x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
        yield _around(x, y, 2, 2)


def _around(x: float, y: float, wide: float, tall: float) -> Box:
    return x - wide, y - tall, x + wide, y + tall


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
