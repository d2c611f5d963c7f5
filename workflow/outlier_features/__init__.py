"""Outlier features and massive activations of transformer language models.

    >>> import outlier_features as of
    >>> run = of.open("results/smollm2-135m/python-docs")
    >>> run = of.measure(model, tokens)

What stands here is read when it is first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# By name where it lies; `__init__.pyi` says the same to type checkers. Not an import statement: a package at the top
# of the others would be part of the code of each.
_LAZY = {
    "open": ("notebook.run", "open_run"),
    "measure": ("notebook.measure", "measure"),
    "Run": ("notebook.run", "Run"),
    "InputError": ("errors", "InputError"),
}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found


def __dir__() -> list[str]:
    return __all__
