"""Classes of tokens by where they stand and what their text is."""

import unicodedata

from outlier_features.tokens.token_text import token_text
from outlier_features.tokens.tokens import Tokens

CLASSES = ("first", "special", "newline", "space", "punctuation", "number", "function word", "word", "piece", "other")
# Articles, prepositions, conjunctions, pronouns, auxiliary verbs and the like.
_OF_ENGLISH = """
    a an the this that these those some any no every each either neither both all such what which whose
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
    ourselves they them their theirs themselves who whom one ones
    of to in for on with at by from as into about after before between through during under over against within
    without among along across behind below beneath beside beyond down except inside near off onto out outside past
    since than toward towards until up upon via per
    and or but nor so yet if because although though unless while when where whereas whether
    am is are was were be been being has have had having do does did doing will would shall should can could may might
    must ought not n't 's 're 've 'll 'd 'm
    there here then thus too very also just only
"""
_FUNCTION_WORDS = frozenset(_OF_ENGLISH.split())


def class_of(text: str, before: str = "", *, first: bool = False, special: bool = False) -> str:
    """The class of a token by its text, of `CLASSES`: the first that fits.

    before    the letter that stands before it, if any
    first     it is the first position of its sequence
    special   it is a special token

    `word` begins a word, `piece` goes on with one.
    """
    if first or special:
        return "first" if first else "special"
    bare = text.strip()
    if not bare:
        return "newline" if "\n" in text or "\r" in text else "space" if text else "other"
    kinds = {unicodedata.category(letter)[0] for letter in bare}
    if kinds <= {"P", "S"}:
        return "punctuation"
    if "L" not in kinds:
        return "number" if "N" in kinds else "other"
    begins = text[0].isspace() or not before.isalnum()
    if bare.lower() in _FUNCTION_WORDS and (begins or bare.startswith(("'", "n'"))):
        return "function word"
    return "word" if begins else "piece"


def classes_of(texts: list[bytes], run: Tokens, sequence: int) -> list[str | None]:
    """The class of each position of a sequence, None of padding."""
    mask, starts = run.mask[sequence], run.offsets[sequence, :, 0]
    first = int(mask.argmax())
    return [
        class_of(
            token_text(texts, run, sequence, position) or "",
            texts[sequence][max(0, start - 4) : start].decode(errors="ignore")[-1:],  # a letter has at most four bytes
            first=position == first,
            special=bool(run.special[sequence, position]),
        )
        if mask[position]
        else None
        for position, start in enumerate(starts)
    ]
