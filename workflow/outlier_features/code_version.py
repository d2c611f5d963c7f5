"""The version of the code that a stage runs.

Snakemake sees when a script changes, not when a module that it imports does. A hash over the package modules that a
script imports, directly or through others, stands in for that as a parameter of its rule.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def code_version(script: Path) -> str:
    """16 hex digits over the text of the package modules that `script` uses; independent of where they lie."""
    digest = hashlib.sha256()
    for name in sorted(import_closure(script)):
        digest.update(f"{name}\0{_text(PACKAGE / name)}\0".encode())
    return digest.hexdigest()[:16]


def file_hashes(files: Iterable[Path]) -> dict[str, str]:
    """16 hex digits over the content of each file, by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}


def import_closure(script: Path) -> set[str]:
    """Files of the package, as `scan/scan.py`, that a script imports, directly or through others."""
    found: set[str] = set()
    waiting = list(_imports(script))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(PACKAGE / name)
            waiting += (path.relative_to(PACKAGE).as_posix() for path in _found_by(name))
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(file for module in _modules(ast.parse(_text(path))) for file in _files(module))


def _modules(tree: ast.AST) -> Iterator[str]:
    """Names that may be modules: what stands after `from x import` may be one too."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        # Statements alone: no expression imports, and there are ten times as many.
        waiting += [inner for inner in ast.iter_child_nodes(node) if isinstance(inner, _STATEMENTS)]


# A module that looks for others when it runs, and where.
_LOOKS_FOR = {"rules/kinds.py": "rules/*.py"}


def _found_by(name: str) -> list[Path]:
    return list(PACKAGE.glob(_LOOKS_FOR[name])) if name in _LOOKS_FOR else []


@cache
def _files(module: str) -> tuple[str, ...]:
    """What importing a module runs: of `package.a.b` the package, `a` and `b`."""
    package, *parts = module.split(".")
    if package != PACKAGE.name:
        return ()
    paths = ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]
    names = [name for path in paths for name in (f"{path}/__init__.py".lstrip("/"), f"{path}.py")]
    return tuple(name for name in names if (PACKAGE / name).is_file())


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
