"""Streamed safetensors files against the library's own reader, and damaged ones."""

import json
import os
import resource
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile, TensorFileWriter, write_tensors


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


def test_the_space_of_a_file_is_taken_before_the_first_row(tmp_path):
    with TensorFileWriter(tmp_path / "a.safetensors", {"x": ("F32", (1 << 20,))}, {}) as writer:
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.stat().st_size > 4 << 20
        assert unfinished.stat().st_blocks * 512 >= unfinished.stat().st_size
        writer.write("x", 0, np.ones(1 << 20, np.float32))
    assert (TensorFile(tmp_path / "a.safetensors").array("x") == 1).all()


def test_a_disk_that_is_too_small_is_told_at_once_with_both_sizes(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    wanted = 4 * free  # in values of 4 bytes
    with (
        pytest.raises(OSError, match=rf"needs \d[\d,]+ bytes, and \d[\d,]+ are free.*{tmp_path}/a.safetensors"),
        TensorFileWriter(tmp_path / "a.safetensors", {"x": ("F32", (wanted,))}, {}),
    ):
        pytest.fail("the block began")
    assert list(tmp_path.iterdir()) == []


def test_so_is_a_limit_on_the_size_of_a_file(tmp_path):
    code = (
        "from outlier_features.files.tensorfile import TensorFileWriter\n"
        "with TensorFileWriter('a.safetensors', {'x': ('F32', (1 << 16,))}, {}):\n    print('began')"
    )
    limit = (1 << 17, 1 << 17)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert run.returncode == 1 and "too large: it needs" in run.stderr and "began" not in run.stdout
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
    header["a"]["dtype"] = 9 if how == "no dtype" else header["a"]["dtype"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[-4 * 64 * 64 :]


@pytest.mark.parametrize(
    "how", ["cut in half", "empty", "shorter than its header", "not safetensors", "wrong shape", "no dtype"]
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


def file_of(path, tensors, size=8):
    """A safetensors file with `size` bytes of zeros for each of the tensors, of dtype and shape."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [size * i, size * (i + 1)]}
        for i, (name, (dtype, shape)) in enumerate(tensors.items())
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size * len(tensors)))


# Every dtype that the format has, with a shape that fills 24 bytes.
FORMAT = {
    "BOOL": [24], "F4": [6, 8], "F6_E2M3": [32], "F6_E3M2": [4, 8], "U8": [24], "I8": [24], "F8_E5M2": [24],
    "F8_E4M3": [24], "F8_E8M0": [24], "F8_E4M3FNUZ": [24], "F8_E5M2FNUZ": [24], "I16": [12], "U16": [12],
    "F16": [12], "BF16": [12], "I32": [6], "U32": [6], "F32": [6], "C64": [3], "F64": [3], "I64": [3], "U64": [3],
}  # fmt: skip


def test_every_dtype_of_the_format_is_read_from_a_header(tmp_path):
    """And the library, which knows the same ones, finds these files whole."""
    path = tmp_path / "x.safetensors"
    file_of(path, {name: (name, shape) for name, shape in FORMAT.items()}, 24)
    entries = TensorFile(path).entries
    with safe_open(path, "np") as file:
        for name, shape in FORMAT.items():
            assert file.get_slice(name).get_dtype() == name and file.get_slice(name).get_shape() == shape
            assert (entries[name].dtype, entries[name].shape, entries[name].nbytes) == (name, tuple(shape), 24)


@pytest.mark.parametrize("dtype", [dtype for dtype in FORMAT if dtype not in ("U8", "I8", "BOOL")])
def test_a_shape_that_does_not_fill_its_bytes_is_refused_for_each_dtype(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    *first, last = FORMAT[dtype]
    file_of(path, {"a": (dtype, [*first, last + 1])}, 24)
    with pytest.raises(InputError, match=f"'a' of {dtype} and shape"):
        TensorFile(path)


@pytest.mark.parametrize("dtype", ["Q9", "F4", "F6_E3M2"])
def test_a_tensor_whose_values_cannot_be_had_does_not_cost_the_others(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    file_of(path, {"a": ("F32", [6]), "b": (dtype, FORMAT.get(dtype, [7])), "c": ("C64", [3])}, 24)
    file = TensorFile(path)
    assert file.array("a").dtype == np.float32 and file.array("c").dtype == np.complex64
    with pytest.raises(InputError, match=rf"x\.safetensors: b is {dtype}, expected one of C64, F64, F32"):
        file.array("b")


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


def write_rows(path, rows, arrays):
    shapes = {name: ("F32", array.shape) for name, array in arrays.items()}
    with TensorFileWriter(path, shapes, {"who": "me"}) as writer:
        for name, array in arrays.items():
            for row in rows:
                writer.write(name, row, array[row : row + 1])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 1, 3, 2]])
def test_checksums_are_those_of_the_bytes_whatever_the_order_of_rows(tmp_path, rows):
    path = tmp_path / "x.safetensors"
    arrays = {name: np.random.default_rng(0).normal(size=(4, 300, 1001)).astype(np.float32) for name in ("a", "b.1")}
    write_rows(path, rows, arrays)
    with safe_open(path, "np") as file:
        recorded = file.metadata()["crc32"].split()
    assert recorded == [f"{zlib.crc32(array.tobytes()):08x}" for array in arrays.values()]
    done = []
    assert TensorFile(path).damaged_tensors(done.append) == [] and sum(done) == 2 * arrays["a"].nbytes


def test_a_flipped_bit_in_the_data_is_found_on_request(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.zeros((2, 3)), "none": np.zeros((0, 3)), "b": np.ones(5000, np.uint8)}, {})
    entry = TensorFile(path).entry("b")
    whole = path.read_bytes()
    for place in (entry.offset, entry.offset + 2000, entry.offset + 4999):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert TensorFile(path).damaged_tensors() == ["b"]
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="names 0 checksums for 1 tensors"):
        TensorFile(path).damaged_tensors()


def test_no_damage_to_a_header_goes_unseen(tmp_path):
    """A bit flipped in a header can leave one that is whole, such as one that names another layer."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {f"attn_norm.{i}": np.zeros(3, np.float32) for i in range(3)}, {"start": 0, "stop": 3})
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    written = whole.index(b"  ")  # the rest is blank
    for place in (*range(written), written + 5, length - 1):
        for bit in (1, 16):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(InputError, match=r"x\.safetensors"):
                _ = TensorFile(path).provenance


def test_provenance_that_lacks_what_is_asked_for_names_the_file(tmp_path):
    write_tensors(tmp_path / "x", {"a": np.zeros(3)}, {"start": 0})
    assert TensorFile(tmp_path / "x").provenance == {"start": 0}
    with pytest.raises(InputError, match="x: its provenance names no stop"):
        TensorFile(tmp_path / "x").provenance["stop"]
    save_file({"a": torch.zeros(3)}, tmp_path / "y")
    with pytest.raises(InputError, match="y: its metadata has no checksum"):
        _ = TensorFile(tmp_path / "y").provenance


BEYOND_THE_ADDRESS_SPACE = """
import resource, sys
from outlier_features.files.tensorfile import TensorFile
from outlier_features.norms.gains_in_file import stored_floats
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
file = TensorFile(sys.argv[1])
print(stored_floats(file, "gain").tolist())
try:
    file.array("weight")
except MemoryError:
    print("no room")
"""


def test_a_small_tensor_is_read_from_a_file_larger_than_the_address_space(tmp_path):
    path, size = tmp_path / "large.safetensors", 1 << 34
    weight = {"dtype": "F32", "shape": [size // 4], "data_offsets": [8, 8 + size]}
    header = json.dumps({"gain": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "weight": weight}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + np.array([0.5, 3], "<f4").tobytes())
        file.truncate(file.tell() + size)
    command = [sys.executable, "-c", BEYOND_THE_ADDRESS_SPACE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[0.5, 3.0]", "no room"], done.stderr
