"""Which formats of quantized checkpoints are known, by the `quant_method` of config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from outlier_features.errors import InputError
from outlier_features.quantized.awq import awq
from outlier_features.quantized.bnb import bnb
from outlier_features.quantized.compressed import compressed
from outlier_features.quantized.gptq import gptq
from outlier_features.quantized.mxfp4 import mxfp4
from outlier_features.quantized.scaled import scaled
from outlier_features.quantized.weight import Stored, Weight

FORMATS: dict[str, Callable[[Stored, Mapping[str, Any]], dict[str, Weight]]] = {
    "fp8": scaled, "fbgemm_fp8": scaled, "mxfp4": mxfp4, "gptq": gptq, "awq": awq, "bitsandbytes": bnb,
    "compressed-tensors": compressed,
}  # fmt: skip
# What else transformers loads, and the package that can write it dequantized.
_PACKAGES = {
    "aqlm": "aqlm", "auto-round": "auto-round", "eetq": "eetq", "higgs": "flute-kernel", "hqq": "hqq",
    "modelopt": "nvidia-modelopt", "quanto": "optimum-quanto", "quark": "amd-quark", "spqr": "spqr_quant",
    "torchao": "torchao", "vptq": "vptq",
}  # fmt: skip


def quantized_weights(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights among a checkpoint's tensors, by name; `settings` is its quantization_config.

    Raises `InputError` where the format is not known or a weight is not as the format has it.
    """
    method = method_of(settings)
    if method not in FORMATS:
        package = f"with the package {_PACKAGES[method]}" if method in _PACKAGES else "with the package that wrote it"
        raise InputError(
            f"quant_method in quantization_config: found {method!r}, expected one of {', '.join(FORMATS)}, or the "
            f"model dequantized {package} and saved"
        )
    return FORMATS[method](stored, settings)


def method_of(settings: Mapping[str, Any]) -> str:
    """The `quant_method` of a quantization_config, or what it must be."""
    if settings.get("quant_method"):
        return str(settings["quant_method"])
    old = settings.get("load_in_4bit") or settings.get("load_in_8bit")  # bitsandbytes before it named itself
    return "bitsandbytes" if old else "none"
