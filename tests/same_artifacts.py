"""Whether two artifacts say the same, bit for bit, but for what differs between two runs of one config."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from outlier_features.files.artifacts import PROVENANCE, read_json
from outlier_features.files.tensorfile import TensorFile

SUFFIXES = (".safetensors", ".parquet", ".json", ".html")
# What a page says of the time that it took, and its checksum.
_COSTS = r'<section class="page" id="costs".*?</section>|<!-- content_crc32 \w+ -->'
_OF_THE_JOB = ("job",)  # an identifier; everything else must be alike


def artifacts(directory: Path) -> dict[Path, Path]:
    """The artifacts under a directory by their place in it."""
    return {
        path.relative_to(directory): path
        for path in sorted(directory.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file()
    }


def content(path: Path) -> Any:
    """What an artifact says, as something that can be compared; of a directory what each of its files says."""
    if path.is_dir():
        files = {one.relative_to(path): one for one in path.rglob("[!.]*") if one.is_file()}
        return {name: content(one) for name, one in files.items() if "costs" not in name.parts}
    if path.suffix == ".safetensors":
        file = TensorFile(path)
        tensors = {name: (entry.dtype, entry.shape, file.array(name).tobytes()) for name, entry in file.entries.items()}
        return tensors, _without_job(file.metadata.get(PROVENANCE, "{}"))
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        metadata.pop("content_crc32", None)
        columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        fields = [(field.name, str(field.type), field.metadata) for field in table.schema]
        bits = {name: [buffer and buffer.to_pybytes() for buffer in one.buffers()] for name, one in columns.items()}
        provenance = _without_job(metadata.pop(PROVENANCE, "{}"))
        return table.num_rows, fields, bits if table.num_rows else {}, metadata, provenance
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix == ".gguf":
        return path.read_bytes()
    return re.sub(_COSTS, "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def _without_job(provenance: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(provenance).items() if key not in _OF_THE_JOB}


def differing(one: Path, other: Path) -> list[str]:
    """Artifacts of two directories that are missing in one of them, or that do not say the same."""
    mine, theirs = artifacts(one), artifacts(other)
    missing = mine.keys() ^ theirs.keys()
    return sorted(
        str(place)
        for place in mine.keys() | theirs.keys()
        if place in missing or content(mine[place]) != content(theirs[place])
    )
