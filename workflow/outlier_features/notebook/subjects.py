"""What can be measured: a transformers model with token ids, or any module with the inputs that its caller has."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from outlier_features.detect.detect_in_passes import count_in_passes
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.extract.measure_loss import measure_loss
from outlier_features.extract.module_passes import ModulePasses
from outlier_features.extract.passes import Passes
from outlier_features.extract.request import Request, require_padding_last
from outlier_features.files.missing import optional
from outlier_features.files.run_files import RunFiles
from outlier_features.model.loading import Part
from outlier_features.model.models import LoadedModel, text_config
from outlier_features.model.module_in_hand import Inputs, ModuleInHand
from outlier_features.norms.check_norms import check_norms
from outlier_features.norms.norm_tables import write_norms
from outlier_features.norms.norms import find_norms
from outlier_features.notebook.run import Run
from outlier_features.notebook.sequences import of_ids, of_run, of_unknown
from outlier_features.tokens.tokens import Tokens

# What a tokenizer returns that is used, or says nothing that the model would not do by itself.
_OF_A_TOKENIZER = {"input_ids", "attention_mask", "special_tokens_mask", "offset_mapping"}
_TYPES = "token_type_ids"
Progress = Callable[[int], object]


class Subject(Protocol):
    """
    tokens, texts   the sequences that are run
    """

    tokens: Tokens
    texts: list[str]

    def count(
        self, run: Tokens, place: Path, files: DetectionFiles, settings: DetectionSettings, threads: int, told: Progress
    ) -> None:
        """Run all sequences and write the hits and statistics of their activations."""

    def add_tables(self, place: Path, log: str) -> list[str]:
        """Write the tables that need no further pass, once that of dims is there; returns their names."""


def subject_of(
    model: nn.Module,
    inputs: Any,
    *,
    mask: Any,
    special: Any,
    tokenizer: Any,
    part: Part | None,
    blocks: str | Sequence[str] | None,
    facts: Mapping[str, Any],
    batch_size: int,
) -> Subject:
    """What `measure` is asked for; `facts` are those of the model, for a provenance. Raises `InputError`."""
    if blocks is None and isinstance(model, PreTrainedModel) and _are_ids(inputs):
        return _OfTokenIds(model, inputs, mask, special, tokenizer, part, facts, batch_size)
    if part is not None or tokenizer is not None or isinstance(inputs, Run):
        raise InputError(
            f"inputs: found {type(inputs).__name__} for {type(model).__name__}, expected token ids of a transformers "
            "model whose blocks are found, which `part`, `tokenizer` and a run's sequences are for"
        )
    return _OfModule(model, inputs, mask, special, blocks, facts)


def _are_ids(inputs: Any) -> bool:
    if isinstance(inputs, Mapping):
        beside = set(inputs) - _OF_A_TOKENIZER
        return "input_ids" in inputs and (not beside or (beside == {_TYPES} and _of_one_text(inputs[_TYPES])))
    if isinstance(inputs, torch.Tensor):
        return not inputs.is_floating_point() and inputs.ndim == 2
    if isinstance(inputs, np.ndarray):
        return np.issubdtype(inputs.dtype, np.integer) and inputs.ndim == 2
    return isinstance(inputs, Run | list)


def _of_one_text(types: Any) -> bool:
    """Whether token types are all 0, which is what a model takes by itself."""
    return not any(int(one) for row in types for one in row)


class _OfTokenIds:
    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Any,
        mask: Any,
        special: Any,
        tokenizer: Any,
        part: Part | None,
        facts: Mapping[str, Any],
        batch_size: int,
    ):
        if getattr(model.config, "is_encoder_decoder", False) != (part is not None):
            found = "an encoder-decoder model" if part is None else "no encoder-decoder model"
            raise InputError(
                f"part: found {part} for {type(model).__name__}, {found}, expected encoder or decoder of one"
            )
        if isinstance(inputs, Run):
            self.tokens, self.texts = of_run(inputs, facts)
        else:
            given = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
            mask = given.get("attention_mask") if mask is None else mask
            special = given.get("special_tokens_mask") if special is None else special
            self.tokens, self.texts = of_ids(given["input_ids"], mask, special, tokenizer, facts)
        require_padding_last(self.tokens, "inputs")
        attention = text_config(model)._attn_implementation or "eager"
        no_loss = None if model.get_output_embeddings() else f"{type(model).__name__} has no head that predicts tokens"
        self._loaded = LoadedModel.of(model, model.device, attention, part, no_loss)
        self._batch_size = batch_size

    def count(
        self, run: Tokens, place: Path, files: DetectionFiles, settings: DetectionSettings, threads: int, told: Progress
    ) -> None:
        facts = run.provenance
        record = {"location": facts["model"], "origin": facts["model_origin"], "revision": facts["model_revision"]}
        request = Request(run, Path("inputs"), record, list(files.hits), 0, len(run.tokens))
        passes = Passes(
            request, self._loaded, None, batch_size=self._batch_size, threads=threads, kept=place / "kept",
            log=place / "log",
        )  # fmt: skip
        with passes.loss_file(_losses(place)) as file:
            count_in_passes(passes, run, files, settings, file.write, passes.most_at_once, threads, progress=told)

    def add_tables(self, place: Path, log: str) -> list[str]:
        norms, gains, loss = (place / f"{name}.parquet" for name in ("norms", "gains", "loss"))
        dims, token_losses = place / "dims.parquet", place / "token_losses.safetensors"
        with optional("norms", map(str, (norms, gains)), log, of=str(dims)):
            check_norms(_losses(place), dims, norms, gains)
        with optional("loss", map(str, (loss, token_losses)), log, of=str(dims)):
            measure_loss([_losses(place)], place / "tokens.safetensors", loss, token_losses)
        return ["norms", "gains", "loss"]


def _losses(place: Path) -> Path:
    return place / "losses.safetensors"


class _OfModule:
    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        mask: Any,
        special: Any,
        blocks: str | Sequence[str] | None,
        facts: Mapping[str, Any],
    ):
        given = _arguments(inputs)
        if mask is None and "attention_mask" in given.kwargs:
            mask = given.kwargs["attention_mask"]
        self._module = ModuleInHand.of(model, given, blocks)
        shape = (len(given), self._module.probe_shape[1])
        self.tokens, self.texts = of_unknown(shape, mask, special, _digest(given), facts)
        require_padding_last(self.tokens, "inputs")
        self._passes: ModulePasses | None = None

    def count(
        self, run: Tokens, place: Path, files: DetectionFiles, settings: DetectionSettings, threads: int, told: Progress
    ) -> None:
        self._passes = ModulePasses(self._module, run, list(files.hits))
        count_in_passes(self._passes, run, files, settings, _no_losses, 1, threads, progress=told)

    def add_tables(self, place: Path, log: str) -> list[str]:
        assert self._passes is not None
        norms, gains, dims = (place / f"{name}.parquet" for name in ("norms", "gains", "dims"))
        with optional("norms", map(str, (norms, gains)), log, of=str(dims)):
            rows, provenance = RunFiles().table(dims, DIMS)
            found = self._passes.found
            write_norms(find_norms(self._module, found.blocks, [], found.calls), rows, norms, gains, provenance)
        return ["norms", "gains"]


def _no_losses(name: str, row: int, values: Any) -> None:
    raise AssertionError(f"{name} of a module that predicts no token")


def _arguments(inputs: Any) -> Inputs:
    """What the caller's module is called with; arrays and lists as tensors."""

    def tensor(value: Any) -> Any:
        return torch.as_tensor(value) if isinstance(value, np.ndarray | list) else value

    if isinstance(inputs, Mapping):
        return Inputs((), {name: tensor(value) for name, value in inputs.items()})
    return Inputs(tuple(map(tensor, inputs)) if isinstance(inputs, tuple) else (tensor(inputs),), {})


def _digest(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for one in inputs.tensors:
        digest.update(f"{one.dtype}{list(one.shape)}".encode())
        digest.update(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
