"""Dims in sentences: marked where a sentence is made, so that a page can lead from each number to its dim."""

import re
from collections.abc import Callable, Iterable

# Of the private use area: no text has them, and what has them all the same is a number that leads to a dim.
_OPEN, _CLOSE = "\ue0d1", "\ue0d2"
_MARKED = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class Sentence(str):
    """Text that reads as any other; `marked` has marks around the numbers of its dims."""

    marked: str

    def __new__(cls, marked: str) -> "Sentence":
        sentence = super().__new__(cls, unmarked(marked))
        sentence.marked = marked_of(marked)
        return sentence


def dim_mark(dim: int | str) -> str:
    """The number of a dim of the residual stream, to stand in a `Sentence`."""
    return f"{_OPEN}{dim}{_CLOSE}"


def dim_name(dim: int) -> str:
    """What a dim is called in files and links: `D507`."""
    return f"D{dim}"


def marked_of(text: str) -> str:
    """The text with what marks it has."""
    return text.marked if isinstance(text, Sentence) else text


def joined(sentences: Iterable[str], by: str = " ") -> "Sentence":
    return Sentence(by.join(map(marked_of, sentences)))


def unmarked(text: str) -> str:
    return _MARKED.sub(r"\1", marked_of(text))


def has_marks(text: str) -> bool:
    return _MARKED.search(text) is not None


def replace_dims(text: str, by: Callable[[int], str]) -> str:
    """A marked text, each of its dims as `by` writes it."""
    return _MARKED.sub(lambda found: by(int(found[1])), text)
