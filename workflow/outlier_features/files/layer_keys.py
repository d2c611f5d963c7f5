"""How a dump names and lays out activations and gains: `{layer}` in a key or a path stands for a layer's number."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from outlier_features.errors import InputError

LAYER = "{layer}"
GAIN = "gain."  # before a site: the gains of the norms that make it, beside the activations
DUMPED_GAINS = "rmsnorm_gammas/"  # and a module's path: where a dump has the gain of a norm, as it is applied
LAYOUTS = ("NLTH", "NTLH", "LNTH", "LTNH", "TLNH", "TNLH", "NTH", "TNH", "LTH", "TLH", "TH")  # axes of a tensor
_NUMBER = r"([0-9]{1,9})"
_SHOWN = 5  # nearest names in a message


def layer_pattern(key: str, wildcards: str = "") -> re.Pattern[str]:
    """Matches the names that `key` stands for, its group being the layer's number.

    `wildcards` are characters, such as `*?`, that stand for anything within a part of a path. A second `{layer}` is the
    same number again.
    """
    first, *others = re.split(re.escape(LAYER), key)
    parts = [re.escape(part) for part in (first, *others)]
    for wildcard in wildcards:
        anything = "[^/]*" if wildcard == "*" else "[^/]"
        parts = [part.replace(re.escape(wildcard), anything) for part in parts]
    return re.compile(_NUMBER.join(parts[:2]) + "".join(r"\1" + part for part in parts[2:]), re.DOTALL)


def layer_names(names: Iterable[str], key: str, where: object) -> dict[int, str]:
    """Of some names those that `key`, which has `{layer}`, stands for, by layer.

    Raises `InputError` where two are of one layer, as `a.1` and `a.01` are.
    """
    pattern = layer_pattern(key)
    found: dict[int, str] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            layer = int(match[1])
            if layer in found:
                raise InputError(f"{where}: {name} is not the only tensor of its layer, expected one")
            found[layer] = name
    return dict(sorted(found.items()))


def layer_keys(names: Iterable[str]) -> dict[str, set[int]]:
    """The keys with `{layer}` that stand for some of the names, with the layers of each.

    Of a name with several numbers, the one that varies most is taken for the layer's.
    """
    names = list(names)
    members: defaultdict[str, set[int]] = defaultdict(set)
    readings = {
        name: [
            (name[: match.start()] + LAYER + name[match.end() :], int(match[0]))
            for match in re.finditer("[0-9]+", name)
        ]
        for name in names
    }
    for found in readings.values():
        for key, layer in found:
            members[key].add(layer)
    chosen: defaultdict[str, set[int]] = defaultdict(set)
    for found in readings.values():
        if found:
            key, layer = max(found, key=lambda reading: len(members[reading[0]]))
            chosen[key].add(layer)
    return dict(chosen)


def keys_of_stem(keys: Iterable[str], stem: str) -> list[str]:
    """Of some keys those whose `{layer}` is a part of its own, and that are `stem` without it, or after it.

    So `acts` is `acts.{layer}`, and `hook_resid_post` is `blocks.{layer}.hook_resid_post`.
    """
    found = []
    for key in keys:
        before, after = key.split(LAYER)
        if before[-1:] in ("", ".", "/") and after[:1] in ("", ".", "/"):
            parts = [part for part in (before[:-1], after[1:]) if part]
            if stem in (".".join(parts), parts[-1] if parts else None):
                found.append(key)
    return found


def nearest_keys(names: Iterable[str], key: str) -> str:
    """`, nearest: ...` with the names most like `key`, tensors of several layers as one; empty without names."""
    names = list(names)
    by_layer: Mapping[str, set[int]] = {key: layers for key, layers in layer_keys(names).items() if len(layers) > 1}
    patterns = [layer_pattern(one) for one in by_layer]
    shown = sorted({*by_layer, *(name for name in names if not any(one.fullmatch(name) for one in patterns))})
    nearest = difflib.get_close_matches(key, shown, n=_SHOWN, cutoff=0.5)
    holding = [one for one in shown if key and key in one]
    nearest = list(dict.fromkeys([*holding, *nearest]))[:_SHOWN] or shown[:_SHOWN]
    return f", nearest: {', '.join(nearest)}" if nearest else ""
