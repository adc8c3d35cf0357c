import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zoo import weights
from zoo.errors import UserError

SIX = np.arange(6, dtype="<f4").tobytes()
GUIDE = Path(__file__).resolve().parents[1] / "docs" / "score.md"


def refused(path, said=""):
    with pytest.raises(UserError) as error:
        weights.read(path)
    line = str(error.value)
    assert said in line and str(path) in line and "\n" not in line and len(line) < 600


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, data):
    path = tmp_path / "weights"
    path.write_bytes(data)
    refused(path, "not a whole safetensors file")


def test_missing_files_and_folders_are_refused(tmp_path):
    refused(tmp_path / "none.safetensors", "No such file")
    refused(tmp_path, "Is a directory")


def test_a_file_of_torch_is_named_as_such(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    refused(path, "docs/score.md")
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")  # before torch 1.6
    refused(path, "docs/score.md")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_is_converted_as_the_guide_shows(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch")
    (code,) = re.findall(r"^```python\n(import torch.*?)^```", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)
    (source,), (target,) = re.findall(r'load\("(.*?)"', code), re.findall(r'"(\S+\.safetensors)"', code)
    row = torch.arange(24.0)
    state = {
        "transposed": row.view(4, 6).T,
        "sliced": row.view(4, 6)[1:3, ::2],
        "parameter": torch.nn.Parameter(row[:2]),
        "bfloat16": torch.randn(5).bfloat16(),
        "int64": torch.arange(-3, 3) * 10**12,
        "empty": torch.zeros(0, 3),
    }
    monkeypatch.chdir(tmp_path)
    torch.save(state, source, _use_new_zipfile_serialization=zipped)
    exec(code, {})
    read = weights.read(target)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)


def test_a_safetensors_file_whose_header_is_as_long_as_a_pickle_begins(tmp_path):
    """Its first byte, of the header's length, is that of torch's older files."""
    path, name = tmp_path / "weights", "f"
    while len(whole := safetensors_bytes({name: ("F32", [2, 3], SIX)})) and whole[0] != 0x80:
        name += "f"
    path.write_bytes(whole)
    assert list(weights.read(path)) == [name]


def safetensors_bytes(tensors):
    """{name: (type, shape, bytes)} -> a file, by the format's description."""
    header, data = {}, b""
    for name, (kind, shape, part) in tensors.items():
        header[name] = dict(dtype=kind, shape=shape, data_offsets=[len(data), len(data) + len(part)])
        data += part
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_are_read_and_bfloat16_becomes_float32(tmp_path):
    path = tmp_path / "weights"
    halves = np.array([1.0, -2.5, 3.0e38, 0.0], "<f4").view("<u4") >> 16
    tensors = {
        "b": ("BF16", [2, 2], halves.astype("<u2").tobytes()),
        "f": ("F32", [2, 3], SIX),
        "i": ("I64", [], struct.pack("<q", -5)),
        "e": ("F16", [0, 4], b""),
        "t": ("BOOL", [2], b"\x00\x01"),
    }
    path.write_bytes(safetensors_bytes(tensors))
    read = weights.read(path)
    assert {name: array.dtype.name for name, array in read.items()} == {
        "b": "float32",
        "f": "float32",
        "i": "int64",
        "e": "float16",
        "t": "bool",
    }
    np.testing.assert_array_equal(read["b"], (halves << 16).astype("<u4").view("<f4").reshape(2, 2))
    np.testing.assert_array_equal(read["f"], [[0, 1, 2], [3, 4, 5]])
    assert read["i"] == -5 and read["e"].shape == (0, 4) and read["t"].tolist() == [False, True]


def test_damaged_safetensors_are_refused(tmp_path):
    path, whole = tmp_path / "w", safetensors_bytes({"f": ("F32", [2, 3], SIX)})
    path.write_bytes(whole)
    assert list(weights.read(path)) == ["f"]
    for length in range(9, len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "not a whole safetensors file")
    for tensors in (
        {"f": ("F32", [2, 4], SIX)},
        {"f": ("F32", [2**40, 2**40], SIX)},
        {"f\n": ("F99", [2, 3], SIX)},
    ):
        path.write_bytes(safetensors_bytes(tensors))
        refused(path, "not a whole safetensors file")
    path.write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    refused(path, "not a whole safetensors file")


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(safetensors_bytes({"f": ("F8_E4M3", [6], bytes(6))}))
    refused(path, "tensor 'f' is of type F8_E4M3")


def test_what_a_network_lacks_is_named_and_what_it_has_beside_does_not_matter():
    found = {"a": np.zeros((2, 3)), "b": np.zeros(()), "beside": np.zeros(5)}
    weights.check_shapes({"a": (2, 3), "b": ()}, found, "w.pth")
    wanted = {"a": (3, 2), "b": (1,), **{f"c{i}": (1,) for i in range(5)}}
    with pytest.raises(UserError) as error:
        weights.check_shapes(wanted, found, "w.pth")
    assert str(error.value) == (
        "w.pth holds other weights: of 7 tensors, 5 missing: c0, c1, c2, ...; 2 of another shape: "
        "a (expected (3, 2), found (2, 3)), b (expected (1,), found ())"
    )
