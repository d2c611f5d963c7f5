"""The code version of a script changes with the modules it uses, and with no other."""

import ast
from pathlib import Path

import pytest

from outlier_features import code_version as module

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "outlier_features"
    texts = {
        "__init__": "", "a": "from outlier_features import b\n", "b": "import outlier_features.inner.c as c\n",
        "inner/__init__": "", "inner/c": "x = 1\n", "inner/e": "", "inner/f": "from outlier_features.inner import c\n",
        "d": "def late():\n    from outlier_features.inner.f import x\n", "g": "",
    }  # fmt: skip
    (folder / "inner").mkdir(parents=True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / "script.py").write_text("from outlier_features.a import run\n")
    (tmp_path / "other.py").write_text("from outlier_features.d import late\n")
    monkeypatch.setattr(module, "PACKAGE", folder)
    forget()
    yield tmp_path
    forget()


def forget():
    module._imports.cache_clear()
    module._files.cache_clear()
    module._text.cache_clear()


def test_closure(package):
    every = {"__init__.py", "inner/__init__.py", "inner/c.py"}
    assert module.import_closure(package / "script.py") == every | {"a.py", "b.py"}
    assert module.import_closure(package / "other.py") == every | {"d.py", "inner/f.py"}


@pytest.mark.parametrize(
    ("edited", "script", "other"),
    [
        ("a", True, False),
        ("inner/c", True, True),
        ("inner/__init__", True, True),
        ("d", False, True),
        ("inner/f", False, True),
        ("inner/e", False, False),
        ("g", False, False),
    ],
)
def test_an_edit_changes_the_scripts_that_use_the_module(package, edited, script, other):
    before = [module.code_version(package / name) for name in ("script.py", "other.py")]
    with (package / "outlier_features" / f"{edited}.py").open("a") as file:
        file.write("# edited\n")
    forget()
    after = [module.code_version(package / name) for name in ("script.py", "other.py")]
    assert [one != two for one, two in zip(before, after, strict=True)] == [script, other]


@pytest.mark.parametrize(
    "text",
    [
        *(path.read_text() for folder in ("workflow", "scripts") for path in (ROOT / folder).rglob("*.py")),
        "import a.b as c, d\nfrom e import (  # not these: (f)\n    g as h,\n    i,\n)\n",
        "if x:\n\tfrom a import b, \\\n        c\nfrom d.e import *\nimport f; import_ = important = 1\n",
    ],
)
def test_imports_are_those_that_python_sees(text):
    expected = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            expected |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*"}
        elif isinstance(node, ast.Import):
            expected |= {alias.name for alias in node.names}
    assert set(module.imported_names(text)) == expected


def test_stages_import_no_more_than_they_need():
    closure = {path.stem: module.import_closure(path) for path in (ROOT / "scripts").glob("*.py")}
    kernel = "scan/scan_kernel.py"
    assert {stage for stage, modules in closure.items() if kernel in modules} == {
        "detect_in_passes",
        "detect_outliers",
        "locate_outliers",
    }
    for kind in ("rules/kinds.py", "rules/massive.py"):
        assert kind in closure["filter_systematic"] and kind not in closure["detect_outliers"]
    for stage in ("detect_outliers", "filter_systematic", "analyze_emergence", "measure_loss", "summarize_layers"):
        unneeded = {"model/models.py", "model/sites.py", "extract/losses.py", "extract/passes.py"}
        assert not closure[stage] & (unneeded | {"run/config.py"})


@pytest.mark.parametrize(
    ("schema", "stages"),
    [
        ("detect/hits_schema.py", {"detect_in_passes", "detect_outliers", "filter_systematic"}),
        ("dims/emergence_schema.py", {"analyze_emergence", "render_gallery"}),
        ("surface/surface_schema.py", {"record_surface"}),
        ("origin/origin_schema.py", {"trace_origin", "record_examples", "render_gallery"}),
        (
            "attention/sinks_schema.py",
            {"map_attention", "draw_figures", "render_report", "compare_models", "draw_comparison"},
        ),
    ],
)
def test_a_reworded_column_concerns_the_stages_that_write_or_read_its_table(schema, stages):
    """Who handles any table alike reads the description at work, and is rerun with the stage that writes it."""
    assert {path.stem for path in (ROOT / "scripts").glob("*.py") if schema in module.import_closure(path)} == stages


def test_every_table_is_described_where_a_stage_writes_it():
    written = {name for path in (ROOT / "scripts").glob("*.py") for name in module.import_closure(path)}
    found = {f"{path.parent.name}/{path.name}" for path in module.PACKAGE.glob("*/*_schema.py")}
    assert found and found <= written
