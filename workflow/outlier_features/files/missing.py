"""Analyses that a run can do without: what stands in the place of one that is missing, and why it is missing.

A stage whose analysis cannot be had leaves all its outputs all the same: tables without rows, files without tensors,
whose provenance has `missing`. So the run goes on, and whoever reads them can say the reason.
"""

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from outlier_features import __version__
from outlier_features.errors import (
    ConfigError,
    DamagedFile,
    InputError,
    error_in_short,
    fault_sentence,
    place_of,
    results_of,
    stage,
)
from outlier_features.files.artifacts import replacing, write_json
from outlier_features.files.foreign_files import write_gguf, write_yaml
from outlier_features.files.tables import provenance_of, public_tables, write_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.machine_limits import refusal
from outlier_features.stage_log import say

MISSING = "missing"
# Every analysis that a run can do without, in the order of the report, and what it is called in a sentence.
ANALYSES = {
    "surface": "The surface of the largest value",
    "norms": "The check of the norms' gains",
    "origin": "The tracing of massive activations to their origin",
    "experts": "The ranking of experts",
    "attention_maps": "The map of attention sinks and patterns",
    "loss": "The loss",
    "super_weights": "The search for super weights",
    "ablation": "The ablation of dimensions and weights",
    "expert_ablation": "The pruning of super experts",
    "neurons": "The ranking of neurons",
    "gallery": "The gallery of neurons and dimensions",
    "attribution": "The attribution of logits to heads and neurons",
    "knock_outs": "The knock-out of sublayers, heads and super weights",
    "channels": "The statistics of the inputs of linear layers",
    "quantization": "The quantization of linear layers",
    "quantization_losses": "The losses of the quantized model",
}
_OF_THE_CHUNK = ("start", "stop", "job", "norms", MISSING)  # not to be inherited from an input


@dataclass(frozen=True)
class Missing:
    """Why an analysis is missing.

    cause    off: the config leaves it out; model: it cannot be had for this model; fault: this program failed
    reason   for the end of a sentence
    log      of the job, in the directory of results
    """

    analysis: str
    cause: Literal["off", "model", "fault"]
    reason: str
    log: str

    @property
    def sentence(self) -> str:
        return missing_sentence(self.analysis, asdict(self))


class MissingInput(InputError):
    """A stage reads what another could not make."""

    def __init__(self, record: Mapping[str, Any]):
        self.missing = Missing(**record)
        super().__init__(self.missing.sentence)


def missing_sentence(analysis: str, record: Mapping[str, Any]) -> str:
    """One sentence, from the `cause`, `reason` and `log` of `missing` in summary.json."""
    name, reason = ANALYSES[analysis], record["reason"].rstrip(".")
    if record["cause"] == "off":
        return f"{name} is turned off: {reason}."
    if record["cause"] == "fault":
        return (
            f"{name} is missing by a fault of outlier-features ({reason}): please report it with the configuration and "
            f"{record['log']} of the results, which has the details."
        )
    return f"{name} cannot be had: {reason}."


def require_had(provenance: Mapping[str, Any]) -> None:
    """Raise `MissingInput` where a file stands in the place of what could not be made."""
    if MISSING in provenance:
        raise MissingInput(provenance[MISSING])


@contextmanager
def optional(analysis: str, outputs: Iterable[str], log: str, *, of: str, off: str | None = None) -> Iterator[bool]:
    """The body makes `outputs`, which are there afterwards even if it cannot. Its value: whether it is to try.

    analysis   one of `ANALYSES`
    log        of the job
    of         a table or tensor file of the same run: what stands in for the outputs has its provenance
    off        why the config leaves the analysis out: there is nothing to try

    What stops a run all the same: a damaged file or one of another run, a mistake in the config, and what the machine
    refuses.
    """
    missing = Missing(analysis, "off", off, _within_results(Path(log))) if off else None
    try:
        yield missing is None
    except Exception as error:
        missing = why_missing(error, analysis, Path(log))
    if missing:
        provenance = _provenance(Path(of))
        for output in map(Path, outputs):
            _write_instead(output, missing, provenance)
        say(f"missing: {missing.sentence}")


@contextmanager
def optional_stage(analysis: str, job: Any, *, of: str) -> Iterator[bool]:
    """The body of the script of a rule whose only purpose is an analysis that a run can do without, `stage` around it.

    job   the script's `snakemake`; `params.off` says why the config leaves the analysis out
    """
    log = job.log[0]
    with stage(log), optional(analysis, job.output, log, of=of, off=job.params.off) as wanted:
        yield wanted


def why_missing(error: Exception, analysis: str, log: Path) -> Missing:
    """Why an analysis is missing that failed with `error`; raises it again where the run must not go on."""
    if isinstance(error, DamagedFile | ConfigError) or refusal(error, place_of(log)):
        raise error
    if isinstance(error, MissingInput):
        return Missing(analysis, error.missing.cause, error.missing.reason, error.missing.log)
    where = _within_results(log)
    if isinstance(error, InputError):
        return Missing(analysis, "model", " ".join(error.found.split()), where)
    traceback.print_exception(error)
    say(fault_sentence(error_in_short(error), f"{log}, the configuration"))
    return Missing(analysis, "fault", error_in_short(error), where)


def _within_results(log: Path) -> str:
    results = results_of(log)
    return str(log.absolute().relative_to(results)) if results else log.name


def _provenance(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        found = TensorFile(path).provenance
    else:
        found = provenance_of(path, public_tables()[path.stem])
    return {key: value for key, value in found.items() if key not in _OF_THE_CHUNK}


def _write_instead(output: Path, missing: Missing, provenance: Mapping[str, Any]) -> None:
    marked = {**provenance, "package_version": __version__, MISSING: asdict(missing)}
    if output.suffix == ".safetensors":
        write_tensors(output, {}, marked)
    elif output.suffix == ".parquet":
        table = public_tables()[output.stem]
        write_table(output, pl.DataFrame(schema=table.schema), table, marked)
    elif output.suffix == ".json":
        write_json(output, marked)
    elif output.suffix == ".gguf":
        write_gguf(output, {}, {}, marked)
    elif output.suffix == ".yaml":
        write_yaml(output, None, [missing.sentence], marked)
    else:
        with replacing(output) as temporary:
            temporary.write_text(f"{missing.sentence}\n", encoding="utf-8")
