"""Names of models that are run: `<model>`, `<model>@<revision>`, and of a half of an encoder-decoder model also
`<model>.<half>` and `<model>@<revision>.<half>`."""

import re

AT = "@"
HALVES = ("encoder", "decoder")
_STEP = re.compile(r"(?:step|checkpoint|ckpt|iteration|iter)[-_]?(\d+)", re.ASCII | re.IGNORECASE)


def split_name(name: str) -> tuple[str, str | None]:
    """The model's name without its revision, and the revision, None where it names none."""
    model, at, rest = name.partition(AT)
    if not at:
        return name, None
    revision, dot, half = rest.rpartition(".")
    return (f"{model}.{half}", revision) if dot and half in HALVES else (model, rest)


def is_trained(revision: str | None) -> bool:
    """Whether what was published of a model is of this revision of it, as far as a name tells: of `main`."""
    return revision in (None, "main")


def split_half(name: str) -> tuple[str, str | None]:
    """The name of the whole model, and which half of it is meant."""
    whole, dot, half = name.rpartition(".")
    return (whole, half) if dot and half in HALVES else (name, None)


def step_of(revision: str) -> int | None:
    """The training step that a revision's name tells: `step1000`, `checkpoint-500`, `ckpt_020`, `1000`; else None.

    A name with two such numbers tells none.
    """
    if re.fullmatch(r"\d+", revision, re.ASCII):
        return int(revision)
    found = _STEP.findall(revision)
    return int(found[0]) if len(found) == 1 else None
