"""An overlay of config.yaml from what somebody calls a model and a text."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from outlier_features.dump.dumps import CORPUS
from outlier_features.errors import InputError
from outlier_features.model_name import AT, split_half, split_name

_HUB = re.compile(r"(?P<hub>[\w.-]+/(?P<name>[\w.-]+?))(?:/(?P<file>.+\.gguf))?(?:@(?P<revision>[\w.-]+))?", re.ASCII)
_LONGEST = 64  # characters of a name
Keys = dict[str, Any]


def overlay_of(
    model: str,
    catalog: Mapping[str, Mapping[str, Any]],
    *,
    texts: Sequence[Path] = (),
    corpus: str | None = None,
    sample: Mapping[str, int | None],
    dtype: str | None = None,
    results: Path | None = None,
) -> Keys:
    """The keys that differ from config.yaml.

    model    a name of the catalog, `org/name` on the hub, with `@revision` or `/file.gguf` behind it, a directory or a
             .gguf file; with `.encoder` or `.decoder` at its end one half of it
    texts    files to read, in place of the catalog's `corpus`
    sample   `sequences` and `tokens`; None: as config.yaml has it

    Raises `InputError` where `model` is none of these.
    """
    name, own = _model(model, catalog["models"])
    overlay: Keys = {"models": [name]}
    entries: Keys = {"models": own} if own else {}
    if texts:
        corpus = _name(texts[0].stem, CORPUS)
        entries["corpora"] = {corpus: {"files": [str(path) for path in texts]}}
    if corpus:
        overlay["corpora"] = [corpus]
    if chosen := {key: number for key, number in sample.items() if number is not None}:
        overlay["sample"] = chosen
    if dtype:
        overlay["extract"] = {"dtype": dtype}
        if not own and "dtype" in catalog["models"][_whole(name)]:  # which comes before `extract`
            entries["models"] = {_whole(name): {"dtype": dtype}}
    if results:
        overlay["results"] = str(results)
    return overlay | ({"catalog": entries} if entries else {})


def write_overlay(overlay: Keys, folder: Path, command: str) -> Path:
    """A file that has these keys, with a name from its model: an earlier one, or a new one beside what is there.

    command   that runs it, for its first line, but for its name
    """
    body, number = yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True), 1
    while True:
        path = folder / f"{overlay['models'][0]}{f'-{number}' if number > 1 else ''}.yaml"
        text = f"# {command} {path.name}\n{body}"
        if not path.exists():
            path.write_text(text, encoding="utf-8")
            return path
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
            return path
        number += 1


def _model(wanted: str, known: Mapping[str, Any]) -> tuple[str, Keys]:
    """The name of a model and its entry under the name of the whole; none where the catalog has it."""
    if _whole(wanted) in known:
        return wanted, {}
    whole, half = split_half(wanted)
    for place, suffix in ((wanted, ""), (whole, f".{half}")):
        path = Path(place).expanduser()
        if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
            name = _name(path.stem if path.suffix == ".gguf" else path.resolve().name, "model")
            return name + suffix, {name: {"path": str(path)}}
    found = _HUB.fullmatch(whole)
    if found and wanted[0] not in "./~":
        name = _name(Path(found["file"]).stem if found["file"] else found["name"], "model")
        entry = {"hub": found["hub"]} | ({"path": found["file"]} if found["file"] else {})
        run = f"{name}{AT}{found['revision']}" if found["revision"] else name
        return (f"{run}.{half}" if half else run), {name: entry}
    nearest = difflib.get_close_matches(wanted, known, 1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise InputError(
        f"found {wanted!r}, expected a model of the catalog{hint}, one on the hub such as openai-community/gpt2, "
        "a directory, or a .gguf file"
    )


def _whole(name: str) -> str:
    """The catalog's name of a model whose revision or half may be named."""
    return split_half(split_name(name)[0])[0]


def _name(text: str, taken: str) -> str:
    """A name that a configuration allows, and is not `taken`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:_LONGEST]
    return name if name and name != taken else f"my-{taken}"
