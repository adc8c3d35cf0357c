"""Reads other people's weights from safetensors files, which hold numbers and nothing that could run."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from zoo.errors import UserError

# Types of numbers by the names that safetensors gives them, as they lie in the file.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
DTYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
TORCH = (b"PK\x03\x04", b"\x80")  # what files of torch.save begin with: a zip, or before torch 1.6 a pickle


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file. bfloat16 becomes float32; other types stay as they are.

    Args:
      path: the file; its name does not matter.

    Raises:
      UserError: there is no such file, it is a file of torch or damaged, or it holds a type that numpy lacks.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from None
    if content.startswith(TORCH) and content[8:9] != b"{":
        raise UserError(f"{path} was written by torch.save; docs/score.md shows how to make it a safetensors file")
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:300]  # it may quote a hostile file
        raise UserError(f"{path} is not a whole safetensors file ({reason}): fetch it again") from None
    for name, tensor in tensors:
        if tensor["dtype"] not in DTYPES:
            raise UserError(f"{path}: tensor {name!r} is of type {tensor['dtype']}; known are {', '.join(DTYPES)}")
    return {name: _numbers(tensor["data"], tensor["dtype"]).reshape(tensor["shape"]) for name, tensor in tensors}


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the texts that a safetensors file has beside its tensors; `read` checks that it is one."""
    with safetensors.safe_open(path, framework="numpy") as opened:
        return dict(opened.metadata() or {})


def check_shapes(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray], path) -> None:
    """Compares what a network needs with what a file has; what it has beside that does not matter.

    Args:
      wanted: shape of each tensor that the network needs.
      found: tensors of the file.
      path: the file, for errors.

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


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    numbers = np.frombuffer(data, DTYPES[dtype])
    if dtype == "BF16":
        return (numbers.astype("<u4") << 16).view("<f4")  # the upper half of a float32
    return numbers
