"""The version of the code that a stage runs.

Snakemake sees when a script changes, not when a module that it imports does. A hash over the package modules that a
script imports, directly or through others, stands in for that as a parameter of its rule.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def code_version(script: Path) -> str:
    """16 hex digits over the text of the package modules that `script` uses; independent of where they lie."""
    digest = hashlib.sha256()
    for name in sorted(import_closure(script)):
        digest.update(f"{name}\0{_text(PACKAGE / f'{name}.py')}\0".encode())
    return digest.hexdigest()[:16]


def import_closure(script: Path) -> set[str]:
    """Names of the package modules that a script imports, directly or through others."""
    found: set[str] = set()
    waiting = list(_imports(script))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(PACKAGE / f"{name}.py")
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_modules(ast.parse(_text(path))))


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            parts = node.module.split(".")[1:]
            names = parts[:1] or [alias.name for alias in node.names]
            yield from (name for name in [*names, "__init__"] if (PACKAGE / f"{name}.py").exists())
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == PACKAGE.name:
                    yield from ["__init__", *parts[1:2]]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
