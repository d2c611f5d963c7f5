"""What is borrowed for some passes and given back: a model's mode, and the process's access to the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_MISSING = object()
_OF_THE_HUB = ("HF_HUB_OFFLINE", "OUTLIER_FEATURES_OFFLINE")


@contextmanager
def in_evaluation(model: "nn.Module") -> Iterator[None]:
    """The model in evaluation mode; afterwards each module is in the mode that it was in, and each config says of
    `use_cache` what it said. Weights and device are not touched."""
    modes = {module: module.training for module in model.modules()}
    configs: dict[int, Any] = {id(one.config): one.config for one in modes if hasattr(one, "config")}
    caches = {key: getattr(config, "use_cache", _MISSING) for key, config in configs.items()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for key, config in configs.items():
            if caches[key] is not _MISSING:
                config.use_cache = caches[key]
            elif hasattr(config, "use_cache"):
                del config.use_cache


@contextmanager
def hub_left_alone() -> Iterator[None]:
    """Around the first import of what runs models, which switches the hub off for the jobs of a run: a notebook may
    go on fetching."""
    before = {name: os.environ.get(name) for name in _OF_THE_HUB}
    import transformers  # noqa: F401  # reads the variable once, as the caller has it

    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
