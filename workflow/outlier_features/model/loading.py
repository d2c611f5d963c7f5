"""How a model is loaded, as the stages that run one hand it on; without torch, which a stage may not need after all."""

from typing import Literal, TypedDict

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
