"""The files of a configuration, looked at before Snakemake reads them.

Snakemake reads them before the first line of a Snakefile: it has a traceback for one that is no text, does not name the
one that does not parse, takes the last of two equal keys, and evaluates Python in one that says `__use_yte__`. So the
log handler `snakemake_logger_plugin_config_check`, which it makes earlier still, calls `require_arguments`.
"""

import argparse
import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from outlier_features.errors import InputError

_TEMPLATE = "__use_yte__"


def require_arguments(arguments: Sequence[str]) -> None:
    """Raise `InputError` where a configuration that is given on Snakemake's command line is not one."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[])
    parser.add_argument("--config", "-C", nargs="*", action="extend", default=[])
    try:
        given, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return  # Snakemake says what is wrong with its command line
    for path in given.configfile:
        require_config_file(path)
    for pair in given.config:
        if not re.match(r"[A-Za-z_]\w*=", pair):
            raise InputError(f"--config: found {pair!r}, expected key=value with a key of the top level")


def require_config_file(path: str | Path) -> None:
    """Raise `InputError` where `path` is not a JSON or YAML file with keys at its top level, each once."""
    read_config_file(path)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The content of a file that `require_config_file` lets through."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {error.strerror or error}; expected a configuration file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x}") from error
    content = _parsed(text, path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{path}: found {found}, expected keys such as `models: [...]` at the top level")
    if _TEMPLATE in content:
        raise InputError(f"{path}: found the key {_TEMPLATE}, which runs code in the file, expected a plain file")
    return content


def overlaid(config: Any, overlay: Any) -> Any:
    """As Snakemake puts one configuration over another: mappings key by key, at every level."""
    if not isinstance(config, dict) or not isinstance(overlay, dict):
        return overlay
    return {**config, **{key: overlaid(config.get(key), value) for key, value in overlay.items()}}


def _parsed(text: str, path: str | Path) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{path}: found the key {key!r} twice, expected each once")
        return dict(found)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, _Strict)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: expected YAML, {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise InputError(f"{path}: expected YAML, found the character #x{error.character:04x}") from error
    except (ValueError, RecursionError) as error:  # such as a date that is none
        raise InputError(f"{path}: expected YAML, {error}") from error


class _Strict(yaml.SafeLoader):
    """Plain values only, and no key twice."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"found the key {key_node.value!r} twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
