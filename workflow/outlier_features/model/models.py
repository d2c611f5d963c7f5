"""The one place where a model is loaded and put on a device."""

import copy
import os
import sys

# Read once, when transformers is imported: only what fetches talks to a network, and does so by what the user said. A 1
# may be this program's own, of the process that started this one.
if os.environ.get("HF_HUB_OFFLINE") != "1" or "OUTLIER_FEATURES_OFFLINE" not in os.environ:
    os.environ["OUTLIER_FEATURES_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "")
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto as auto
from transformers.pytorch_utils import Conv1D

from outlier_features.errors import InputError
from outlier_features.model.body import find_body, run_decoder
from outlier_features.model.checkpoint import Checkpoint, quantization_config
from outlier_features.model.loading import Part, Wanted
from outlier_features.model.on_demand import OnDemand
from outlier_features.model.placement import Machine, Placement, bytes_in, device_map, device_of, placed
from outlier_features.model.stack import Stack
from outlier_features.model.weights_of_modules import Unread, WeightsOfModules, without_weights
from outlier_features.quantized.quantization import Quantization

# Classes whose head gives logits of tokens. Masked models are loaded without theirs: it predicts no next token.
_HEADS = (
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
_PROBE_TOKENS = 32
_AUTO_CLASSES = (
    (AutoModel, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device.

    attention   the implementation that it runs, sdpa or eager
    part        `encoder` or `decoder` of an encoder-decoder model; None of another
    body        the module from token ids to last hidden states, which holds the blocks and not the head
    stack       its blocks
    causal      no position sees a later one
    no_loss     why it has no loss of the next token; None if it has
    placement   where its weights lie, and why there
    on_demand   the weights that stay on disk, if they do
    quantized   what its weights were dequantized from; None of a checkpoint that was not quantized
    """

    model: PreTrainedModel
    device: torch.device
    attention: str
    part: Part | None
    body: nn.Module
    stack: Stack
    causal: bool
    no_loss: str | None
    placement: Placement
    on_demand: OnDemand | None = None
    quantized: Quantization | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, device: torch.device, attention: str, part: Part | None = None,
           no_loss: str | None = None, placement: Placement | None = None, on_demand: OnDemand | None = None,
           quantized: Quantization | None = None) -> "LoadedModel":  # fmt: skip
        """A model that is on its device; a few tokens are run to see its blocks and whether it is causal.

        no_loss   why it has no loss, where that is known already
        """
        # One pass a sequence; not every model takes it as an argument, and a decoder may have a config of its own.
        for module in model.modules():
            if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                config.use_cache = False
        body, stack = find_body(model, probe_ids(model), part)
        causal = _is_causal(model, body, part)
        if not causal:
            no_loss = f"{type(model).__name__} is no causal model: a position sees later ones"
        placement = placement or Placement("one", "it was there", device)
        return cls(model, device, attention, part, body, stack, causal, no_loss, placement, on_demand, quantized)

    @property
    def base(self) -> Callable[..., Any]:
        """From token ids (B, T) to last hidden states, without the head.

        A decoder's ids begin with its start token; the encoder reads those after it.
        """
        return partial(run_decoder, self.model) if self.part == "decoder" else self.body

    @property
    def probe_shape(self) -> torch.Size:
        return probe_ids(self.model).shape

    def probe(self, **options: Any) -> Any:
        """What `base` returns of a few fixed tokens, see `Probed`."""
        return self.base(probe_ids(self.model), **options)

    @property
    def has_causal_head(self) -> bool:
        """It is causal and its logits predict the next token."""
        return self.no_loss is None

    @property
    def config(self) -> Any:
        return text_config(self.model)

    @property
    def blocks(self) -> int:
        return len(self.stack)

    @property
    def d_model(self) -> int:
        return self.stack.width

    @property
    def model_type(self) -> str:
        return str(self.model.config.model_type)

    @property
    def vocab_size(self) -> int:
        """Token ids that the model can embed."""
        return _vocab_size(self.model)

    @property
    def parameters(self) -> int:
        """Parameters, a tied one counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


def load_model(
    location: Path,
    *,
    dtype: str,
    device: str,
    attention: str,
    trust_remote_code: bool,
    threads: int | None = None,
    part: Part | None = None,
    placement: Wanted = "one",
    keep: int | None = None,
) -> LoadedModel:
    """The model in the directory `location` (safetensors weights, transformers' format).

    dtype       float32, bfloat16 or float16
    device      auto, cpu, cuda or mps; `auto` is a GPU if torch sees one
    attention   sdpa or eager, transformers' attention implementation; `auto`: what the model's class takes by itself
    threads     how many of a CPU's cores torch uses from now on, or as many as before
    part        the encoder or the decoder of an encoder-decoder model
    placement   where the weights lie, see `placement`; `auto`: as the machine's memory allows
    keep        bytes of blocks that a `layerwise` model keeps in memory; by itself, a share of what is free

    Raises `InputError` where the directory, the device or the attention implementation is not usable, where weights are
    missing, where the model does not run on text, and where `part` and model do not fit each other.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device_of(device)
    transformers.utils.logging.set_verbosity_error()  # what it warns of is either an error here or of no concern
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = _config(location, options, part)
    auto_class, no_loss = _class_of(config, trust_remote_code)
    options |= {"dtype": getattr(torch, dtype), "use_safetensors": True}
    options["ignore_mismatched_sizes"] = True  # they are named below, where transformers would only count them
    quantized = bool(quantization_config(location))
    checkpoint = Checkpoint.open(location) if quantized or placement != "one" else None
    chosen = _placement(checkpoint, placement, device, options["dtype"])
    if keep is not None:
        chosen = replace(chosen, keep=keep)
    if quantized:
        _forget_quantization(config)
    model, used, report = _weights(auto_class, location, config, attention, options, chosen, checkpoint)
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        raise InputError(
            f"{location}: its weight {name} is of shape {list(found)}, expected {list(expected)} by its config.json"
        )
    missing = _missing_weights(model, report)
    head = _head_weights(model)
    if missing - head:
        raise InputError(
            f"{location}: its weights lack {_some(missing - head)}, expected every weight of {type(model).__name__}"
        )
    if missing & head:
        no_loss = f"its weights lack {_some(missing & head)}, which are not tied to the embeddings"
    on_demand: OnDemand | None = None
    if checkpoint is not None and chosen.kind == "layerwise":
        without, model = model, copy.deepcopy(model)
        on_demand = OnDemand(model, WeightsOfModules(without, checkpoint), chosen.device, chosen.keep)
    if chosen.kind != "spread":
        model.to(chosen.device)  # type: ignore[arg-type]
    model.eval()
    decoded = checkpoint.quantization if checkpoint else None
    try:
        return LoadedModel.of(model, chosen.device, used, part, no_loss, chosen, on_demand, decoded)
    except Exception as error:
        if isinstance(error, InputError | MemoryError | torch.OutOfMemoryError):
            raise
        raise InputError(_does_not_run(model, location, error)) from error


def empty_model(
    location: Path, *, dtype: str, trust_remote_code: bool = False, part: Part | None = None
) -> tuple[PreTrainedModel, str | None]:
    """The model of a directory's config.json on the meta device, whose weights it does not need, with eager attention.

    Also why it has no loss of the next token, where its class tells. Raises `InputError` as `load_model`.
    """
    transformers.utils.logging.set_verbosity_error()
    config = _config(location, {"local_files_only": True, "trust_remote_code": trust_remote_code}, part)
    auto_class, no_loss = _class_of(config, trust_remote_code)
    _forget_quantization(config)
    own = _own_class(auto_class, config, location)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = own._from_config(config, dtype=getattr(torch, dtype), attn_implementation="eager")
    except Exception as error:  # as of a whole load
        raise InputError(_cannot_make(own, location, error)) from error
    return model.eval(), no_loss


def probe_ids(model: PreTrainedModel) -> torch.Tensor:
    """Fixed tokens to try a model on, two different sequences, int64 (2, T), on its device.

    T is 32, since some attention works on blocks of so many, or all the positions that the model has.
    """
    # Neither special nor byte tokens (first) nor unused rows (last), which may be untrained; padding has no position.
    config, vocabulary = text_config(model), _vocab_size(model)
    positions = getattr(config, "max_position_embeddings", None)
    length = min(_PROBE_TOKENS, positions) if isinstance(positions, int) and positions > 0 else _PROBE_TOKENS
    padding = getattr(config, "pad_token_id", None)
    # A vocabulary of hundreds of thousands is not gone through: no more of it is taken than two sequences need.
    ordinary = list(islice((one for one in range(vocabulary // 3, vocabulary) if one != padding), 2 * length + 1))
    first = list(islice(cycle(ordinary), length))
    second = list(islice(cycle(ordinary), length + 1, 2 * length + 1))
    return torch.tensor([first, second], device=model.device)


def holds_experts(module: nn.Module) -> bool:
    """Whether the module itself has one weight matrix for each expert, in one tensor, and no linear layers."""
    own = module.parameters(recurse=False)
    return (
        not isinstance(module, nn.Conv1d)
        and any(parameter.ndim == 3 for parameter in own)
        and not any(isinstance(part, nn.Linear) for part in module.modules())
    )


def overflow_hint(dtype: torch.dtype) -> str:
    """For the end of a message on values that are not finite."""
    return " (float16 overflows above 65504: set `dtype` to bfloat16 or float32)" if dtype == torch.float16 else ""


def text_config(model: PreTrainedModel) -> Any:
    """The part of a model's config that is about text."""
    try:
        return model.config.get_text_config()
    except ValueError:  # it has several
        return model.config


def _vocab_size(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(getattr(embeddings, "weight", embeddings).shape[0])


def _configs(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        if isinstance(inner := getattr(config, name, None), PreTrainedConfig):
            yield from _configs(inner)


def _placement(checkpoint: Checkpoint | None, wanted: Wanted, device: str, dtype: torch.dtype) -> Placement:
    """Where a model goes, by the size of its weights if that matters."""
    if wanted == "one" or checkpoint is None:
        return placed("one", device, 0, 0, Machine({}, 0))
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    chosen = placed(wanted, device, bytes_in(dtype, shapes), checkpoint.bytes_of_files, Machine.here())
    print(f"placement: {chosen}", file=sys.stderr)
    return chosen


def _config(location: Path, options: dict[str, Any], part: Part | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(location, **options)
    except Exception as error:  # OSError, ValueError, KeyError, ImportError, those of checks in the classes, and others
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{location}: found a model with Python code of its own, expected `trust_remote_code: true` to run it"
            ) from error
        raise InputError(
            f"{location}: expected a config.json of a transformers model, found {_sentence(error)}"
        ) from error
    for one in _configs(config):
        if not hasattr(one, "pad_token_id"):
            one.pad_token_id = None  # some classes of transformers still read what their configs no longer have
    if config.is_encoder_decoder and part is None:
        raise InputError(
            f"{location}: found {config.model_type!r}, an encoder-decoder model, expected its encoder or its decoder: "
            "add `.encoder` or `.decoder` to its name under `models` (`outlier-features gains` has --part)"
        )
    if part is not None and not config.is_encoder_decoder:
        raise InputError(
            f"{location}: found {config.model_type!r}, which has no {part}, expected an encoder-decoder model"
        )
    return config


def _class_of(config: Any, trust_remote_code: bool) -> tuple[Any, str | None]:
    """The class to load a model with, and why it has no loss of the next token where the class tells."""
    names = config.architectures or []
    own_code = (getattr(config, "auto_map", None) or {}) if trust_remote_code else {}
    if "AutoModelForCausalLM" in own_code:
        return AutoModelForCausalLM, None
    heads = {name for mapping in _HEADS for name in _names(mapping)}
    for name in names:
        if name in heads and hasattr(transformers, name):
            return getattr(transformers, name), None
    if not names:
        for auto_class, mapping in _AUTO_CLASSES:
            if config.model_type in mapping:
                return auto_class, None
        return AutoModel, f"its config.json names no class, and {config.model_type} has none that predicts tokens"
    return AutoModel, f"its checkpoint is of {names[0]}, which has no head that predicts the next token"


def _names(mapping: Mapping[str, Any]) -> Iterator[str]:
    for names in mapping.values():
        yield from [names] if isinstance(names, str) else names


def _forget_quantization(config: Any) -> None:
    """Have transformers take the weights for those of a model that is not quantized."""
    for one in _configs(config):
        for key in ("quantization_config", "compression_config"):
            if hasattr(one, key):
                delattr(one, key)


def _decoded(
    model_class: Any, config: Any, checkpoint: Checkpoint, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with dequantized weights, each of which is decoded when it is put in its place."""
    weights = {name: Unread(checkpoint, name) for name in checkpoint.names}
    found: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, **options
    )
    return found


def _require_straight(model: PreTrainedModel, location: Path) -> None:
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise InputError(
            f"{location}: found quantized weights of {type(model).__name__}, whose layers hold theirs transposed, "
            "expected weights that are not quantized"
        )


def _weights(
    model_class: Any,
    location: Path,
    config: Any,
    attention: str,
    options: dict[str, Any],
    placement: Placement,
    checkpoint: Checkpoint | None,
) -> tuple[PreTrainedModel, str, dict[str, Any]]:
    """The model, the attention implementation that it runs, and what its loading says of weights."""
    if attention != "auto":
        options = {**options, "attn_implementation": attention}
    try:
        if checkpoint is not None and placement.kind == "layerwise":
            model, report = without_weights(_own_class(model_class, config, location), config, checkpoint, options)
        else:
            if checkpoint is not None and placement.kind == "spread":
                own = _own_class(model_class, config, location)
                options["device_map"] = _device_map(own, config, checkpoint, options)
            if checkpoint is not None and checkpoint.quantization:
                model, report = _decoded(_own_class(model_class, config, location), config, checkpoint, options)
            else:
                model, report = model_class.from_pretrained(
                    location, config=config, output_loading_info=True, **options
                )
        if checkpoint is not None and checkpoint.quantization:
            _require_straight(model, location)
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, and whatever remote code raises
        if "attention implementation" in str(error) or "attn_implementation" in str(error):
            raise InputError(
                f"attention: found {attention!r}, which {config.model_type} in {location} does not support, "
                "set `attention: auto` for this model"
            ) from error
        if isinstance(error, OSError | SafetensorError):
            raise InputError(
                f"{location}: expected safetensors weights of a {config.model_type} model, found {_sentence(error)}"
            ) from error
        raise InputError(_cannot_make(model_class, location, error)) from error
    used = text_config(model)._attn_implementation or "eager"
    if attention not in ("auto", used):
        raise InputError(
            f"attention: found {attention!r}, but {config.model_type} in {location} runs {used!r}, "
            f"set `attention: {used}` or `attention: auto` for this model"
        )
    return model, used, report


def _own_class(model_class: Any, config: Any, location: Path) -> Any:
    """The class of the model itself, where transformers would look it up."""
    if not hasattr(model_class, "_model_mapping"):
        return model_class
    own_code = getattr(config, "auto_map", None) or {}
    if model_class.__name__ in own_code:
        return get_class_from_dynamic_module(own_code[model_class.__name__], location)
    found = model_class._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _device_map(model_class: Any, config: Any, checkpoint: Checkpoint, options: dict[str, Any]) -> dict[str, int]:
    model, _ = without_weights(model_class, config, checkpoint, options)
    return device_map(model, Machine.here().gpus, sorted(model._no_split_modules or ()))


def _cannot_make(model_class: Any, location: Path, error: Exception) -> str:
    return (
        f"{location}: transformers {transformers.__version__} cannot make a {model_class.__name__} of its config.json "
        f"and weights: {type(error).__name__}: {_sentence(error)}"
    )


def _does_not_run(model: PreTrainedModel, location: Path, error: Exception) -> str:
    name = type(model).__name__
    if model.main_input_name not in ("input_ids", "inputs"):
        return (
            f"{location}: found {name}, which reads {model.main_input_name}, expected a model that runs on text alone"
        )
    return (
        f"{location}: {name} does not run on a few tokens with transformers {transformers.__version__}, found "
        f"{type(error).__name__}: {_sentence(error)}"
    )


def _missing_weights(model: PreTrainedModel, report: dict[str, Any]) -> set[str]:
    missing = set(report["missing_keys"])
    # transformers' encoders put a pooler after the last hidden states; masked-language checkpoints often have none.
    prefix = f"{model.base_model_prefix}."
    return {name for name in missing if not name.removeprefix(prefix).startswith("pooler.")}


def _head_weights(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if module is head
        for name, _ in module.named_parameters()
    }


@torch.inference_mode()
def _is_causal(model: PreTrainedModel, body: Any, part: Part | None) -> bool:
    """Whether the first position stays the same when all later tokens change.

    Where tokens are routed to experts, other tokens beside it change the order of additions. A random model may move
    by little, so that nothing but rounding is let pass.
    """
    ids = probe_ids(model)
    ids, changed = ids[:1], torch.cat([ids[:1, :1], ids[1:, 1:]], dim=1)
    run = partial(run_decoder, model, encoder_ids=ids[:, 1:]) if part == "decoder" else body
    before, again, after = (run(tokens).last_hidden_state[0, 0].float() for tokens in (ids, ids, changed))
    if not torch.equal(before.nan_to_num(), again.nan_to_num()):  # what is not finite, is said where it is made
        raise InputError(
            f"{model.config.model_type}: {type(model).__name__} gives other values each time that it reads the same "
            "tokens, expected the same"
        )
    moved = (before - after).abs() / (before.abs() + before.square().mean().sqrt())
    routed = any(holds_experts(module) for module in model.modules())
    allowed = {True: 1e-4, False: 1e-5} if model.dtype == torch.float32 else {True: 5e-2, False: 1e-3}
    return bool(moved.max() <= allowed[routed])


def _sentence(error: Exception) -> str:
    """The error's first line, for the end of a sentence."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
