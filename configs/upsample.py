"""Stages of a cascade: more frames a second and more pixels, by diffusion given the small video (CDM 2106.15282).

    python train.py --config configs/upsample.py:time --workdir runs/time       twice the frame rate, an accelerator
    python train.py --config configs/upsample.py:space --workdir runs/space     twice the side
    python train.py --config configs/upsample.py:test --workdir /tmp/test       two steps, for tests

Without these words a stage doubles the side, with both of them it does both. After the base run of `configs/video.py`
these two are a cascade of three, as in Imagen Video (2210.02303); `demo` makes each of them for two CPU cores, after
`configs/video.py:demo`:

    python sample.py --workdir runs/video --upsample runs/time --upsample runs/space --prompt "..." --out video.mp4

`images` upsamples images. `--config.data.source`, `size` and `frames` are of what comes out: another order is another
size. `critic` adds a critic.

See `docs/families/cascade.md`. Measured: `docs/results/cascades.md`.
"""

from typing import Any

from zoo import recipes
from zoo.config import arguments, load
from zoo.errors import UserError

WORDS = ("space", "time", "images", "critic", "demo", "test")


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    _check(words)
    config = load(f"diffusion:{','.join(sorted(words & {'demo', 'test'}))}")
    _set_data(config, words)
    _set_base(config, words)
    config.method = dict(
        name="upsampling",
        base=config.method.to_dict(),
        scale=2 if "space" in words else 1,
        rate=2 if "time" in words else 1,
        resizing="box",  # as scenes are drawn; what is read from files is made smaller by "lanczos"
        largest_level=0.5,
        prefix=0.5 if "time" in words else 0.0,
        crop=0,
    )
    if "critic" in words:
        recipes.plug_in_critic(config, words, last_layer="^network/out/kernel", weight=0.5)
    return config


def _check(words):
    if {"images", "time"} <= words:
        raise UserError("images have no frame rate: drop the word time, or images")
    if "time" not in words:
        words.add("space")


def _set_data(config, words):
    """Sets the data to what comes out of the stage: time comes before space."""
    data = dict(source="scenes/video?fps=16", size=64 if "space" in words else 32, frames=32, batch_size=32)
    data["text_length"] = 48
    if "images" in words:
        data = dict(source="scenes/full", size=64, frames=1, batch_size=128, text_length=40)
    if {"demo", "test"} & words:
        size = 32 if "space" in words else 16
        frames, more, batch_size = 16, "omit=0", 16
        if "test" in words:
            frames, more, batch_size = 8, "examples=64", 8
        data = dict(source=f"scenes/video_one?fps={frames}&{more}", size=size, frames=frames, batch_size=batch_size)
        data["text_length"] = 32
        if "images" in words:
            data |= dict(source=f"scenes/one?{more}", frames=1, batch_size=8 * batch_size)
    config.data.update(data)


def _set_base(config, words):
    """Predicts x from large patches; the noise that decides is less where the small video shows most."""
    net: dict[str, Any] = dict(space_time="spatial" if "images" in words else "factorized")
    if "test" not in words:
        net["patch_size"] = 8
    config.method.update(dict(prediction="x", time_min=0.05, time_shift=1.0, net=net))
    config.sample.update(dict(sampler="heun", steps=10, guidance=0.0, eta=0.0, shift=1.0))
    config.loop.grid_prompts = ()
    if "test" in words:
        config.sample.steps = 2
    elif "demo" in words:
        config.loop.update(dict(steps=1000, checkpoint_every=500, grid_every=500))
