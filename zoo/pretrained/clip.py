"""CLIP folders as Hugging Face keeps them, read and written with no torch."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import einops
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from zoo import weights
from zoo.conditions import Cond
from zoo.errors import UserError, unknown_name_error
from zoo.files import atomic, read_text
from zoo.nets.clip import CLIP
from zoo.resize import differentiable_crop

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SHIPPED = {"clip": Path(__file__).with_name("clip_scenes")}  # `zoo:clip`, trained on scenes alone, see its README
DTYPES = ("float32", "float16")  # of a file that is written
WEIGHTS = "model.safetensors"
LEGACY_END = 2  # the eos_token_id of older configs, whatever the tokenizer's is

# Our field, and the section, key and default of Hugging Face's CLIPConfig.
FIELDS = (
    ("image_size", "vision_config", "image_size", 224),
    ("patch_size", "vision_config", "patch_size", 32),
    ("width", "vision_config", "hidden_size", 768),
    ("depth", "vision_config", "num_hidden_layers", 12),
    ("heads", "vision_config", "num_attention_heads", 12),
    ("mlp_width", "vision_config", "intermediate_size", 3072),
    ("activation", "vision_config", "hidden_act", "quick_gelu"),
    ("eps", "vision_config", "layer_norm_eps", 1e-5),
    ("text_width", "text_config", "hidden_size", 512),
    ("text_depth", "text_config", "num_hidden_layers", 12),
    ("text_heads", "text_config", "num_attention_heads", 8),
    ("text_mlp_width", "text_config", "intermediate_size", 2048),
    ("text_activation", "text_config", "hidden_act", "quick_gelu"),
    ("vocab_size", "text_config", "vocab_size", 49408),
    ("text_length", "text_config", "max_position_embeddings", 77),
    ("projection", None, "projection_dim", 512),
)

# Parts of the names of our parameters, and of Hugging Face's tensors; parts that are not here are the same.
NAMES = {
    "image_patches": "vision_model.embeddings.patch_embedding",
    "image_class": "vision_model.embeddings.class_embedding",
    "image_positions": "vision_model.embeddings.position_embedding.weight",
    "image_pre_norm": "vision_model.pre_layrnorm",  # so spelled
    "image_blocks": "vision_model.encoder.layers",
    "image_norm": "vision_model.post_layernorm",
    "image_projection": "visual_projection",
    "text_tokens": "text_model.embeddings.token_embedding",
    "text_positions": "text_model.embeddings.position_embedding.weight",
    "text_blocks": "text_model.encoder.layers",
    "text_norm": "text_model.final_layer_norm",
    "attention_norm": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
}
LAYOUTS = {2: ("i o", "o i"), 4: ("h w i o", "o i h w")}  # of kernels, ours and theirs, by their number of axes


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP with all that goes with it.

    Attributes:
      model: the network.
      params: of the network.
      tokenizer: of the texts; a copy is kept that cuts and pads to `model.text_length`.
      mean, std: of a colour channel in [0, 1], which the network's images are normalised by.

    Raises:
      UserError: the tokenizer does not end texts with `model.end_id`, or has ids that the network has no embedding for.
    """

    model: CLIP
    params: Any
    tokenizer: tokenizers.Tokenizer
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self):
        end, length = self.model.end_id, self.model.text_length
        tokenizer = _bare(self.tokenizer)
        if end not in tokenizer.encode("").ids:
            raise UserError(f"this CLIP reads a text at its id {end}, which the tokenizer puts into none: they differ")
        highest = max(tokenizer.get_vocab().values())
        if highest >= self.model.vocab_size:
            raise UserError(
                f"the tokenizer has ids up to {highest}, the CLIP has {self.model.vocab_size} embeddings: they differ"
            )
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=end, pad_token=tokenizer.id_to_token(end))
        object.__setattr__(self, "tokenizer", tokenizer)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> int32 (B, L). Those that are too long are cut, with a note on stderr."""
        encoded = self.tokenizer.encode_batch([text.encode("utf-8", "replace").decode() for text in texts])
        cut = [text for text, row in zip(texts, encoded, strict=True) if row.overflowing]
        if cut:
            print(
                f"note: {len(cut)} of {len(texts)} texts are cut to {self.model.text_length} tokens,"
                f" the first is {cut[0][:40]!r}...",
                file=sys.stderr,
            )
        return np.array([row.ids for row in encoded], np.int32).reshape(len(texts), self.model.text_length)

    def score(self, params: Any, inputs: jax.Array, cond: Cond) -> jax.Array:
        """See `method.Scorer`: the cosine of image and caption. cond["tokens"] are those of `encode`.

        Images are resized without the rounding to whole levels, so that there is a derivative; the features of a video
        are the mean of its frames'.
        """
        frames = einops.rearrange((inputs + 1) * 127.5, "b t h w c -> (b t) h w c")
        frames = self.normalise(differentiable_crop(frames, self.model.image_size))
        images: Any = self.model.apply({"params": params}, frames, method="encode_image")
        images = einops.reduce(images, "(b t) d -> b d", "mean", b=len(inputs))
        texts: Any = self.model.apply({"params": params}, cond["tokens"], method="encode_text")
        norms = jnp.linalg.norm(images, axis=-1) * jnp.linalg.norm(texts, axis=-1)
        return (images * texts).sum(axis=-1) / norms

    def normalise(self, pixels: jax.Array) -> jax.Array:
        """Normalises pixels in [0, 255], (..., 3), uint8 or float -> float32 inputs of the network."""
        return (pixels.astype(jnp.float32) / 255 - jnp.array(self.mean)) / jnp.array(self.std)


def is_folder(name: str | os.PathLike) -> bool:
    """Whether a folder holds the weights of a CLIP."""
    return (Path(name) / WEIGHTS).is_file()


def load(folder: str | os.PathLike) -> Clip:
    """Reads a folder with config.json, model.safetensors and tokenizer.json, or `zoo:clip`.

    What config.json leaves out are Hugging Face's defaults, as in transformers. preprocessor_config.json may be
    missing; then the images are normalised as OpenAI did.

    Args:
      folder: path of the folder, or `zoo:clip`.

    Returns:
      The CLIP, with float32 parameters whatever the file holds.

    Raises:
      UserError: a file is missing or damaged; the network is not a CLIP or has an unknown activation; tensors are
        missing or have other shapes; the tokenizer does not fit; images would have to be preprocessed otherwise.
    """
    if str(folder).startswith("zoo:"):
        name = str(folder).removeprefix("zoo:")
        if name not in SHIPPED:
            raise unknown_name_error("shipped network", name, SHIPPED)
        folder = SHIPPED[name]
    folder = Path(folder)
    if (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} is a run: write it as a CLIP by python -m zoo export_clip")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one with config.json, model.safetensors and tokenizer.json")
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    model = _read_model(folder / "config.json", tokenizer)
    mean, std = _read_normalisation(folder / "preprocessor_config.json", model.image_size)
    path = folder / WEIGHTS
    tensors = weights.read(path)
    theirs = jax.eval_shape(functools.partial(_to_theirs, model=model), _shapes(model))
    wanted = {name: leaf.shape for name, leaf in theirs.items()}
    weights.check_shapes(wanted, tensors, path)
    return Clip(model, _to_ours(tensors, model), tokenizer, mean, std)


def save(folder: str | os.PathLike, clip: Clip, dtype: str = "float32") -> None:
    """Writes a folder that `load` and transformers read: config, weights, tokenizer, normalisation.

    The folder appears whole or not at all; folders above it are made.

    Args:
      folder: folder to write; it must not exist.
      clip: CLIP to write.
      dtype: "float32" or "float16", of the parameters in the file.

    Raises:
      UserError: the folder exists, `dtype` is another, the parameters are not those of the model, or the texts end in
        id 2, which transformers takes for a sign of its older configs.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise unknown_name_error("dtype of a CLIP's file", dtype, DTYPES)
    if clip.model.end_id == LEGACY_END:
        raise UserError(
            f"transformers cannot read a CLIP whose texts end in id {LEGACY_END}: give that token another id"
        )
    if folder.exists():
        raise UserError(f"{folder} exists: give a folder that does not, or delete it")
    if jax.tree.map(jnp.shape, clip.params) != jax.tree.map(jnp.shape, _shapes(clip.model)):
        raise UserError("the parameters are not those of the network: give a tree as CLIP.init makes, of one device")
    with atomic(folder) as unfinished:
        unfinished.mkdir()
        for name, content in _json_files(clip, dtype).items():
            (unfinished / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        tensors = _to_theirs(jax.device_get(clip.params), model=clip.model)
        tensors = {name: x.astype(dtype, order="C") for name, x in tensors.items()}
        save_file(tensors, unfinished / WEIGHTS, metadata={"format": "pt"})


# ---- tensors


def _shapes(model: CLIP):
    """The network's parameters, each as its shape."""
    x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, model.text_length), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), x, ids)["params"]


def _their_name(path: str) -> str:
    """For image_blocks/3/query/kernel: vision_model.encoder.layers.3.self_attn.q_proj.weight."""
    return ".".join(NAMES.get(part, part) for part in path.split("/"))


def _layers(path: str, model: CLIP) -> list[str]:
    """Paths of the layers in a leaf, as image_blocks/0/query/kernel of image_blocks/query/kernel; or its own."""
    tower, _, rest = path.partition("/")
    depths = {"image_blocks": model.depth, "text_blocks": model.text_depth}
    return [f"{tower}/{i}/{rest}" for i in range(depths[tower])] if tower in depths else [path]


def _to_theirs(params, model: CLIP) -> dict[str, Any]:
    """Our tree -> their tensors by name."""
    tensors, flat = {}, cast(dict[str, Any], flatten_dict(params, sep="/"))
    for path, x in flat.items():
        layers = _layers(path, model)
        parts = [x] if layers == [path] else x
        tensors |= {
            _their_name(name): _turn(path, part, to_theirs=True) for name, part in zip(layers, parts, strict=True)
        }
    return tensors


def _to_ours(tensors: Mapping[str, np.ndarray], model: CLIP):
    """Their tensors by name -> our tree."""
    flat = {}
    for path in flatten_dict(_shapes(model), sep="/"):
        layers = _layers(path, model)
        parts = [jnp.asarray(_turn(path, tensors[_their_name(name)], to_theirs=False), jnp.float32) for name in layers]
        flat[path] = parts[0] if layers == [path] else jnp.stack(parts)
    return unflatten_dict(flat, sep="/")


def _turn(path: str, x, to_theirs: bool):
    if not path.endswith("/kernel"):
        return x
    ours, theirs = LAYOUTS[x.ndim]
    return einops.rearrange(x, f"{ours} -> {theirs}" if to_theirs else f"{theirs} -> {ours}")


# ---- the files beside the tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: is it a CLIP's?")
    return content


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library has no narrower one
        raise UserError(f"{path} is no tokenizer of the tokenizers library: {' '.join(str(error).split())}") from None
    return _bare(tokenizer)


def _bare(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that neither cuts nor pads."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_model(path: Path, tokenizer: tokenizers.Tokenizer) -> CLIP:
    config = _read_json(path)
    if config.get("model_type") != "clip":
        raise UserError(f"{path} is of model_type {config.get('model_type')!r}, not 'clip': give the folder of a CLIP")
    sections = {name: _section(config, name) for name in ("vision_config", "text_config")}
    fields: dict[str, Any] = {
        field: _value(sections[section] if section else config, key, default, path)
        for field, section, key, default in FIELDS
    }
    text = sections["text_config"]
    if _value(text, "layer_norm_eps", 1e-5, path) != fields["eps"]:
        raise UserError(
            f"{path}: the two towers have different layer_norm_eps, which zoo has no use for; make them equal"
        )
    end = text.get("eos_token_id", 49407)
    if end == LEGACY_END:  # transformers then reads texts where the highest id stands, which is the tokenizer's end
        end = (tokenizer.encode("").ids or [end])[-1]
    return CLIP(**fields, end_id=end)


def _section(config: Mapping[str, Any], name: str):
    """As in transformers, the older of two keys hides the newer one."""
    found = [config[key] for key in (f"{name}_dict", name) if config.get(key) is not None]
    return found[0] if found else {}


def _value(section: Any, key: str, default, path: Path):
    value = section.get(key, default) if isinstance(section, dict) else section
    if type(value) is not type(default) or (not isinstance(value, str) and value <= 0):
        raise UserError(f"{path}: {key} is {value!r}, but must be like {default!r}")
    return value


def _read_normalisation(path: Path, size: int) -> tuple[Any, Any]:
    """Returns mean and std of the channels; raises UserError where images are to be preprocessed in another way."""
    config = _read_json(path) if path.exists() else {}
    for key, value in _preprocessing(size).items():
        if config.get(key, value) not in (value, size):  # older files hold sizes as plain numbers
            raise UserError(f"{path}: {key} is {config[key]!r}; zoo preprocesses images with {value!r} only")
    mean, std = config.get("image_mean", MEAN), config.get("image_std", STD)
    for values in (mean, std):
        if not (isinstance(values, Sequence) and len(values) == 3 and all(isinstance(x, (int, float)) for x in values)):
            raise UserError(f"{path}: image_mean and image_std must be 3 numbers each, not {values!r}")
    return tuple(mean), tuple(std)


def _preprocessing(size: int) -> dict[str, Any]:
    """Returns `zoo.resize.shortest_side_and_crop` and `Clip.normalise` in Hugging Face's keys."""
    return {
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }


def _json_files(clip: Clip, dtype: str) -> dict[str, Any]:
    """Name -> content of the folder's JSON files."""
    model = clip.model
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "torch_dtype": dtype}
    config["vision_config"] = {"model_type": "clip_vision_model"}
    config["text_config"] = {"model_type": "clip_text_model", "layer_norm_eps": model.eps}
    for field, section, key, _ in FIELDS:
        (config[section] if section else config)[key] = getattr(model, field)
    for section in ("vision_config", "text_config"):
        config[section]["projection_dim"] = model.projection  # for transformers' single towers
    tokenizer = _bare(clip.tokenizer)
    begin, end = tokenizer.encode("").ids[0], model.end_id
    config["text_config"] |= {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    return {
        "config.json": config,
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.text_length,
            "bos_token": tokenizer.id_to_token(begin),
            "eos_token": tokenizer.id_to_token(end),
            "pad_token": tokenizer.id_to_token(end),
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            **_preprocessing(model.image_size),
            "image_mean": clip.mean,
            "image_std": clip.std,
        },
    }
