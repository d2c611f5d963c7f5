"""Text from a corpus as it can be shown: what is invisible, or turns the text around it, becomes a symbol."""

import unicodedata

LONGEST = 80
_SYMBOLS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
# Controls, formatting (zero widths, bidirectional overrides), surrogates, separators of lines and paragraphs.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_RIGHT_TO_LEFT = {"R", "AL", "AN"}


def visible(text: str) -> str:
    """`text` with every control and formatting character replaced by a symbol or its code point."""
    return "".join(map(_shown, text))


def shortened(text: str) -> str:
    """At most 80 characters of a text; a token can have a hundred thousand."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def visible_start(text: str, most: int) -> str:
    """`text` made visible, cut to so many characters: one that cannot be seen takes several to show."""
    shown = visible(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def quoted(text: str) -> str:
    """`text` made visible, in quotation marks; right-to-left letters in it do not move the words around it."""
    shown = visible(shortened(text))
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in shown):
        shown = f"\u2068{shown}\u2069"
    return f"“{shown}”"


def place(sequence: int, position: int, text: str | None) -> str:
    """Where a token is and what it says: `position 0 of sequence 8 (“The”)`; None is a text that is not known."""
    token = "" if text is None else f" ({quoted(text) if text else 'a token without text'})"
    return f"position {position} of sequence {sequence}{token}"


def _shown(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in _INVISIBLE:
        return f"‹U+{ord(character):04X}›"
    return character
