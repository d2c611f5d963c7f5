"""The version of the code that a stage runs.

Snakemake sees when a script changes, not when a module that it imports does. A hash over the package modules that a
script imports, directly or through others, stands in for that as a parameter of its rule.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# A statement that imports, at any depth, over as many lines as it takes. To parse every module takes half a second.
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b[ \t]*(\((?:[^)#]|#.*)*\)|(?:\\\n|[^\n;])*)"
    r"|import\b((?:\\\n|[^\n;])*))",
    re.MULTILINE,
)
_COMMENT = re.compile("#.*")
_WORD = re.compile(r"[\w.]+")


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
    return tuple(file for module in imported_names(_text(path)) for file in _files(module))


def imported_names(text: str) -> Iterator[str]:
    """Names that may be modules: what stands after `from x import` may be one too."""
    for module, names, modules in _IMPORT.findall(text):
        if module:
            yield module
        for entry in _COMMENT.sub("", names or modules).strip("()").split(","):
            if found := _WORD.search(entry):  # the first word of `x as y`
                yield f"{module}.{found[0]}" if module else found[0]


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
    return tuple(name for name in names if name in _modules(PACKAGE))


@cache
def _modules(package: Path) -> frozenset[str]:
    return frozenset(path.relative_to(package).as_posix() for path in package.rglob("*.py"))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
