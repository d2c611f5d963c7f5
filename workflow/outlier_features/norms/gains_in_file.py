"""The gains of norms in a safetensors file, without torch: a dump's, or any tensors that are named."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.layer_keys import DUMPED_GAINS, LAYER, layer_names, nearest_keys
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.norms.norm import Array, Gain


def gains_in_file(file: TensorFile, keys: Sequence[str] = ()) -> dict[str, Gain]:
    """The gains under `keys`, by key; without keys those under `rmsnorm_gammas/<module>`, by module.

    A tensor (H,) is one norm; (L, H) is one a layer, named `<name>.<layer>`; a key with `{layer}` stands for a tensor a
    layer, each under its own name. A dump holds gains as they are applied.
    Raises `InputError` where there is no such key, or a tensor is of another rank or not of floats.
    """
    names = {name: name for key in keys for _, name in tensors_of(file, key)} or {
        name.removeprefix(DUMPED_GAINS): name for name in sorted(file.entries) if name.startswith(DUMPED_GAINS)
    }
    if not names:
        found = ", ".join(sorted(file.entries)[:3]) or "no tensor"
        raise InputError(
            f"{file.path}: found {found}, expected keys {DUMPED_GAINS}<module>, or the gains' own keys by name"
        )
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


def named_gains(file: TensorFile, keys: Mapping[str, str]) -> Iterator[tuple[str, str, Gain]]:
    """Name, key and values of gains, by the `keys` of a name each; those of a tensor (L, H) are `<name>.<layer>`.

    Without keys those under `rmsnorm_gammas/<module>` are meant, whose names are the modules.
    """
    if not keys:
        yield from ((module, DUMPED_GAINS + module, gain) for module, gain in gains_in_file(file).items())
    for name, key in keys.items():
        for layer, tensor in tensors_of(file, key):
            own = name if layer is None else f"{name}.{layer}"
            for found, gain in gains_in_file(file, [tensor]).items():
                yield own + found.removeprefix(tensor), tensor, gain


def gains_of_site(file: TensorFile, keys: Mapping[str, str], site: str, layers: Sequence[int], dims: int) -> Array:
    """Gains of the norms that make a site in some layers, float64 (L, H); NaN in a layer that the file has none of.

    A name such as `attn_norm.3` says the site and the layer; one without a layer does if there is only one.
    Raises `InputError` where the file holds none of them.
    """
    of_site = {name: key for name, key in keys.items() if site in (name, name.rpartition(".")[0])}
    if keys and not of_site:
        raise InputError(f"{file.path}: no key of gains is named for it")
    gains = np.full((len(layers), dims), np.nan)
    for name, _, gain in named_gains(file, of_site):
        stem, _, layer = name.rpartition(".")
        index = int(layer) if stem == site and layer.isdecimal() else None
        if name == site and len(layers) == 1:
            index = layers[0]
        if index in layers and gain.stored.size == dims:
            gains[layers.index(index)] = gain.effective
    if np.isnan(gains).all():
        raise InputError(f"{file.path}: holds no gains of its layers")
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
    values = file.copy(name)
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values
