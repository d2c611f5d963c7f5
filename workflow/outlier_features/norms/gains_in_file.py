"""The gains of norms in a safetensors file, without torch: a dump's, or any tensors that are named."""

from collections.abc import Sequence

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.layer_keys import LAYER, layer_names, nearest_keys
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.norms.describe_gains import Array, Gain

PREFIX = "rmsnorm_gammas/"


def gains_in_file(file: TensorFile, keys: Sequence[str] = ()) -> dict[str, Gain]:
    """The gains under `keys`, by key; without keys those under `rmsnorm_gammas/<module>`, by module.

    A tensor (H,) is one norm; (L, H) is one a layer, named `<name>.<layer>`; a key with `{layer}` stands for a tensor a
    layer, each under its own name. A dump holds gains as they are applied.
    Raises `InputError` where there is no such key, or a tensor is of another rank or not of floats.
    """
    names = {name: name for key in keys for _, name in tensors_of(file, key)} or {
        name.removeprefix(PREFIX): name for name in sorted(file.entries) if name.startswith(PREFIX)
    }
    if not names:
        found = ", ".join(sorted(file.entries)[:3]) or "no tensor"
        raise InputError(f"{file.path}: found {found}, expected keys {PREFIX}<module>, or the gains' own keys by name")
    gains: dict[str, Gain] = {}
    for name, key in names.items():
        stored, dtype = stored_floats(file, key), DTYPES[file.entry(key).dtype]
        if stored.ndim == 1:
            gains[name] = Gain(stored, dtype=dtype)
        elif stored.ndim == 2:
            gains |= {f"{name}.{layer}": Gain(row, dtype=dtype) for layer, row in enumerate(stored)}
        else:
            raise InputError(f"{file.path}: {key} has shape {list(stored.shape)}, expected (H,) or (L, H)")
        if not stored.size:
            raise InputError(f"{file.path}: {key} of shape {list(stored.shape)} is empty, expected gains")
    return gains


def tensors_of(file: TensorFile, key: str) -> Sequence[tuple[int | None, str]]:
    """The tensors that a key stands for, each with its layer where the key has `{layer}`."""
    if LAYER not in key:
        return [(None, key)]
    found = layer_names(file.entries, key, file.path)
    if not found:
        raise InputError(f"{file.path}: has no tensor {key!r}{nearest_keys(file.entries, key)}")
    return tuple(found.items())


def stored_floats(file: TensorFile, name: str) -> Array:
    """The values of a tensor of floats, none of them rounded: bfloat16 is widened to float32."""
    dtype = file.entry(name).dtype
    if dtype not in DTYPES:
        raise InputError(f"{file.path}: {name} is {dtype}, expected one of {', '.join(DTYPES)}")
    values = file.array(name)
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values
