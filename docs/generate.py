"""Write docs/config.md from the schema and docs/tables.md from the tables' own description."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features.config import dereferenced, read_schema
from outlier_features.tables import PUBLIC

DOCS = Path(__file__).parent
SCHEMA = DOCS.parent / "workflow/schemas/config.schema.yaml"


def config_page() -> str:
    schema = read_schema(SCHEMA)
    rows = "\n".join(_keys(schema, schema, ""))
    return (
        "# Configuration\n\n"
        "Made from `workflow/schemas/config.schema.yaml` by `make docs`; do not edit.\n\n"
        "An overlay, `snakemake --cores all --configfile mine.yaml`, needs only the keys it changes: mappings are "
        "merged, lists replaced whole. Paths are relative to the working directory. `<name>` matches "
        f"`{schema['$defs']['name']['pattern']}`.\n\n"
        f"| key | values | default | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def _keys(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, sub in schema.get("properties", {}).items():
        sub = dereferenced(sub, root)
        name = f"{prefix}{key}"
        nested = "properties" in sub or isinstance(sub.get("additionalProperties"), Mapping)
        default = "" if nested or "default" not in sub else f"`{sub['default']}`"
        yield f"| `{name}` | {_values(sub, root)} | {default} | {sub.get('description', '').replace('|', '/')} |"
        yield from _keys(sub, root, f"{name}.")
        extra = sub.get("additionalProperties")
        entry = dereferenced(extra, root) if isinstance(extra, Mapping) else {}
        if "properties" in entry:
            yield f"| `{name}.<name>` | a mapping | | {entry.get('description', '')} |"
            yield from _keys(entry, root, f"{name}.<name>.")


def _values(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_values(choice, root) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_values(dereferenced(schema['items'], root), root)}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
    limits = " and ".join(f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema)
    if isinstance(schema["type"], list):
        return " or ".join(_values({**schema, "type": kind}, root) for kind in schema["type"])
    kind = {"object": "a mapping", "string": "text", "boolean": "`true`, `false`"}.get(schema["type"], schema["type"])
    return f"{kind} {limits}".strip()


def tables_page() -> str:
    parts = [
        "# Tables\n\n"
        "Made from `workflow/outlier_features/tables.py` by `make docs`; do not edit. All lie under "
        "`<results>/<model>/<corpus>/`, those of a comparison under `<results>/`; the same meanings "
        "and units stand in each file's own field metadata. Layers, dims, positions and sequences count from 0.\n"
    ]
    for table in PUBLIC:
        name = PLACES.get(table.name, f"{table.name}.parquet")
        rows = "\n".join(
            f"| `{column.name}` | {column.dtype} | {column.unit} | {column.meaning.replace('|', '/')} |"
            for column in table.columns
        )
        parts.append(
            f"\n## {name}\n\nA row is: {table.row}.\n\n| column | type | unit | meaning |\n|---|---|---|---|\n{rows}\n"
        )
    return "".join(parts)


PLACES = {
    "hits": "hits/<site>/<chunk>.parquet",
    "comparison": "comparison/dims.parquet",
    "common_dims": "comparison/common_dims.parquet",
}
PAGES = {DOCS / "config.md": config_page, DOCS / "tables.md": tables_page}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
        print(path, file=sys.stderr)
