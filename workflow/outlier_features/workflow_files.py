"""Where the workflow's files lie that are no modules: around the package in a checkout, in it where it is installed."""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "project"
# As in a checkout: the rules find scripts and captions by their places relative to one another.
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2]
SNAKEFILE = ROOT / "Snakefile"
CONFIG = ROOT / "config.yaml"
CATALOG = ROOT / "workflow/catalog.yaml"
CONFIG_SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
MASK_SCHEMA = ROOT / "workflow/schemas/mask.schema.json"
