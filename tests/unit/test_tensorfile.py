"""Streamed safetensors files against the library's own reader, and damaged ones."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from outlier_features.errors import InputError
from outlier_features.tensorfile import TensorFile, TensorFileWriter, write_tensors


def test_pieces_in_any_order_make_the_file_that_the_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    expected = {"a.0": torch.randn(5, 3, 4), "b": torch.randn(4, 2).bfloat16(), "c": torch.randn(3, 2).half()}
    bits = {"a.0": expected["a.0"].numpy(), "b": expected["b"].view(torch.uint16).numpy(), "c": expected["c"].numpy()}
    shapes = {"a.0": ("F32", (5, 3, 4)), "b": ("BF16", (4, 2)), "c": ("F16", (3, 2))}
    with TensorFileWriter(path, shapes, {"who": "me"}) as writer:
        for name in ("c", "a.0", "b"):
            half = len(bits[name]) // 2
            writer.write(name, half, bits[name][half:])
            writer.write(name, 0, bits[name][:half])
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, expected[name])
    assert TensorFile(path).provenance == {"who": "me"}
    np.testing.assert_array_equal(TensorFile(path).array("a.0"), bits["a.0"])


def test_an_unfinished_file_never_bears_the_name(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="never written"), TensorFileWriter(path, {"a": ("F32", (4, 2))}, {}) as writer:
        writer.write("a", 0, np.zeros((3, 2), np.float32))
    with pytest.raises(KeyboardInterrupt), TensorFileWriter(path, {"a": ("F32", (1, 2))}, {}) as writer:
        writer.write("a", 0, np.zeros((1, 2), np.float32))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("shape", "dtype"), [((2, 3), np.float32), ((2, 2), np.float64), ((5, 2), np.float32)])
def test_pieces_that_do_not_fit_are_refused(tmp_path, shape, dtype):
    tensors = {"a": ("F32", (4, 2))}
    with pytest.raises(ValueError, match="do not fit"), TensorFileWriter(tmp_path / "x", tensors, {}) as writer:
        writer.write("a", 0, np.zeros(shape, dtype))


def damaged(path, how):
    save_file({"a": torch.zeros(64, 64)}, path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if how == "cut in half":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "shorter than its header":
        return data[:20]
    if how == "not safetensors":
        return b"PAR1" * 100
    header["a"]["shape"] = [64, 65] if how == "wrong shape" else header["a"]["shape"]
    header["a"]["dtype"] = "Q9" if how == "unknown dtype" else header["a"]["dtype"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[-4 * 64 * 64 :]


@pytest.mark.parametrize(
    "how", ["cut in half", "empty", "shorter than its header", "not safetensors", "wrong shape", "unknown dtype"]
)
def test_damaged_files_are_refused_by_name(tmp_path, how):
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged(path, how))
    with pytest.raises(InputError, match=r"x\.safetensors: expected a whole safetensors file, found"):
        TensorFile(path)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"a": [-16, 0], "b": [0, 16]}, "'a' begins at byte -16"),
        ({"a": [0, 16], "b": [8, 24]}, "'b' begins at byte 8 of the data, where 16 bytes are taken"),
        ({"a": [0, 16], "b": [20, 36]}, "'b' begins at byte 20 of the data, where 16 bytes are taken"),
        ({"a": [16, 32], "b": [32, 48]}, "'a' begins at byte 16 of the data, where 0 bytes are taken"),
        ({"a": [0, 16]}, "its tensors end at byte"),
    ],
)
def test_bytes_of_no_tensor_or_of_two_are_refused(tmp_path, spans, message):
    """As the safetensors library does: a number would be taken from bytes that nobody wrote there."""
    path = tmp_path / "x.safetensors"
    header = {name: {"dtype": "F32", "shape": [4], "data_offsets": span} for name, span in spans.items()}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(max(32, max(map(max, spans.values())))))
    with pytest.raises(InputError, match=message):
        TensorFile(path)
    with pytest.raises(Exception, match="Error while deserializing header"):
        load_file(path)


def test_a_header_nested_beyond_reason_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        TensorFile(path)


def test_a_missing_file_and_a_missing_tensor(tmp_path):
    with pytest.raises(InputError, match="none"):
        TensorFile(tmp_path / "none")
    write_tensors(tmp_path / "x", {"a": np.zeros(3)}, {})
    with pytest.raises(InputError, match="has no tensor 'b'"):
        TensorFile(tmp_path / "x").array("b")
