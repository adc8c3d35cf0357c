"""Patch tokenizers: images as codes, or as a vector for each patch, on which other families are trained.

    python train.py --config configs/patches.py --workdir runs/patches              an accelerator, not measured
    python train.py --config configs/patches.py:demo --workdir runs/patches_demo    two CPU cores
    python train.py --config configs/patches.py:test --workdir /tmp/test            two steps, for tests

Words combine in any order. `binary` makes binary codes, and `vectors` makes no codes but vectors, for `data.latents`;
`video` takes chunks of frames; `critic` adds a critic (VQGAN 2012.09841).
"""

from zoo import recipes
from zoo.config import arguments
from zoo.errors import UserError

WORDS = ("binary", "vectors", "video", "critic", "demo", "test")


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    if {"binary", "vectors"} <= words:
        raise UserError("binary makes codes and vectors makes none: give one of these words")
    config = recipes.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512),
        method=dict(
            name="patches",
            net=dict(width=384, depth=6, heads=6, patch_size=4, frame_patch=0, remat="cheap", attention="auto"),
            quantiser=dict(name="levels", levels=(8, 8, 8, 5, 5, 5)),
            caption_drop=0.1,
        ),
        players=dict(model=recipes.player(learning_rate=5e-4, warmup_steps=500, ema_half_lives=(500.0, 5000.0))),
        loop=dict(steps=40_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=0),
    )
    if "video" in words:
        config.data.update(dict(source="scenes/video_one?fps=8", frames=17))
        config.method.net.frame_patch = 4
    if "demo" in words:
        _for_demo(config, "video" in words)
    if "test" in words:
        _for_tests(config, "video" in words)
    if "binary" in words:
        config.method.quantiser = dict(name="binary", levels=(2,) * 10, entropy_weight=0.02)
    if "vectors" in words:
        config.method.quantiser = dict(name="vectors", channels=16, noise=0.2)
    if "critic" in words:
        recipes.plug_in_critic(config, words, last_layer="network/out(_chunk)?/kernel", weight=0.5)
    return config


def _for_demo(config, video):
    recipes.for_two_cores(config)
    recipes.for_demo(config)
    config.method.net.update(dict(width=128, depth=2, heads=2))
    config.method.quantiser.levels = (8, 5, 5, 5)
    config.loop.update(dict(steps=2000, checkpoint_every=500, grid_every=0))
    if video:
        config.data.source, config.data.frames = "scenes/video_one?omit=0&fps=8", 9


def _for_tests(config, video):
    recipes.for_tests(config)
    config.method.net.update(dict(width=16, depth=1, heads=2))
    config.method.quantiser.levels = (4, 3)
    config.loop.update(dict(grid_every=0, grid_prompts=()))
    if video:
        config.data.source, config.data.frames = "scenes/video_one?examples=64&fps=8", 5
