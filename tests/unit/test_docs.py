"""The generated pages and the shipped config say what the schema and the tables say."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import read_schema, resolve_config

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("path", list(generate.PAGES), ids=lambda path: path.name)
def test_page_is_up_to_date(path):
    assert path.read_text(encoding="utf-8") == generate.PAGES[path](), "run `make docs`"


def test_shipped_config_states_the_defaults():
    schema = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    catalog = read_catalog(ROOT / "workflow/catalog.yaml")
    shipped = with_catalog(yaml.safe_load((ROOT / "config.yaml").read_text()), catalog)
    bare = {key: shipped[key] for key in ("models", "corpora", "catalog")}
    assert resolve_config(shipped, schema) == resolve_config(bare, schema)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_a_page_beside_the_docs_links_to_is_there(name):
    """Of the pages in docs/ themselves, `make docs-site` says it."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert links or name != "README.md"
