"""Reads files of weights: safetensors, and what torch.save writes, with no torch.

A torch file holds pickles, and a pickle is a program. The one here is run by a machine that has no way to call
anything: it knows the few instructions that a state dict is written in, and makes dicts, tuples and descriptions of
tensors. `pickle.Unpickler` with a strict `find_class` is not enough: nested tuples as a key crash the interpreter,
and it allocates what the file claims to hold. Whatever a file claims is compared with what it has before it is used.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors

from zoo.errors import UserError

# Types of numbers by the names that safetensors gives them, as they lie in the file.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
DTYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
KINDS = {"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Bool": "BOOL"}
KINDS |= {"Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8"}
STORAGES = {f"{module}.{kind}Storage": dtype for kind, dtype in KINDS.items() for module in ("torch", "torch.cuda")}
FUNCTIONS = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch before 1.6
LONGEST_PICKLE = 2**23  # bytes; a tensor takes some 200
DAMAGE = (  # what damaged files raise here, in zipfile and in pickletools
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    OSError,
    EOFError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)


class Storage(NamedTuple):
    """Numbers of one type that lie in a row in the file; tensors are views of them."""

    key: str
    dtype: str
    count: int


class Tensor(NamedTuple):
    """A tensor as a torch file describes it. Offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """Name that a pickle would have imported: one of `FUNCTIONS` or `STORAGES`."""

    name: str


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads safetensors or torch weights; the first bytes of the file decide which, not its name.

    Returns:
      Arrays by name, as `read_safetensors` and `read_torch` give them.

    Raises:
      UserError: there is no such file, or it is neither, damaged, or of unknown contents.
    """
    return read_safetensors(path) if _first_bytes(path)[8:9] == b"{" else read_torch(path)


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file. bfloat16 becomes float32; other types stay as they are.

    Raises:
      UserError: there is no such file, it is damaged, or it holds a type that numpy lacks.
    """
    _first_bytes(path)
    try:
        tensors = safetensors.deserialize(Path(path).read_bytes())
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({_one_line(error)}): fetch it again") from None
    for name, tensor in tensors:
        if tensor["dtype"] not in DTYPES:
            raise UserError(f"{path}: tensor {name!r} is of type {tensor['dtype']}; known are {', '.join(DTYPES)}")
    return {name: _numbers(tensor["data"], tensor["dtype"]).reshape(tensor["shape"]) for name, tensor in tensors}


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict that torch.save wrote, in the zip format or in the one before torch 1.6, and runs no code.

    Returns:
      Arrays by name, not to be written to; those that share their numbers in torch share them here. bfloat16 becomes
      float32; other types stay as they are.

    Raises:
      UserError: there is no such file; it is damaged, or not a torch file; it wants to run something (which is named);
        it holds something other than tensors by name.
    """
    start = _first_bytes(path)
    try:
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if start.startswith(b"\x80"):
            return _read_pickles(path)
    except UserError as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    except DAMAGE as error:
        raise UserError(f"{path} is a damaged torch file ({_one_line(error)}): fetch it again") from None
    raise UserError(f"{path} is neither a torch nor a safetensors file: it begins with {start!r}")


def check_shapes(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray], path) -> None:
    """Compares what a network needs with what a file has; what it has beside that does not matter.

    Raises:
      UserError: tensors are missing or have another shape; names the first three of each.
    """
    missing = [name for name in wanted if name not in found]
    wrong = [
        f"{name} (expected {tuple(shape)}, found {found[name].shape})"
        for name, shape in wanted.items()
        if name in found and found[name].shape != tuple(shape)
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for names, what in ((missing, "missing"), (wrong, "of another shape"))
        if names
    ]
    if faults:
        raise UserError(f"{path} holds other weights: of {len(wanted)} tensors, {'; '.join(faults)}")


def _first_bytes(path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]  # it may quote what a hostile file says


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    numbers = np.frombuffer(data, DTYPES[dtype])
    if dtype == "BF16":
        return (numbers.astype("<u4") << 16).view("<f4")  # the upper half of a float32
    return numbers


# ---- the two formats of torch


def _read_zip(path) -> dict[str, np.ndarray]:
    """NAME/data.pkl describes the tensors; the file NAME/data/KEY is a storage."""
    with zipfile.ZipFile(path) as archive:
        left = os.path.getsize(path)

        def content(name: str) -> bytes:
            """Several entries may claim the same bytes; no more is read than the file has."""
            nonlocal left
            entry = archive.getinfo(name)
            left -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name!r} is compressed, which torch does not do")
            if left < 0:
                raise ValueError(f"{name!r} is longer than the file")
            return archive.read(entry)

        names = archive.namelist()
        tops = [name.removesuffix("/data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(tops) != 1:
            raise UserError("a zip, but not of torch: it has no data.pkl")
        top = tops[0]
        if f"{top}/constants.pkl" in names:
            raise UserError("a TorchScript program, not weights: give the file of a state dict")
        if f"{top}/byteorder" in names and content(f"{top}/byteorder") != b"little":
            raise UserError("written on a big-endian machine, which is not read here")
        storages: dict[str, Storage] = {}
        described = _unpickle(io.BytesIO(content(f"{top}/data.pkl")), storages)
        return _arrays(described, {key: content(f"{top}/data/{key}") for key in storages}.__getitem__)


def _read_pickles(path) -> dict[str, np.ndarray]:
    """Pickles of a magic number, a version, the machine, the description, the keys; then each storage: count, data."""
    data = Path(path).read_bytes()
    file = io.BytesIO(data)
    storages: dict[str, Storage] = {}
    if _unpickle(file, {}) != MAGIC:
        raise UserError("a pickle, but not one of torch.save")
    _unpickle(file, {})
    if _unpickle(file, {})["little_endian"] is not True:
        raise UserError("written on a big-endian machine, which is not read here")
    described = _unpickle(file, storages)
    places = {}
    for key in _expect(_unpickle(file, {}), list):
        _expect(key, str)
        (count,) = struct.unpack("<q", file.read(8))
        size = count * np.dtype(DTYPES[storages[key].dtype]).itemsize
        start = file.tell()
        if not 0 <= size <= len(data) - start:
            raise ValueError(f"it ends within storage {key!r}")
        places[key] = memoryview(data)[start : start + size]
        file.seek(size, io.SEEK_CUR)
    return _arrays(described, places.__getitem__)


def _arrays(described: Any, content: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Descriptions of tensors by name, and the bytes of a storage by key -> arrays by name."""
    if not isinstance(described, dict):
        what = type(described).__name__
        raise UserError(f"it is of type {what}, not tensors by name: save the state_dict() of a module")
    for name, tensor in described.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            what = type(tensor).__name__
            raise UserError(f"its entry {name!r} is of type {what}, not a tensor: save a state_dict() alone")
    rows = {storage: _row(storage, content) for storage in {tensor.storage for tensor in described.values()}}
    return {name: _view(name, tensor, rows[tensor.storage]) for name, tensor in described.items()}


def _row(storage: Storage, content: Callable[[str], bytes]) -> np.ndarray:
    row = _numbers(content(storage.key), storage.dtype)
    if row.size != storage.count:
        raise ValueError(f"storage {storage.key!r} has {row.size} numbers, not {storage.count}")
    return row


def _view(name: str, tensor: Tensor, row: np.ndarray) -> np.ndarray:
    """Checks bounds in integers that do not overflow, which numpy's do."""
    _, offset, shape, strides = tensor
    steps = [stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    if count == 0:
        return np.zeros(shape, row.dtype)
    if last >= row.size:
        raise ValueError(f"tensor {name!r} reaches out of its storage")
    if count > row.size:
        raise UserError(f"tensor {name!r} repeats its {row.size} numbers to {count}: save it contiguous()")
    steps = [step * row.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(row[offset:], shape, steps, writeable=False)


# ---- the pickle machine


def _unpickle(file: BinaryIO, storages: dict[str, Storage]) -> Any:
    """Runs the pickle at the file's position and returns what it makes; notes the storages that it speaks of."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    start = file.tell()

    def pop_to_mark() -> list:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    value: Any
    for opcode, value, position in pickletools.genops(file):
        if (position or 0) - start > LONGEST_PICKLE:
            raise ValueError(f"a pickle of more than {LONGEST_PICKLE} bytes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[opcode.name]())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "APPEND" | "APPENDS":
                items = pop_to_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop_to_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _put(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_named(value.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
                stack.append(_named(f"{module}.{name}"))
            case "REDUCE":
                arguments, function = _expect(stack.pop(), tuple), stack.pop()
                stack.append(_reduce(function, arguments))
            case "BUILD":  # the versions of the modules, which torch keeps beside the tensors
                stack.pop()
                _expect(stack[-1], dict)
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage).dtype != storage.dtype:
                    raise ValueError(f"storage {storage.key!r} has two types")
                stack.append(storage)
            case other:
                raise UserError(f"its pickle has the instruction {other}, which no state dict needs: nothing was run")
    raise ValueError("a pickle has no end")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _put(target: Any, pairs) -> dict:
    for key, value in pairs:
        if type(key) not in (str, int):  # to hash deeply nested tuples crashes the interpreter
            raise TypeError(f"a {type(key).__name__} as a key")
        _expect(target, dict)[key] = value
    return target


def _named(name: str) -> Name:
    if name not in FUNCTIONS and name not in STORAGES:
        raise UserError(f"it wants to run {name[:80]!r}; nothing was run: give a file of a state_dict() alone")
    return Name(name)


def _reduce(function: Name, arguments: tuple) -> Any:
    """Checks the arguments of a function that torch would call, and calls nothing."""
    match _expect(function, Name).name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):  # of Python 2
            taken, pairs[:] = pairs[:], []  # used up, or a list could be copied again and again
            return _put({}, taken)
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, *_):
            return tensor
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, tuple(shape), tuple(strides), *_):
            lengths_fit = len(shape) == len(strides) <= 32
            if lengths_fit and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
                return Tensor(storage, offset, shape, strides)
    raise ValueError(f"{function.name} of wrong arguments")


def _storage(description: Any) -> Storage:
    match description:  # of what type, its key, on which device, how many numbers; before torch 1.6 a view of another
        case ("storage", Name(name), str(key), _, int(count)) | ("storage", Name(name), str(key), _, int(count), None):
            return Storage(key, STORAGES[name], count)
    raise ValueError("a storage of wrong description")
