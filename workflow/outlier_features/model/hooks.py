"""Functions that a model's modules call while it runs, for a while only."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Before = tuple[nn.Module, Callable[[nn.Module, Any, Any], None]]
After = tuple[nn.Module, Callable[[nn.Module, Any, Any, Any], None]]


@contextmanager
def hooks(before: Iterable[Before] = (), after: Iterable[After] = ()) -> Iterator[None]:
    """Have modules call functions, several of one module in the order given; when the block ends, none is left.

    before   each module with what it calls before it runs, with itself, its positional and its named arguments
    after    the same for when it has run, and its output comes last
    """
    with ExitStack() as registered:
        for module, begin in before:
            registered.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for module, end in after:
            registered.callback(module.register_forward_hook(end, with_kwargs=True).remove)
        yield


@contextmanager
def returning(module: Any, calls: set[int], made: Callable[[], Any]) -> Iterator[None]:
    """These calls of a module return at once what is `made`."""
    own, forward, number = vars(module).get("forward"), module.forward, -1

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal number
        number += 1
        return made() if number in calls else forward(*args, **kwargs)

    module.forward = run  # an attribute of the object hides the class's method
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
