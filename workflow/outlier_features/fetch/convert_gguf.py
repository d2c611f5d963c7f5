"""A GGUF file as a directory in transformers' format: unpacked once, loaded twenty times as fast ever after."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from outlier_features.errors import InputError
from outlier_features.fetch.card import Licence
from outlier_features.fetch.join_gguf import join_gguf
from outlier_features.quantized.quantization import Quantization

# transformers splits these as they should be; so it does for the values that it gives a splitting pattern of its own.
_BYTE_LEVEL = {"default", "gpt-2"}
_PLAIN = {getattr(GGMLQuantizationType, name) for name in ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")}
_SAMPLE = "In 1984,  12345 + 0.678 =\t90e-1;\n\n  def f(x):\n    return 'it''s' # naïve café, Привет, 你好, 🦙\n"


class Converted(NamedTuple):
    """What a GGUF file says of itself: its licence, and what its weights were dequantized from."""

    licence: Licence
    quantized: Quantization | None


def convert_gguf(parts: Sequence[Path], directory: Path, scratch: Path) -> Converted:
    """Write the model of a GGUF file into `directory`: float32 safetensors, configuration and tokenizer.

    parts     the file, or its parts in order, which are joined in `scratch` first

    Raises `InputError` where transformers cannot read the file, or would split
    text into other tokens than the file says (key `tokenizer.ggml.pre`).
    """
    gguf = parts[0]
    if len(parts) > 1:
        gguf = scratch / "joined.gguf"
        join_gguf(parts, gguf)
    kind, pre, converted = _read(gguf)
    try:
        with _alone(gguf) as (folder, name):
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
            _set_pre_tokenizer(tokenizer.backend_tokenizer, kind, pre)
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, local_files_only=True, dtype=torch.float32
            )
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise InputError(f"{gguf.name}: expected a GGUF file that transformers can read, found {error}") from error
    _save(model, directory)
    tokenizer.init_kwargs.pop("local_files_only", None)  # how it was read, not what it is
    tokenizer.save_pretrained(directory)
    _check_weights(model, directory)
    _check_tokenizer(tokenizer, directory)
    return converted


@contextmanager
def _alone(gguf: Path) -> Iterator[tuple[str, str]]:
    """A directory that has the file alone, and its name: transformers would read a tokenizer's files beside it too."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(gguf.resolve())
        yield folder, "model.gguf"


def _read(gguf: Path) -> tuple[str, str | None, Converted]:
    """Kind and splitting rule of the tokenizer, and what else the file says."""
    keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "general.license", "general.license.link")
    try:
        reader = GGUFReader(gguf)
        values = [reader.fields[key].contents() if key in reader.fields else None for key in keys]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{gguf.name}: expected a whole GGUF file, found {type(error).__name__}: {error}") from error
    kind, pre, licence, link = values
    if kind is None:
        raise InputError(f"{gguf.name}: expected a tokenizer, found no key tokenizer.ggml.model")
    types = [tensor.tensor_type.name for tensor in reader.tensors if tensor.tensor_type not in _PLAIN]
    weights = [(int(re.sub(r"\D*(\d).*", r"\1", name)), f"{name} block") for name in types]
    quantized = Quantization.of_weights("gguf", weights) if weights else None
    return kind, pre, Converted(Licence(licence, link), quantized)


def _set_pre_tokenizer(tokenizer: Any, kind: str, pre: str | None) -> None:
    """Make `tokenizer` split text as the file says, or refuse to.

    transformers knows some values of the key and falls back on plain byte level for all others, without a word. Only
    byte-level vocabularies (kind `gpt2`) have the key in earnest.
    """
    if kind != "gpt2" or pre in _BYTE_LEVEL or not isinstance(tokenizer.pre_tokenizer, ByteLevel):
        return
    if pre != "smollm":
        raise InputError(
            f"tokenizer.ggml.pre: found {pre!r}, whose way to split text is unknown here and to transformers; "
            "expected a model with a tokenizer.json instead"
        )
    tokenizer.pre_tokenizer = _digits_then_bytes()


def _digits_then_bytes() -> PreTokenizer:
    return pre_tokenizers.Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])


def _save(model: PreTrainedModel, directory: Path) -> None:
    """Save the weights as an ordinary model: transformers does not save one that is marked as quantized."""
    values = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        values.pop(key, None)
    with torch.device("meta"):
        plain = type(model)(type(model.config)(**values))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(directory, max_shard_size="1TB")
    shutil.copymode(directory / "config.json", directory / "model.safetensors")  # else only its owner may read it


def _check_weights(model: PreTrainedModel, directory: Path) -> None:
    saved = type(model).from_pretrained(directory, local_files_only=True, dtype=torch.float32).state_dict()
    loaded = model.state_dict()
    different = [name for name in loaded if name not in saved or not torch.equal(saved[name], loaded[name])]
    if different or saved.keys() != loaded.keys():
        raise RuntimeError(f"{directory}: the saved weights differ from those loaded, first in {different[:3]}")


def _check_tokenizer(tokenizer: Any, directory: Path) -> None:
    saved = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    expected = tokenizer(_SAMPLE)["input_ids"]
    found = saved(_SAMPLE)["input_ids"]
    if found != expected or str(saved.decode(found, skip_special_tokens=True)).strip() != _SAMPLE.strip():
        raise RuntimeError(f"{directory}: the saved tokenizer makes {found[:20]} of a text, expected {expected[:20]}")
