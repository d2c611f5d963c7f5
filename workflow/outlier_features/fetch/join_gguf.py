"""A GGUF file that llama.cpp split into whole GGUF files, as one again: transformers reads no split ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from outlier_features.errors import InputError
from outlier_features.progress import item_bar

_ALIGNMENT, _ARCHITECTURE = "general.alignment", "general.architecture"
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def join_gguf(parts: Sequence[Path], joined: Path) -> None:
    """Write the file `joined` from all its parts, in order: the keys of the first, and the tensors of each.

    Raises `InputError` where one is no whole GGUF file, not the part that its name says, or a tensor is missing.
    """
    readers = [_reader(part) for part in parts]
    for number, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        found = _value(reader, _NUMBER), _value(reader, _COUNT)
        if found != (number, len(parts)):
            raise InputError(
                f"{part.name}: expected {_NUMBER} {number} and {_COUNT} {len(parts)}, found {found[0]} and {found[1]}"
            )
    tensors = [(reader, tensor) for reader in readers for tensor in reader.tensors]
    if (count := _value(readers[0], _TENSORS)) not in (None, len(tensors)):
        raise InputError(f"{parts[0].name}: expected {count} tensors in its {len(parts)} parts, found {len(tensors)}")
    writer = GGUFWriter(joined, str(_value(readers[0], _ARCHITECTURE)), endianess=readers[0].endianess)
    for field in readers[0].fields.values():
        if field.name == _ALIGNMENT:
            writer.add_custom_alignment(field.contents())
        elif field.name != _ARCHITECTURE and not field.name.startswith(("GGUF.", "split.")):
            of_items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of_items)
    for _, tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for reader, tensor in item_bar(tensors, "join parts", "tensor"):
        writer.write_tensor_data(tensor.data, tensor_endianess=reader.endianess)
    writer.close()


def _reader(part: Path) -> Any:
    try:
        return GGUFReader(part)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{part.name}: expected a whole GGUF file, found {type(error).__name__}: {error}") from error


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents() if key in reader.fields else None
