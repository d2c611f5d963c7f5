"""The library's packages build on one another in one direction.

What a table is like, in a module `<name>_schema.py`, is for all that read it: a stage may read what any other wrote.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import outlier_features
from outlier_features.run.stages import STAGES
from outlier_features.workflow_files import ROOT

PACKAGE = Path(outlier_features.__file__).parent
FOLDERS = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}


def imported(module: Path) -> Iterator[str]:
    """The parts of the names that a module imports: of the library's own, the second is a package or a module."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def uses(modules: Iterable[Path]) -> set[str]:
    names = {name for module in modules for name in imported(module) if not name.endswith("_schema")}
    return {name.split(".")[1] for name in names if name.startswith("outlier_features.")}


def test_no_two_packages_need_each_other():
    needs = {folder: uses((PACKAGE / folder).glob("*.py")) & FOLDERS - {folder} for folder in FOLDERS}
    order = list(TopologicalSorter(needs).static_order())
    assert order.index("files") < order.index("scan") < order.index("detect") < order.index("report")


def test_a_table_is_described_by_what_tables_are_made_of_alone():
    schemas = sorted(PACKAGE.glob("*/*_schema.py"))
    assert uses(schemas) == {"files"} and {name for one in schemas for name in imported(one)} >= {"polars"}
    assert not any(name.endswith("_schema") for one in schemas for name in imported(one))


def test_what_all_packages_share_needs_none_of_them():
    assert not uses(PACKAGE.glob("*.py")) & FOLDERS


def test_every_module_is_in_a_package_that_says_what_it_is_for():
    for folder in FOLDERS:
        assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))), folder
    assert {module.parent.name for module in PACKAGE.rglob("*.py")} == FOLDERS | {PACKAGE.name}


def test_the_library_never_imports_snakemake():
    for module in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "snakemake" for name in imported(module)), module


def test_only_what_runs_a_model_waits_for_torch():
    rules = {script.stem for script in (ROOT / "scripts").glob("*.py")}
    heavy = {stage.rule for stage in STAGES.values() if stage.runs_model}
    heavy |= {"quantize_dump", "export_quantization"}  # rounds what a dump has; reads the configuration of a model
    modules = [path for path in PACKAGE.glob("*/*.py") if path.stem in rules - heavy]
    assert {path.stem for path in modules} >= {"render_report", "draw_figures", "detect_outliers"}
    names = [f"outlier_features.{path.parent.name}.{path.stem}" for path in modules]
    code = f"import sys, {', '.join(names)}; sys.exit(', '.join({{'torch', 'transformers'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.strip()
