"""Write docs/config.md and docs/mask.md from their schemas and docs/tables.md from the tables' own description."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features.files.tables import public_tables
from outlier_features.rules.kinds import kinds
from outlier_features.run.config import dereferenced, read_schema

DOCS = Path(__file__).parent
SCHEMA = DOCS.parent / "workflow/schemas/config.schema.yaml"
MASK_SCHEMA = DOCS.parent / "workflow/schemas/mask.schema.json"
MASK_EXAMPLE = DOCS / "mask_example.py"


def config_page() -> str:
    schema = read_schema(SCHEMA)
    rows = "\n".join(_keys(schema, schema, ""))
    return (
        "# Configuration\n\n"
        "Made from `workflow/schemas/config.schema.yaml` by `make docs`; do not edit.\n\n"
        "An overlay, `snakemake --cores all --configfile mine.yaml`, needs only the keys it changes: mappings are "
        "merged, lists replaced whole. Paths are relative to the working directory. `<name>` matches "
        f"`{schema['$defs']['name']['pattern']}`.\n\n"
        f"| key | values | default | meaning |\n|---|---|---|---|\n{rows}\n{_kinds_of_rules(schema)}"
    )


def _kinds_of_rules(schema: Mapping[str, Any]) -> str:
    parts = ["\n## Kinds of rules\n\nThe keys of `rules.<name>`; docs/rules.md says how to add a rule.\n"]
    for name, kind in kinds().items():
        found = kind.schema()
        rows = "\n".join(_keys(found, schema, ""))
        head = "| key | values | default | meaning |\n|---|---|---|---|"
        parts.append(f"\n### {name}\n\n{found['description']}\n\n{head}\n{rows}\n")
    return "".join(parts)


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
        return ", ".join(f"`{'null' if value is None else value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_values(dereferenced(schema['items'], root), root)}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
    limits = " and ".join(f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema)
    if isinstance(schema["type"], list):
        return " or ".join(_values({**schema, "type": kind}, root) for kind in schema["type"])
    if schema["type"] == "null":
        return "`null`"
    kind = {"object": "a mapping", "string": "text", "boolean": "`true`, `false`"}.get(schema["type"], schema["type"])
    return f"{kind} {limits}".strip()


def tables_page() -> str:
    parts = [
        "# Tables\n\n"
        "Made from the modules `workflow/outlier_features/*/*_schema.py` by `make docs`; do not edit. All lie under "
        "`<results>/<model>/<corpus>/`, those of a comparison and of costs under `<results>/`; the same meanings "
        "and units stand in each file's own field metadata. Layers, dims, positions and sequences count from 0.\n\n"
        "`snakemake export` leaves every table of a run, but `texts`, `hits` and those of `detect_outliers` beside it, "
        "as `export/<name>.csv` and `export/<name>.json`, and what their columns mean in `export/tables.json`. Numbers "
        "read back as they were; null is an empty field in CSV, where a list is JSON text; JSON is an array of "
        "records, where a number that is not finite is null. `pandas.read_json`, `polars.read_json` and DuckDB's "
        "`read_json` read it as it is.\n"
    ]
    for table in public_tables().values():
        name = table.place or f"{table.name}.parquet"
        rows = "\n".join(
            f"| `{column.name}` | {column.dtype} | {column.unit} | {column.meaning.replace('|', '/')} |"
            for column in table.columns
        )
        parts.append(
            f"\n## {name}\n\nA row is: {table.row}.\n\n| column | type | unit | meaning |\n|---|---|---|---|\n{rows}\n"
        )
    return "".join(parts)


def mask_page() -> str:
    schema = json.loads(MASK_SCHEMA.read_text(encoding="utf-8"))
    rows = "\n".join(_mask_keys(schema, schema, ""))
    return (
        "# mask.json\n\n"
        "Made from `workflow/schemas/mask.schema.json` and `docs/mask_example.py` by `make docs`; do not edit.\n\n"
        "Every run leaves `<results>/<model>/<corpus>/mask.json`: which dims carry outlier features and massive "
        "activations, by rule and population, on which sites, in which layers and at which tokens, for those who "
        "train sparse autoencoders, steer or quantize and want them left out. `docs/definitions.md` has the rules.\n\n"
        "A dim of basis `residual` is the same one on every site of the residual stream and on the norms' outputs; one "
        "of basis `attn_heads` counts the input of the attention's output projection. Rule `location` keeps no "
        "shape over layers; its dims are in `locations.json`.\n\n"
        "## Keys\n\nNone is ever missing. `[]` stands for the entries of a list.\n\n"
        f"| key | values | meaning |\n|---|---|---|\n{rows}\n\n"
        "## An example\n\nThe dims that both rules select, left out of absmax int8 quantization; and whether first "
        f"positions and special tokens hold every massive activation:\n\n"
        f"```python\n{MASK_EXAMPLE.read_text(encoding='utf-8')}```\n"
    )


def _mask_keys(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, sub in schema.get("properties", {}).items():
        sub = dereferenced(sub, root)
        filled = next((choice for choice in sub.get("anyOf", []) if choice["type"] != "null"), sub)
        kinds = [*(["null"] if "anyOf" in sub else []), _kinds(filled)]
        name = f"{prefix}{key}"
        yield f"| `{name}` | {' or '.join(kinds)} | {sub['description']} |"
        yield from _mask_keys(filled, root, f"{name}.")
        if "items" in filled:
            yield from _mask_keys(filled["items"], root, f"{name}[].")


def _kinds(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join({"array": "a list", "object": "a mapping", "string": "text"}.get(kind, kind) for kind in kinds)


PAGES = {DOCS / "config.md": config_page, DOCS / "tables.md": tables_page, DOCS / "mask.md": mask_page}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
        print(path, file=sys.stderr)
