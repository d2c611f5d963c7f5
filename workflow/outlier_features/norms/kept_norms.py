"""The norms of a model in a tensor file: the extraction, which has the model, leaves them for check_norms."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outlier_features.errors import DamagedFile
from outlier_features.files.missing import Missing, MissingInput, why_missing
from outlier_features.files.tensorfile import TensorFile
from outlier_features.norms.norm import Array, Gain, Norm

NORMS = "norms"  # in the provenance
_TENSOR = "norm."
_FACTS = ("module", "sites", "layer", "residual", "kind", "parameterization", "reason", "size", "shape", "tensor",
          "bias_max_abs")  # fmt: skip


def norms_or_why(find: Callable[[], Sequence[Norm]], log: Path) -> Sequence[Norm] | Missing:
    """What `find` returns or, where it cannot, why: a run can do without. `log` is the job's."""
    try:
        return find()
    except Exception as error:
        return why_missing(error, "norms", log)


def norm_tensors(found: Sequence[Norm] | Missing) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors, and facts for the provenance, from which `read_norms` has them again."""
    if isinstance(found, Missing):
        return {}, {NORMS: {"missing": asdict(found)}}
    tensors = {_TENSOR + norm.module: norm.gain.stored for norm in found if norm.gain is not None}
    return tensors, {NORMS: {"found": [_facts(norm) for norm in found]}}


def _facts(norm: Norm) -> dict[str, Any]:
    gain = None if norm.gain is None else {"offset": norm.gain.offset, "dtype": norm.gain.dtype}
    return {name: getattr(norm, name) for name in _FACTS} | {"gain": gain}


def read_norms(file: TensorFile) -> list[Norm]:
    """Raises `MissingInput` where they could not be had, and `DamagedFile` where the file holds none."""
    kept = file.provenance.get(NORMS)
    if kept is None:
        raise DamagedFile(file.path, "holds no norms, expected those of the model")
    if "missing" in kept:
        raise MissingInput(kept["missing"])
    return [_norm(facts, file) for facts in kept["found"]]


def _norm(facts: dict[str, Any], file: TensorFile) -> Norm:
    gain, shape = facts["gain"], facts["shape"]
    return Norm(
        **facts
        | {
            "sites": tuple(facts["sites"]),
            "shape": None if shape is None else tuple(shape),
            "gain": gain and Gain(file.array(_TENSOR + facts["module"]), **gain),
        }
    )
