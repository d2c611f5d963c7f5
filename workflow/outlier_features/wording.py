"""Numbers and lists in English sentences."""

from collections.abc import Collection, Iterable, Sequence

DASH = "–"


def number(value: float | int | None) -> str:
    """Integers, and others from a thousand to ten million, in full; else four significant digits."""
    if value is None:
        return DASH
    if isinstance(value, int) or 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def in_words(value: float) -> str:
    """As `number`, but from a million on as `21.9 million`, to three significant digits."""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if unit <= abs(value) < 1e15:
            return f"{float(f'{value / unit:.3g}'):g} {name}"
    return number(value)


def percent(share: float | None) -> str:
    """A share to three significant digits, as in `25 %`."""
    return DASH if share is None else f"{float(f'{100 * share:.3g}'):,g} %"


def count(items: int, noun: str) -> str:
    return f"{items:,} {noun}" if items == 1 else f"{items:,} {noun}s"


def capital(text: str) -> str:
    """A sentence's beginning; `str.capitalize` would make small letters of the rest."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listing(items: Iterable[object]) -> str:
    """`a`, `a and b`, `a, b and c`; nothing of nothing."""
    *first, last = [*map(str, items)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def some(names: Sequence[object], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return listing([*names[:most], *([f"{len(names) - most:,} more"] if len(names) > most else [])])


def span(values: Iterable[float | None]) -> str:
    """`20 to 48`, from the least to the largest that are known, or the one number that both are."""
    known = [value for value in values if value is not None]
    low, high = number(min(known, default=None)), number(max(known, default=None))
    return low if low == high else f"{low} to {high}"


def rules_named(names: Collection[str], verb: str = "") -> str:
    """`rule massive`, `rules massive and mine`, and a verb in the singular or the plural: `rules a and b select`."""
    subject = f"rule {listing(names)}" if len(names) == 1 else f"rules {listing(names)}" if names else "no rule"
    return f"{subject} {verb if len(names) > 1 else verb + 's'}" if verb else subject


def ranges(indices: Iterable[int]) -> str:
    """Consecutive indices drawn together: `2, 5 to 7 and 9`."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return listing(f"{run[0]} to {run[-1]}" if len(run) > 1 else run[0] for run in runs)


def layers(indices: Sequence[int]) -> str:
    """`layer 3` or `layers 3 to 7`."""
    return f"layer{'s' if len(set(indices)) > 1 else ''} {ranges(indices)}"
