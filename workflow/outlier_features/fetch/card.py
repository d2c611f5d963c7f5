"""Under which terms a model or text may be used: the YAML header of a hub card (README.md), and files of terms."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import yaml

README = "README.md"
_HEADER = re.compile(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


_TERMS = re.compile(r"(?<![a-z])(licen[cs]es?|copying|notice|terms|(use|usage)[-_ ]?policy)(?![a-z])")
_PROGRAMS = {".py", ".pyc", ".js", ".so", ".json"}


class Licence(NamedTuple):
    """What a card, a wheel or a file says of its licence: its name, and where its text is."""

    name: str | None
    link: str | None = None


def terms_among(names: Iterable[str]) -> list[str]:
    """Those of the names that are of files with terms of use: licences, notices, policies."""
    return sorted(
        name
        for name in names
        if _TERMS.search(PurePosixPath(name).name.lower()) and PurePosixPath(name).suffix.lower() not in _PROGRAMS
    )


def card_header(readme: str) -> dict[str, Any]:
    """What the header says; empty where there is none or it is not YAML, since a card is written by hand."""
    match = _HEADER.match(readme.replace("\r\n", "\n").lstrip("\ufeff"))
    try:
        header = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}


def licence_of(header: dict[str, Any]) -> Licence:
    """The licence that the header names; a link to a file beside the card is none, since that file is kept itself."""
    licence, link = header.get("license"), str(header.get("license_link") or "")
    if licence == "other":
        licence = header.get("license_name") or licence
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence)) or None
    return Licence(None if licence is None else str(licence), link if link.startswith("https://") else None)
