"""The one place where a model is loaded and put on a device."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported: only the fetch rules talk to a network

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from outlier_features.errors import ConfigError, InputError


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device.

    `causal`: no position sees a later one. `has_causal_head`: it is causal and its logits predict the next token.
    """

    model: PreTrainedModel
    device: torch.device
    attention: str
    causal: bool
    has_causal_head: bool

    @property
    def base(self) -> Any:
        """The model without its head: from token ids to last hidden states."""
        return _base(self.model)

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def blocks(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

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
    location: Path, *, dtype: str, device: str, attention: str, trust_remote_code: bool, threads: int | None = None
) -> LoadedModel:
    """The model in the directory `location` (safetensors weights, transformers' format).

    dtype       float32, bfloat16 or float16
    device      auto, cpu, cuda or mps; `auto` is a GPU if torch sees one
    attention   sdpa or eager, transformers' attention implementation
    threads     how many of a CPU's cores torch uses from now on, or as many as before

    Raises `InputError` where the directory, the device or the attention implementation is not usable, where weights are
    missing, and for encoder-decoder models.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = _device(device)
    transformers.utils.logging.set_verbosity_error()  # what it warns of is either an error here or of no concern
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = _config(location, options)
    wants_head = _is_causal_lm(config, trust_remote_code)
    options |= {"dtype": getattr(torch, dtype), "attn_implementation": attention, "use_safetensors": True}
    options["ignore_mismatched_sizes"] = True  # they are named below, where transformers would only count them
    auto_class = AutoModelForCausalLM if wants_head else AutoModel
    model, report = _weights(auto_class, location, config, attention, options)
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
    model.to(place)  # type: ignore[arg-type]
    model.eval()
    model.config.get_text_config().use_cache = False  # one pass a sequence; not every encoder takes it as an argument
    try:
        causal = _is_causal(model)
    except Exception as error:  # whatever a configuration, or code of the model's own, leads to
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        found = f"{type(error).__name__}: {_sentence(error)}"
        raise InputError(
            f"{location}: {type(model).__name__} does not run on a few tokens, found {found}, expected weights and a "
            "config.json that fit each other"
        ) from error
    return LoadedModel(model, place, attention, causal, wants_head and causal and not missing & head)


def probe_ids(model: PreTrainedModel) -> torch.Tensor:
    """A few fixed tokens to try a model on, int64 (2, 6), on its device."""
    # Neither special nor byte tokens (first) nor unused rows (last), which may be untrained; padding has no position.
    vocabulary = _vocab_size(model)
    padding = model.config.get_text_config().pad_token_id
    ordinary = [token for token in range(vocabulary // 3, vocabulary) if token != padding]
    return torch.tensor(list(islice(cycle(ordinary), 12)), device=model.device).reshape(2, 6)


def holds_experts(module: nn.Module) -> bool:
    """Whether the module itself has one weight matrix for each expert, in one tensor."""
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.Conv1d) and any(parameter.ndim == 3 for parameter in own)


def overflow_hint(dtype: torch.dtype) -> str:
    """For the end of a message on values that are not finite."""
    return " (float16 overflows above 65504: set `dtype` to bfloat16 or float32)" if dtype == torch.float16 else ""


def _vocab_size(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _base(model: PreTrainedModel) -> Any:
    if model.base_model is model and model.get_output_embeddings() is not None:
        # The class's prefix names no attribute, so it passes for its own base, head and all.
        return next(child for child in model.children() if isinstance(child, PreTrainedModel))
    return model.base_model


def _device(device: str) -> torch.device:
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present[device]:
        raise ConfigError(f"device: found {device!r}, but torch sees no such device here, expected 'auto' or 'cpu'")
    return torch.device(device)


def _config(location: Path, options: dict[str, Any]) -> Any:
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
    if config.is_encoder_decoder:
        raise InputError(
            f"{location}: found {config.model_type!r}, an encoder-decoder model, expected a decoder or an encoder"
        )
    return config


def _is_causal_lm(config: Any, trust_remote_code: bool) -> bool:
    classes = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        classes |= set(config.architectures or ())
    if config.architectures:
        return bool(classes & set(config.architectures))
    known, masked = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in known and config.model_type not in masked


def _weights(
    auto_class: Any, location: Path, config: Any, attention: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        model, report = auto_class.from_pretrained(location, config=config, output_loading_info=True, **options)
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, and whatever remote code raises
        if "attention implementation" in str(error) or "attn_implementation" in str(error):
            raise InputError(
                f"attention: found {attention!r}, which {config.model_type} in {location} does not support, "
                "set `attention: eager` for this model"
            ) from error
        raise InputError(
            f"{location}: expected safetensors weights of a {config.model_type} model, found {_sentence(error)}"
        ) from error
    used = model.config.get_text_config()._attn_implementation
    if used != attention:
        raise InputError(
            f"attention: found {attention!r}, but {config.model_type} in {location} runs {used!r}, "
            f"set `attention: {used}` for this model"
        )
    return model, report


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
def _is_causal(model: PreTrainedModel) -> bool:
    """Whether the first position stays the same when all later tokens change.

    Where tokens are routed to experts, other tokens beside it change the order of additions.
    """
    ids = probe_ids(model)
    ids, changed = ids[:1], torch.cat([ids[:1, :1], ids[1:, 1:]], dim=1)
    before, after = (_base(model)(tokens).last_hidden_state[0, 0].float() for tokens in (ids, changed))
    moved = (before - after).abs() / (before.abs() + before.square().mean().sqrt())
    routed = any(holds_experts(module) for module in model.modules())
    return bool(moved.max() <= (5e-2 if routed and model.dtype != torch.float32 else 1e-3))


def _sentence(error: Exception) -> str:
    """The error's first line, for the end of a sentence."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
