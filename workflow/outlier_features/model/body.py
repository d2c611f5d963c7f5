"""The body of a model: the module from token ids to last hidden states, which holds the blocks and not the head.

In a vision-language model it is what runs on text alone, wherever that lies; of an encoder-decoder model, either half.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from outlier_features.errors import InputError
from outlier_features.model.hooks import hooks
from outlier_features.model.loading import Part
from outlier_features.model.stack import Stack, find_stack


def find_body(model: PreTrainedModel, ids: torch.Tensor, part: Part | None) -> tuple[nn.Module, Stack]:
    """The body and its blocks, from runs of the token ids (B, T).

    Raises `InputError` where the model has no blocks, or they run in no module that gives last hidden states.
    """
    if part == "encoder":
        encoder = model.get_encoder()
        return encoder, find_stack(model, lambda: encoder(ids), _expected(model, "encoder"), _path(model, encoder))
    if part == "decoder":
        decoder = decoder_of(model)
        run = lambda: run_decoder(model, ids)  # noqa: E731
        return decoder, find_stack(model, run, _expected(model, "decoder"), _path(model, decoder))
    stack = find_stack(model, lambda: model(ids), _expected(model, None))
    for path, module in _candidates(model, stack):
        returned: list[Any] = []
        with suppress(TypeError, ValueError, AttributeError, RuntimeError, IndexError):
            inner = find_stack(model, _run_of(module, ids, returned), len(stack), path)
            if getattr(returned[-1], "last_hidden_state", None) is not None:
                return module, inner
    raise InputError(
        f"{model.config.model_type}: found no module of {type(model).__name__} that holds the blocks and gives "
        "last hidden states of token ids, expected one"
    )


def run_decoder(
    model: PreTrainedModel,
    ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    encoder_ids: torch.Tensor | None = None,
    **options: Any,
) -> Any:
    """What the decoder of an encoder-decoder model returns of token ids (B, T), which begin with its start token.

    encoder_ids   what the encoder reads: the ids after the first unless given
    """
    encoder_ids = ids[:, 1:] if encoder_ids is None else encoder_ids
    mask = None if attention_mask is None else attention_mask[:, 1:]
    found: list[Any] = []
    whole = model.base_model if model.get_output_embeddings() is not None else model
    with hooks(after=[(decoder_of(model), lambda module, args, kwargs, output: found.append(output))]):
        whole(input_ids=encoder_ids, attention_mask=mask, decoder_input_ids=ids, **options)
    return found[-1]


def decoder_of(model: PreTrainedModel) -> Any:
    """The decoder of an encoder-decoder model; what holds an encoder as well, or a head, is not yet it."""
    decoder: Any = model.get_decoder()
    while hasattr(decoder, "encoder") and hasattr(decoder, "decoder"):
        decoder = decoder.decoder
    has_head = isinstance(decoder, PreTrainedModel) and decoder.get_output_embeddings() is not None
    return decoder.base_model if has_head else decoder


def _run_of(module: Any, ids: torch.Tensor, returned: list[Any]) -> Callable[[], None]:
    return lambda: returned.append(module(ids))


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def _expected(model: PreTrainedModel, part: Part | None) -> int | None:
    names = {"encoder": ("encoder_layers", "num_layers"), "decoder": ("decoder_layers", "num_decoder_layers")}
    try:
        config = model.config.get_text_config()
    except ValueError:
        config = model.config
    for name in (*(names[part] if part else ()), "num_hidden_layers"):
        if isinstance(number := getattr(config, name, None), int):
            return number
    return None


def _candidates(model: PreTrainedModel, stack: Stack) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold all blocks and not the head, the outermost first."""
    head = model.get_output_embeddings()
    inputs = model.get_input_embeddings()
    for path, module in model.named_modules():
        inside = all(f"{block.path}.".startswith(f"{path}." if path else "") for block in stack.blocks)
        holds_head = head is not None and head is not inputs and any(part is head for part in module.modules())
        if inside and isinstance(module, PreTrainedModel) and not holds_head and module in stack.calls:
            yield path, module
