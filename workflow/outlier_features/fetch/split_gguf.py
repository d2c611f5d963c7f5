"""The names of the parts into which llama.cpp splits a GGUF file; each part is a whole GGUF file itself."""

import re

_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf", re.DOTALL)


def parts_of(name: str) -> list[str]:
    """The names of all parts of the file that `name` is a part of, in order; of any other name, itself alone."""
    match = _PART.fullmatch(name)
    return split_names(f"{match[1]}.gguf", int(match[2])) if match else [name]


def split_names(name: str, count: int) -> list[str]:
    """The names of `count` parts of the file `name`."""
    return [f"{name.removesuffix('.gguf')}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
