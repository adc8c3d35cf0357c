"""Text to video by flow matching with attention over space and time, on the network of `configs/diffusion.py`.

    python train.py --config configs/video.py --workdir runs/video          an accelerator; its step is measured
    python train.py --config configs/video.py:test --workdir /tmp/test      seconds, for tests

Words combine in any order. `stills` trains on the first frames, as images, for a video run to start from; `images`
trains on images too, in every step; `critic` adds a critic. On two CPU cores a video run must start from stills:

    python train.py --config configs/video.py:stills,demo --workdir runs/stills
    python train.py --config configs/video.py:demo --config.init=runs/stills --workdir runs/video

Measured: `docs/results/video.md`.
"""

from zoo import recipes
from zoo.config import arguments, load
from zoo.errors import UserError


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, ("images", "stills", "critic", "demo", "test"))
    if {"images", "stills"} <= words:
        raise UserError("stills trains on images alone, images beside videos: give one of these words")
    if {"images", "critic"} <= words:
        raise UserError("a critic cannot train a sum of two losses: give one of the words images and critic")
    config = load(f"diffusion:{','.join(sorted(words & {'demo', 'test'}))}")
    data, rate, options = dict(source="scenes/video", size=32, frames=16, text_length=48, batch_size=64), 8, ""
    if "demo" in words:
        # Captions of stills lack the words of motion, which the tokenizer then spells: they need a longer text.
        data, options = dict(source="scenes/video_one", size=16, frames=8, text_length=32, batch_size=32), "omit=0"
        config.loop.steps = 2000
        # As in `diffusion:cpu`, few tokens; and motion is decided in much noise.
        config.method.update(dict(prediction="x", time_min=0.05, time_shift=3.0, net=dict(patch_size=8)))
        config.sample.update(dict(shift=3.0, guidance=0.0))  # guidance makes frames flicker
    if "test" in words:
        data, rate = dict(source="scenes/video_one", size=16, frames=4, text_length=16, batch_size=8), 4
        options, config.loop.steps = "examples=64", 2
    source = data["source"]
    images = f"{source}?{options}" if options else source
    config.data.update(data | dict(source=f"{source}?fps={rate}" + (f"&{options}" if options else "")))
    config.method.net.space_time = "factorized"
    if "stills" in words:
        config.data.update(dict(source=images, frames=1, batch_size=2 * config.data.batch_size))
        config.method.net.space_time = "spatial"
        if "demo" in words:
            config.loop.steps = 2600
            config.method.time_shift = config.sample.shift = 1.0
    elif "images" in words:
        config.data.update(dict(images=images, images_batch_size=2 * config.data.batch_size))
        config.method = dict(name="joint", weight=1.0, base=config.method)
    if "critic" in words:
        recipes.plug_in_critic(config, words, last_layer="^network/out/kernel", weight=0.5)
    return config
