"""Files in formats of other programs: each says where it comes from in the place that its format has for a text.

A GGUF file has its provenance under a key of its own, a YAML file in comments; both are sealed over the whole file.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import PROVENANCE, Provenance, replacing
from outlier_features.files.seal import BLANK, MARK, require_seal, sealed

GGUF_KEY = f"outlier_features.{PROVENANCE}"
_COMMENT = "# "
_LINE = f"{_COMMENT}{PROVENANCE}: "


def write_gguf(
    path: Path,
    values: Mapping[str, str | int | list[str]],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    provenance: Mapping[str, Any],
) -> None:
    """Write numbers (uint32), texts and lists of texts by key, and float32 tensors, whose last axis is GGUF's first."""
    from gguf import GGUFValueType, GGUFWriter

    kinds = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, list: GGUFValueType.ARRAY}
    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, arch="")  # an empty one is not written
        for key, value in values.items():
            writer.add_key_value(key, value, kinds[type(value)])
        writer.add_string(GGUF_KEY, json.dumps({**provenance, MARK: BLANK}))
        for name, tensor in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.write_bytes(sealed(temporary.read_bytes()))


def write_yaml(path: Path, content: Any, comments: Iterable[str], provenance: Mapping[str, Any]) -> None:
    """Write `content`, nothing where it is None, under comments; the provenance is the last of them."""
    lines = [*(f"{_COMMENT}{comment}" for comment in comments), _LINE + json.dumps({**provenance, MARK: BLANK})]
    body = "" if content is None else yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_bytes(sealed(("\n".join(lines) + "\n" + body).encode()))


def foreign_provenance(path: Path) -> Provenance:
    """What `write_gguf` or `write_yaml` left. Raises `InputError` where the file is damaged, or another program's."""
    try:
        content = path.read_bytes()
        require_seal(content)
        found = Provenance(path, _of_gguf(path) if path.suffix == ".gguf" else _of_yaml(content.decode()))
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        kind = path.suffix.removeprefix(".").upper()
        why = f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise DamagedFile(path, f"expected a {kind} file that this workflow wrote, found {why}") from error
    del found[MARK]
    return found


def _of_gguf(path: Path) -> str:
    from gguf import GGUFReader

    return str(GGUFReader(path).fields[GGUF_KEY].contents())


def _of_yaml(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(_LINE)).removeprefix(_LINE)
