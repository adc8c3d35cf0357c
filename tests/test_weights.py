import collections
import dataclasses
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import weights
from zoo.errors import UserError

FIXTURES = Path(__file__).with_name("fixtures") / "inception"  # made by torch, see make_inception_fixture.py
TRUTH = np.load(FIXTURES / "tensors.npz")
REAL = ("zip.pth", "legacy.pth")
SIX = np.arange(6, dtype="<f4").tobytes()


# ---- torch files as an attacker would write them, instruction by instruction


@dataclasses.dataclass(frozen=True)
class Named:
    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    function: Any
    arguments: Any


@dataclasses.dataclass(frozen=True)
class Persistent:
    description: Any


def code(value):
    """The instructions that put a value on the stack of a pickle of protocol 2; bytes are instructions already."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(digits)]) + digits
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(code(key) + code(item) for key, item in value.items()) + b"u"
        case Named(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return code(function) + code(arguments) + b"R"
        case Persistent(description):
            return code(description) + b"Q"


def pickled(value):
    return b"\x80\x02" + code(value) + b"."


ORDERED = Named("collections", "OrderedDict")
REBUILD = Named("torch._utils", "_rebuild_tensor_v2")


def storage(kind="FloatStorage", count=6, key="0", module="torch"):
    return Persistent(("storage", Named(module, kind), key, "cpu", count))


def tensor(shape=(2, 3), strides=(3, 1), offset=0, of=None):
    return Call(REBUILD, (of or storage(), offset, shape, strides, False, Call(ORDERED, ())))


def write_zip(path, program, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in contents.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_legacy(path, program, contents, size=4, counts=None, keys=None, little_endian=True):
    """Numbers of `size` bytes; `counts` and `keys` lie about the storages."""
    head = pickled(weights.MAGIC) + pickled(1001) + pickled({"little_endian": little_endian}) + program
    counts = counts or {key: len(data) // size for key, data in contents.items()}
    rows = b"".join(struct.pack("<q", counts[key]) + data for key, data in contents.items())
    path.write_bytes(head + pickled(list(contents) if keys is None else keys) + rows)
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


def refused(path, said="", read=weights.read):
    with pytest.raises(UserError) as error:
        read(path)
    line = str(error.value)
    assert said in line and str(path) in line and "\n" not in line and len(line) < 600
    return line


# ---- what torch wrote


@pytest.mark.parametrize("name", REAL)
def test_what_torch_saved_is_read_bit_for_bit(name):
    read = weights.read_torch(FIXTURES / name)
    assert list(read) == list(TRUTH)
    for key, array in read.items():
        assert (array.dtype, array.shape) == (TRUTH[key].dtype, TRUTH[key].shape)
        assert array.tobytes() == TRUTH[key].tobytes(), key


@pytest.mark.parametrize("name", REAL)
def test_tensors_that_share_their_numbers_share_them_and_cannot_be_written_to(name):
    read = weights.read_torch(FIXTURES / name)
    assert np.shares_memory(read["transposed"], read["sliced"])
    with pytest.raises(ValueError):
        read["transposed"][0, 0] = 1


@WRITERS
def test_the_writer_of_these_tests_writes_what_torch_would(tmp_path, write):
    """So that the refusals below are for what they say."""
    state = {"weight": tensor(), "column": tensor((2,), (3,), 1), "gpu": tensor(of=storage(module="torch.cuda"))}
    read = weights.read(write(tmp_path / "w", pickled(state), {"0": SIX}))
    assert {name: array.tolist() for name, array in read.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "column": [1, 4],
        "gpu": [[0, 1, 2], [3, 4, 5]],
    }


@WRITERS
def test_an_ordered_dict_of_python_2_is_read(tmp_path, write):
    state = Call(ORDERED, ([["b", tensor()], ["a", tensor((), (), 4)]],))
    read = weights.read(write(tmp_path / "w", pickled(state), {"0": SIX}))
    assert list(read) == ["b", "a"] and read["a"] == 4


@pytest.mark.parametrize("name", REAL)
def test_the_contents_decide_what_a_file_is(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes((FIXTURES / name).read_bytes())
    assert list(weights.read(path)) == list(TRUTH)


# ---- code


class Evil:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("write", [write_zip, write_legacy, lambda path, program, _: path.write_bytes(program)])
def test_code_is_named_and_not_run(tmp_path, write, protocol):
    made, path = tmp_path / "made", tmp_path / "w"
    program = pickle.dumps(collections.OrderedDict(weight=Evil(made)), protocol)
    pickle.loads(program)
    assert made.exists()  # so it works where it is let
    made.unlink()
    write(path, program, {})
    refused(path, f"'{os.system.__module__}.system'")
    assert not made.exists()


@WRITERS
@pytest.mark.parametrize(
    "value",
    [
        Named("builtins", "eval"),
        Named("torch", "load"),
        Named("torch._utils", "_rebuild_tensor_v2.__globals__"),
        Named("torch.hub", "FloatStorage"),
        Named("collections", "namedtuple"),
    ],
)
def test_only_what_a_state_dict_needs_has_a_name(tmp_path, write, value):
    for state in ({"weight": value}, {"weight": Call(REBUILD, (Call(value, ("1",)), 0, (), ()))}):
        path = write(tmp_path / "w", pickled(state), {"0": SIX})
        refused(path, f"wants to run '{value.module}.{value.name}'")


@pytest.mark.parametrize("instruction", [b"\x81", b"\x82\x01", b"i", b"\x96" + bytes(8), b"\x8f", b"P0\n"])
def test_instructions_that_torch_does_not_use_are_not_known(tmp_path, instruction):
    program = b"\x80\x02" + code(ORDERED) + code(()) + (instruction + b"os\nsystem\n" * (instruction == b"i")) + b"."
    refused(write_zip(tmp_path / "w", program, {}), "instruction")


# ---- lies


DEEP = 200_000


LIES = {
    "beyond": tensor((2, 4), (3, 1)),
    "beyond by its offset": tensor(offset=1),
    "beyond by its strides": tensor(strides=(4, 1)),
    "offset far": tensor((1,), (1,), 2**47),
    "negative offset": tensor(offset=-1),
    "negative stride": tensor(strides=(-3, 1), offset=3),
    "negative size": tensor((-2, -3)),
    "strides that overflow 64 bits together": tensor((2, 2, 2), (2**60, 2**60, 2**61)),
    "strides that overflow in bytes": tensor((2, 2), (2**62, 2**62)),
    "size that overflows": tensor((2**40, 2**40), (0, 0)),
    "a number repeated": tensor((1000, 1000), (0, 0)),
    "empty and huge": tensor((0, 2**47, 2**47), (1, 1, 1)),
    "fewer strides": tensor((2, 3), (3,)),
    "many axes": tensor((1,) * 100, (1,) * 100),
    "sizes of another type": tensor(("2", 3)),
    "sizes in a list": tensor([2, 3]),
    "a storage longer than the file": tensor(of=storage(count=2**40)),
    "a storage longer than its bytes": tensor(of=storage(count=7)),
    "a storage of negative length": tensor(of=storage(count=-1)),
    "a storage that is not there": tensor(of=storage(key="1")),
    "a storage out of the archive": tensor(of=storage(key="../data.pkl")),
    "a storage of wider numbers": tensor(of=storage("DoubleStorage")),
    "a storage of two types": Call(ORDERED, ([["a", tensor()], ["b", tensor(of=storage("IntStorage"))]],)),
    "a function for a storage": tensor(of=Persistent(("storage", REBUILD, "0", "cpu", 6))),
    "no storage": tensor(of=("storage", "FloatStorage", "0", "cpu", 6)),
    "a module": Persistent(("module", "Net", "net.py", "import os")),
    "no arguments": Call(REBUILD, ()),
    "a call of a text": Call("collections.OrderedDict", ()),
    "a call of a tensor": Call(tensor(), ()),
    "a parameter of nothing": Call(Named("torch._utils", "_rebuild_parameter"), (None, False, None)),
    "a key that is a tensor": {tensor(): tensor()},
    "a key that crashes the interpreter": b"})" + b"\x85" * DEEP + b"K\x01s",
    "nested tuples": b")" + b"\x85" * DEEP,
    "nested lists": b"]" + b"]" * DEEP + b"a" * DEEP,
    "nested dicts": b"}K\x01" * DEEP + b"}" + b"s" * DEEP,
    "a far place in the memo": b"Nr\xff\xff\xff\xff",
    "an empty memo": b"h\x05",
    "an empty stack": b"R",
    "no mark": b"t",
    "a long text": b"X\xff\xff\xff\xffabc",
    "a text that is none": b"X\x02\x00\x00\x00\xff\xff",
    "a list used as a dict": b"]K\x01K\x01s",
    "odd items": b"}(K\x01u",
    "an unknown instruction": b"\xff",
    "an end": b"",
}


@WRITERS
@pytest.mark.parametrize("lie", LIES)
def test_no_lie_crashes_or_takes_memory(tmp_path, write, lie):
    state = LIES[lie]
    program = pickled(state if isinstance(state, bytes) else {"weight": state})
    path = write(tmp_path / "w", program, {"0": SIX})
    assert len(program) > DEEP or peak_of(lambda: refused(path)) < 2**20
    refused(path)


def peak_of(function):
    """Bytes of memory that a call has at most; tracing is slow."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@WRITERS
def test_a_pickle_is_not_read_without_end(tmp_path, write, monkeypatch):
    path = write(tmp_path / "w", pickled({"weight": tensor()}), {"0": SIX})
    weights.read(path)
    monkeypatch.setattr(weights, "LONGEST_PICKLE", 100)
    refused(path, "more than 100 bytes")


def test_a_list_is_not_copied_again_and_again(tmp_path):
    """Each of the instructions that makes a dict of a list is four bytes; the list is as long as one likes."""
    items = b"](" + b"".join(code((str(i), i)) for i in range(2000)) + b"e"
    program = b"\x80\x02" + items + b"q\x00" + (code(ORDERED) + b"h\x00\x85R") * 2000 + b"."
    path = write_zip(tmp_path / "w", program, {})
    assert peak_of(lambda: weights.read(path)) < 2**24


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(counts={"0": 2**60}), "ends within storage '0'"),
        (dict(counts={"0": -1}), "ends within storage '0'"),
        (dict(counts={"0": 5}), "has 5 numbers, not 6"),
        (dict(keys=["0", "0", "0"]), "damaged"),
        (dict(keys=["5"]), "damaged"),
        (dict(keys=[]), "damaged"),
        (dict(keys=7), "damaged"),
        (dict(keys=[b")" + b"\x85" * DEEP]), "damaged"),
        (dict(little_endian=False), "big-endian"),
    ],
)
def test_lies_of_the_older_format(tmp_path, options, said):
    refused(write_legacy(tmp_path / "w", pickled({"weight": tensor()}), {"0": SIX}, **options), said)


def test_an_archive_is_not_unpacked(tmp_path):
    """100 MB of zeros take 100 kB compressed. torch does not compress."""
    contents = {"0": bytes(10**8)}
    state = pickled({"weight": tensor((1,), (1,), of=storage(count=25 * 10**6))})
    path = write_zip(tmp_path / "w", state, contents, zipfile.ZIP_DEFLATED)
    del contents
    assert peak_of(lambda: refused(path, "is compressed")) < 2**22


def test_an_entry_cannot_be_longer_than_the_archive(tmp_path):
    path = tmp_path / "w"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"weight": tensor(of=storage(count=2**29))}))
        archive.writestr("archive/data/0", SIX)
        entry = archive.getinfo("archive/data/0")
        entry.file_size = entry.compress_size = 2**31
    refused(path, "longer than the file")


def test_bytes_of_an_archive_are_read_once(tmp_path):
    """Twenty entries that each claim the same half megabyte, with the right checksums, would be ten."""
    path, keys, claimed = tmp_path / "w", [str(i) for i in range(20)], 500_000
    state = {key: tensor((1,), (1,), of=storage("ByteStorage", claimed, key)) for key in keys}
    write_zip(path, pickled(state), {key: b"" for key in keys} | {"pad": bytes(2 * claimed)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
    while data[at : at + 4] == b"PK\x01\x02":  # the entries of the directory
        lengths, (local,) = struct.unpack_from("<HHH", data, at + 28), struct.unpack_from("<I", data, at + 42)
        start = local + 30 + sum(struct.unpack_from("<HH", data, local + 26))
        if struct.unpack_from("<I", data, at + 24) == (0,):
            struct.pack_into("<III", data, at + 16, zlib.crc32(data[start : start + claimed]), claimed, claimed)
        at += 46 + sum(lengths)
    path.write_bytes(data)
    assert peak_of(lambda: refused(path)) < 4 * claimed


@pytest.mark.parametrize("name", REAL)
def test_a_part_of_a_file_is_damaged(tmp_path, name):
    whole = (FIXTURES / name).read_bytes()
    path = tmp_path / "w"
    for length in [*range(4, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, read=weights.read_torch)


@pytest.mark.parametrize("name", REAL)
def test_whatever_is_changed_gives_arrays_or_one_line(tmp_path, name):
    whole = (FIXTURES / name).read_bytes()
    path, random, lines = tmp_path / "w", np.random.RandomState(0), 0
    for _ in range(400):
        data = bytearray(whole)
        for place in random.randint(0, len(data), random.randint(1, 4)):
            data[place] = random.randint(256)
        path.write_bytes(data)
        try:
            for array in weights.read(path).values():
                array.tobytes()  # reads every number: a wrong bound would crash here
        except UserError as error:
            assert "\n" not in str(error)
            lines += 1
    assert lines


# ---- other files


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"epoch": 3, "state_dict": {"weight": tensor()}}, "its entry 'epoch' is of type int, not a tensor"),
        ({"model": {"weight": tensor()}}, "its entry 'model' is of type dict, not a tensor"),
        ({1: tensor()}, "its entry 1"),
        (tensor(), "it is of type Tensor, not tensors by name"),
        ([tensor()], "it is of type list, not tensors by name"),
    ],
)
@WRITERS
def test_other_things_than_a_state_dict_are_refused(tmp_path, write, state, said):
    refused(write(tmp_path / "w", pickled(state), {"0": SIX}), said)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"readme.txt": b"hello"}, "not of torch"),
        ({"a/data.pkl": pickled({}), "b/data.pkl": pickled({})}, "not of torch"),
        ({"a/data.pkl": pickled({}), "a/constants.pkl": pickled(())}, "TorchScript"),
        ({"a/data.pkl": pickled({}), "a/byteorder": b"big"}, "big-endian"),
    ],
)
def test_other_archives_are_refused(tmp_path, entries, said):
    path = tmp_path / "w"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    refused(path, said)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_file_that_holds_no_weights_says_how_it_begins(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    refused(path, repr(data[:16]))


@pytest.mark.parametrize("read", [weights.read, weights.read_torch, weights.read_safetensors])
def test_missing_files_and_folders_are_refused(tmp_path, read):
    refused(tmp_path / "none.pth", "No such file", read)
    refused(tmp_path, "Is a directory", read)


# ---- safetensors


def safetensors_bytes(tensors):
    """{name: (type, shape, bytes)} -> a file, by the format's description."""
    header, data = {}, b""
    for name, (kind, shape, part) in tensors.items():
        header[name] = dict(dtype=kind, shape=shape, data_offsets=[len(data), len(data) + len(part)])
        data += part
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_are_read_and_bfloat16_becomes_float32(tmp_path):
    path = tmp_path / "weights.bin"
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


# ---- shapes


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
