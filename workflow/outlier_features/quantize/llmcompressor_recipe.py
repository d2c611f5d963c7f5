"""A recipe for llm-compressor: what is smoothed into which norm, what is quantized, what is left in 16 bits.

Fields and meaning by `SmoothQuantModifier` (llmcompressor/modifiers/transform/smoothquant/base.py),
`QuantizationModifier`, `Recipe` (llmcompressor/recipe/recipe.py) and the preset schemes of
compressed_tensors/quantization/quant_scheme.py, in https://github.com/vllm-project/llm-compressor and
https://github.com/vllm-project/compressed-tensors.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.quantize.measured_layers import MeasuredLayer, MeasuredLayers

ALPHA = 0.5  # Xiao et al. 2023
# The preset that rounds inputs as a scheme does, and weights as its partner; where there is none, the nearest.
PRESETS = {
    "int8_token": "W8A8",
    "int8_vector": "W8A8",
    "int4_token": "W4A4",
    "fp8_token": "FP8_DYNAMIC",
    "mxfp4": "MXFP4",
}
_NEAREST = {
    "int8_tensor_static": "W8A8",
    "int8_tensor_dynamic": "W8A8",
    "llm_int8": "W8A8",
    "int4_group128": "W4A4",
    "fp8_tensor": "FP8",
}
# What chooses experts, as llm-compressor's examples leave it out; here it is no linear layer.
_ROUTERS = (r"re:.*\.(gate|router|shared_expert_gate)$",)
_NUMBER = re.compile(r"\.(\d+)\.")


def recipe(
    measured: MeasuredLayers, norms: pl.DataFrame | None, kept: Sequence[str], scheme: str
) -> tuple[dict[str, Any], list[str]]:
    """The recipe, and what is to be said of it: one sentence each.

    norms   the table of the run's norms, if it has one
    kept    linear layers to leave in 16 bits, beside the head
    """
    mappings, said = _mappings(measured, norms)
    modifiers: dict[str, Any] = {}
    if mappings:
        modifiers["SmoothQuantModifier"] = {"smoothing_strength": ALPHA, "mappings": mappings}
    preset = PRESETS.get(scheme) or _NEAREST[scheme]
    modifiers["QuantizationModifier"] = {
        "targets": ["Linear"],
        "scheme": preset,
        "ignore": [*_ignored(measured, kept), *(_ROUTERS if _has_experts(measured) else ())],
    }
    if scheme in _NEAREST:
        said.append(f"{preset} is the preset that is nearest to {scheme}")
    if transposed := [one for one in measured.layers if one.transposed and not one.experts]:
        said.append(f"{len(transposed)} layers are of transformers' Conv1D, which the target Linear is not")
    return {"quantization_stage": {"quantization_modifiers": modifiers}}, said


def _has_experts(measured: MeasuredLayers) -> bool:
    return any(one.experts for one in measured.layers) or any(".experts." in name for name in measured.absent)


def _ignored(measured: MeasuredLayers, kept: Iterable[str]) -> Iterator[str]:
    """The head, and with each kept layer those that read the same: vLLM holds them as one matrix, by one scheme.

    `should_ignore_layer` in vllm/model_executor/layers/quantization/compressed_tensors/utils.py says so.
    """
    yield from measured.head
    kept = {*kept}
    for group in measured.reading_the_same().values():
        if kept & {one.name for one in group}:
            for one in group:
                yield _of_experts(one) if one.experts else one.name


def _of_experts(layer: MeasuredLayer) -> str:
    """llm-compressor gives each expert linear layers of its own, below where transformers has one tensor of all."""
    path, _, last = layer.name.rpartition(".")
    halves = "(gate_proj|up_proj|gate_up_proj)" if last == "gate_up_proj" else re.escape(last)
    return rf"re:{re.escape(path)}\.(\d+\.)?{halves}$"


def _mappings(measured: MeasuredLayers, norms: pl.DataFrame | None) -> tuple[list[list[Any]], list[str]]:
    """Each norm's output that only linear layers read, by pattern over the blocks that have it."""
    if norms is None:
        return [], ["no SmoothQuantModifier: the run has no table of norms"]
    found: dict[tuple[str, ...], list[tuple[list[str], str]]] = defaultdict(list)
    why: dict[str, list[str]] = defaultdict(list)
    for group in measured.reading_the_same().values():
        norm = _norm_of(group[0], norms)
        if norm is None:
            continue
        if reason := _not_smoothed(group, norm, measured):
            why[reason].append(norm["module"])
            continue
        names = [one.name for one in group]
        found[tuple(_NUMBER.sub(".*.", name, count=1) for name in (*names, norm["module"]))].append(
            (names, norm["module"])
        )
    layers = [one.name for one in measured.layers]
    mappings: list[list[Any]] = [
        [
            [_pattern([names[n] for names, _ in same], layers) for n in range(len(same[0][0]))],
            _pattern([norm for _, norm in same], norms["module"].to_list()),
        ]
        for same in found.values()
    ]
    return mappings, [f"not smoothed: {', '.join(modules)}, {reason}" for reason, modules in why.items()]


def _norm_of(layer: MeasuredLayer, norms: pl.DataFrame) -> Mapping[str, Any] | None:
    """The norm whose output a layer reads."""
    if layer.layer is None or layer.site is None:
        return None
    rows = norms.filter(pl.col("layer") == layer.layer, pl.col("site").str.split("+").list.contains(layer.site))
    return rows.row(0, named=True) if len(rows) else None


def _not_smoothed(group: Sequence[MeasuredLayer], norm: Mapping[str, Any], measured: MeasuredLayers) -> str | None:
    """Why what a norm multiplies by cannot be divided: others than these layers would read it, too."""
    sites = norm["site"].split("+")
    block = group[0].layer
    if any(site.startswith("resid") for site in sites):
        return "which write the residual stream itself"
    if norm["parameterization"] not in ("w", "1 + w"):
        return "which are not known to multiply by a gain"
    if any(one.transposed for one in group):
        return "whose readers are of transformers' Conv1D"
    beside = [one.layer for one in measured.layers if one.experts]
    if "mlp_norm" in sites and (block in beside or _absent_beside(group[0].name, measured.absent)):
        return "whose output chooses experts, too"
    return None


def _absent_beside(name: str, absent: Mapping[str, str]) -> bool:
    """Whether nothing is known of a layer in the block of the layer `name`."""
    match = _NUMBER.search(name)
    return match is not None and any(other.startswith(name[: match.end()]) for other in absent)


def _pattern(names: Sequence[str], universe: Iterable[str]) -> str:
    """One that matches these names, which differ by the number of a block, and no others of `universe`."""
    match = _NUMBER.search(names[0])
    if match is None:
        return names[0]
    before, after = re.escape(names[0][: match.start(1)]), re.escape(names[0][match.end(1) :])
    every = {name for name in universe if re.fullmatch(rf"{before}\d+{after}", name)}
    numbers = [found[1] for name in names if (found := _NUMBER.search(name))]
    number = r"\d+" if every == {*names} else f"({'|'.join(numbers)})"
    return f"re:{before}{number}{after}$"
