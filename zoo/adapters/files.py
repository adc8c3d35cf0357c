"""Changes of a trained run as a safetensors file, with the keys of other people's tools.

A kernel "model/network/layers/attention/query/kernel" of stacked layers has for each layer i

    model.network.layers.i.attention.query.lora_A.weight    (rank, in)
    model.network.layers.i.attention.query.lora_B.weight    (out, rank)
    model.network.layers.i.attention.query.alpha            (), the change is alpha / rank B A
    model.network.layers.i.attention.query.diff.weight      (out, in), where all of it changes

as in PEFT and diffusers; heads are flattened. `lora_down`, `lora_up` and underscores for dots, kohya's names, are read
too. A word has "model.conditioner.embedding.word", (ids, D): its embedding, less what it starts from.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import UserError

LISTS = re.compile(r"^(layers|level_\d+|blocks)$")  # modules whose parameters are stacked
KINDS = {"lora_A": "a", "lora_down": "a", "lora_B": "b", "lora_up": "b"}
OTHERS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"}
_PREFIX = re.compile(r"^(base_model\.model\.|transformer\.|unet\.|lora_unet_|lora_transformer_|lora_)")
_END = re.compile(
    r"[._](lora_A|lora_B|lora_down|lora_up)(\.[\w-]+)?\.weight$|[._](alpha)$|[._](diff)\.weight$|[._](word)$"
)


class Parts(NamedTuple):
    """Changes by the paths of what they change, as trees of players have them.

    Attributes:
      low_rank: {"a": (*stack, in, rank), "b": (*stack, rank, out)} each; the change is a b / rank.
      whole: changes of the parameters' own shapes.
      words: rows of embeddings, (ids, D).
    """

    low_rank: dict[str, dict[str, Any]]
    whole: dict[str, Any]
    words: dict[str, Any]


def keys(path: str, stack: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the key of each layer of a kernel, without its end, and the layer's place in the stack."""
    *modules, _ = path.split("/")
    place = next((i + 1 for i, name in enumerate(modules) if LISTS.match(name)), len(modules))
    for index in np.ndindex(*stack):
        yield ".".join([*modules[:place], *map(str, index), *modules[place:]]), index


def to_tensors(parts: Parts, kernels: Mapping[str, tuple[int, ...]], alpha: float) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, float32.

    Args:
      parts: changes; those of low rank are alpha / rank a b.
      kernels: shapes of all kernels as matrices, see `lora.kernels`.
      alpha: see above.

    Raises:
      UserError: a change that is of no kernel, as the whole run is.
    """
    tensors = {}
    for path, pair in parts.low_rank.items():
        for key, index in keys(path, kernels[path][:-2]):
            tensors[f"{key}.lora_A.weight"] = np.asarray(pair["a"])[index].T
            tensors[f"{key}.lora_B.weight"] = np.asarray(pair["b"])[index].T
            tensors[f"{key}.alpha"] = np.float32(alpha)
    for path, change in parts.whole.items():
        if path not in kernels:
            raise UserError(f"{path} is no kernel: all parameters of this run changed, and its workdir is the file")
        for key, index in keys(path, kernels[path][:-2]):
            tensors[f"{key}.diff.weight"] = np.asarray(change).reshape(kernels[path])[index].T
    for path, rows in parts.words.items():
        tensors[f"{_module(path)}.word"] = np.asarray(rows)
    return {key: np.array(tensor, np.float32, order="C") for key, tensor in tensors.items()}


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    kernels: Mapping[str, tuple[int, ...]],
    tables: Mapping[str, tuple[int, int]],
    name: str,
) -> Parts:
    """Returns the changes in the tensors of a file.

    Args:
      tensors: see the module.
      kernels: shapes of all kernels of the run as matrices, see `lora.kernels`.
      tables: shapes of its embeddings of words.
      name: of the file, for errors.

    Raises:
      UserError: tensors of another kind of adapter, or that the run has no place for.
    """
    for key in tensors:
        for part, kind in OTHERS.items():
            if part in key:
                raise UserError(f"{name} is a {kind} adapter ({key}), and the zoo reads LoRA: convert it")
    places = {key: (path, index) for path, shape in kernels.items() for key, index in keys(path, shape[:-2])}
    places |= {_module(path): (path, ()) for path in tables}
    by_underscores = {key.replace(".", "_"): place for key, place in places.items()}
    found: dict[tuple[str, tuple[int, ...]], dict[str, np.ndarray]] = {}
    unknown = []
    for key, tensor in tensors.items():
        end = _END.search(key)
        bare = key[: end.start()] if end else key
        plain = _PREFIX.sub("", bare)
        place = next((known[k] for k in (bare, plain) for known in (places, by_underscores) if k in known), None)
        if end is None or place is None:
            unknown.append(key)
            continue
        kind = next(group for group in (end[1], end[3], end[4], end[5]) if group)
        found.setdefault(place, {})[KINDS.get(kind, kind)] = np.asarray(tensor, np.float32)
    if unknown or not found:
        shown = ", ".join(unknown[:3]) or "none"
        raise UserError(
            f"{name} is not of this run's networks: {len(unknown)} of its {len(tensors)} tensors have no place, "
            f"as {shown}; the run's are e.g. {', '.join(list(places)[:2])}"
        )
    return _assembled(found, kernels, tables, name)


def _assembled(found, kernels, tables, name) -> Parts:
    """The changes of all layers of a kernel together; a layer without any has zeros."""
    parts = Parts({}, {}, {})
    for path in dict.fromkeys(path for path, _ in found):
        layers = {index: tensors for (other, index), tensors in found.items() if other == path}
        if path in tables:
            rows = _given(layers[()], "word", path, name)
            parts.words[path] = _checked(rows, (-1, tables[path][1]), path, name)
            continue
        *stack, rows, columns = kernels[path]
        if any("diff" in tensors for tensors in layers.values()):
            whole = np.zeros(kernels[path], np.float32)
            for index, tensors in layers.items():
                whole[index] = _checked(_given(tensors, "diff", path, name), (columns, rows), path, name).T
            parts.whole[path] = whole
            continue
        ranks = {len(np.atleast_1d(_given(tensors, "a", path, name))) for tensors in layers.values()}
        if len(ranks) > 1:
            raise UserError(f"{name}: layers of {path} have the ranks {sorted(ranks)}: they must have one")
        rank = ranks.pop()
        a, b = np.zeros((*stack, rows, rank), np.float32), np.zeros((*stack, rank, columns), np.float32)
        for index, tensors in layers.items():
            a[index] = _checked(tensors["a"], (rank, rows), path, name).T
            b[index] = _checked(_given(tensors, "b", path, name), (columns, rank), path, name).T
            b[index] *= _checked(tensors.get("alpha", np.float32(rank)).reshape(-1), (1,), path, name)[0]
        parts.low_rank[path] = {"a": a, "b": b}
    return parts


def _given(tensors: Mapping[str, np.ndarray], kind: str, path: str, name: str) -> np.ndarray:
    if kind not in tensors:
        raise UserError(f"{name} lacks a part of the change of {path}: it has {', '.join(sorted(tensors))} alone")
    return tensors[kind]


def _checked(tensor: np.ndarray, shape: tuple[int, ...], path: str, name: str) -> np.ndarray:
    if tensor.ndim != len(shape) or any(b not in (-1, a) for a, b in zip(tensor.shape, shape, strict=True)):
        wanted = str(shape).replace("-1", "any")
        raise UserError(f"{name}: the change of {path} has the shape {tensor.shape}, and this run needs {wanted}")
    return tensor


def _module(path: str) -> str:
    """A path of a parameter as a key of its module."""
    return path.rpartition("/")[0].replace("/", ".")
