"""Things that are found by their names, each made when it is first asked for."""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Generic, TypeVar

from outlier_features.errors import InputError

T = TypeVar("T")


class NotThere(InputError, KeyError):
    """A name that is not in a catalogue."""

    __str__ = Exception.__str__  # KeyError's would put the sentence in quotation marks


class Catalogue(Mapping[str, T], Generic[T]):
    """Read-only: `one["name"]`, or `one.name` with `_` where the name has a `-`; names are completed, and `print` lists
    them with what each is. A name that is not there is an `InputError`, which is a `KeyError` too.

    what      what they are, in the singular, for messages
    entries   by name what it is, in a few words; None where `titled` says it of one that is made
    make      makes the one of a name
    absent    by name why one is not there
    """

    def __init__(
        self,
        what: str,
        entries: Mapping[str, str | None],
        make: Callable[[str], T],
        absent: Mapping[str, str] | None = None,
        titled: Callable[[T], str] = str,
    ):
        self._what, self._entries, self._make, self._absent = what, dict(entries), make, absent or {}
        self._titled = titled
        self._made: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise NotThere(self._why_not(name))
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _why_not(self, name: str) -> str:
        if name in self._absent:
            return f"{self._what} {name!r} is not there: {self._absent[name]}"
        nearest = get_close_matches(str(name), self._entries, 1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        return f"found no {self._what} {name!r}, expected one of {', '.join(self._entries) or 'none'}{hint}"

    def __getattr__(self, name: str) -> T:
        if name.startswith("_"):  # what Python and notebooks look for
            raise AttributeError(name)
        key = name if name in self._entries else name.replace("_", "-")
        if key not in self._entries:
            raise AttributeError(self._why_not(name))
        return self[key]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *(name.replace("-", "_") for name in self._entries)]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._entries)

    def __repr__(self) -> str:
        width = max(map(len, self._entries), default=0)
        said = {name: self._titled(self[name]) if what is None else what for name, what in self._entries.items()}
        return "\n".join(f"{name:{width}}  {what}" for name, what in said.items()) or f"no {self._what}"
