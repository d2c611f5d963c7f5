"""How a model is loaded, as the stages that run one hand it on; without torch, which a stage may not need after all."""

from typing import Any, Literal, TypedDict

from outlier_features.cores import usable_cores

Part = Literal["encoder", "decoder"]
Wanted = Literal["auto", "one", "spread", "layerwise"]


class Loading(TypedDict):
    """What `models.load_model` is told of a model besides its directory."""

    dtype: str
    device: str
    attention: str
    threads: int
    trust_remote_code: bool
    part: Part | None
    placement: Wanted


def loading_of(job: Any) -> Loading:
    """How a job of the workflow, Snakemake's object in its script, loads its model.

    With `extract.threads: auto` torch uses the job's cores; a number is taken as it is, since the last bits of a
    product may depend on it.
    """
    loading: Loading = dict(job.params.loading)  # type: ignore[assignment]
    if loading["threads"] == "auto":
        loading["threads"] = usable_cores(job.threads)
    return loading
