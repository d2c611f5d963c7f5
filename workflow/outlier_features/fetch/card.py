"""The YAML header of a hub card (README.md)."""

import re
from typing import Any

import yaml

README = "README.md"
_HEADER = re.compile(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


def card_header(readme: str) -> dict[str, Any]:
    """What the header says; empty where there is none or it is not YAML, since a card is written by hand."""
    match = _HEADER.match(readme.replace("\r\n", "\n").lstrip("\ufeff"))
    try:
        header = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}


def licence_of(header: dict[str, Any]) -> str | None:
    licence = header.get("license")
    if licence == "other":
        licence = header.get("license_name") or licence
    if isinstance(licence, list):
        return ", ".join(map(str, licence)) or None
    return None if licence is None else str(licence)
