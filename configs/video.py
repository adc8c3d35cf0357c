"""Text to video: flow matching with attention over space and time, on the network of `configs/diffusion.py`.

    python train.py --config configs/video.py --workdir runs/video          an accelerator; its step is measured
    python train.py --config configs/video.py:test --workdir /tmp/test      two steps in minutes, for tests

Words combine in any order. `stills` trains on the first frames, as images, for a video run to start from; `images`
trains on images too, in every step; `critic` adds a critic. On two CPU cores a video run must start from stills:

    python train.py --config configs/video.py:stills,demo --workdir runs/stills
    python train.py --config configs/video.py:demo --config.init=runs/stills --workdir runs/video

`vae`, `flow` and `gan` are the families of those recipes in place of flow matching:

    python train.py --config configs/video.py:vae,stills,demo --workdir runs/vae_stills
    python train.py --config configs/video.py:vae,demo --config.init=runs/vae_stills --workdir runs/vae_video

Measured: `docs/results/video.md`.
"""

from zoo import recipes
from zoo.config import arguments, load
from zoo.errors import UserError

FAMILIES = "vae", "flow", "gan"
WORDS = ("images", "stills", "critic", *FAMILIES, "demo", "test")


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    _check(words)
    family = next(iter(words & set(FAMILIES)), "diffusion")
    config = load(f"{family}:{','.join(sorted(words & {'demo', 'test'}))}")
    _set_data(config, words)
    if family == "diffusion":
        _for_diffusion(config, words)
    elif "demo" in words and "test" not in words:
        _for_family(config, family, "stills" in words)
    if "test" in words:  # also of `demo,test`
        config.loop.steps = 2
    if "images" in words:
        config.method = dict(name="joint", weight=1.0, base=config.method)
    if "critic" in words:
        recipes.plug_in_critic(config, words, last_layer="^network/out/kernel", weight=0.5)
    return config


def _check(words):
    families = sorted(words & set(FAMILIES))
    if len(families) > 1:
        raise UserError(f"a recipe is of one family: give one of the words {' and '.join(families)}")
    if {"images", "stills"} <= words:
        raise UserError("stills trains on images alone, images beside videos: give one of these words")
    if "images" in words and {"critic", "gan"} & words:
        raise UserError("a critic cannot train a sum of two losses: drop the word images, or critic and gan")
    if "critic" in words and families:
        raise UserError(f"the critic of videos is set for flow matching: drop the word critic, or {families[0]}")


def _set_data(config, words):
    """Videos; for `stills` their first frames, twice as many; for `images` these beside them."""
    data, rate, options = dict(source="scenes/video", size=32, frames=16, text_length=48, batch_size=64), 8, ""
    if "demo" in words:
        data, options = dict(source="scenes/video_one", size=16, frames=8, text_length=20, batch_size=32), "omit=0"
    if "test" in words:
        data, rate = dict(source="scenes/video_one", size=16, frames=4, text_length=16, batch_size=8), 4
        options = "examples=64"
    source = data["source"]
    images = f"{source}?{options}" if options else source
    config.data.update(data | dict(source=f"{source}?fps={rate}" + (f"&{options}" if options else "")))
    if "stills" in words:
        config.data.update(dict(source=images, frames=1, batch_size=2 * config.data.batch_size))
    elif "images" in words:
        config.data.update(dict(images=images, images_batch_size=2 * config.data.batch_size))


def _for_diffusion(config, words):
    """Attention over space and time; in the demo large patches that predict the image, and more noise."""
    stills = "stills" in words
    config.method.net.space_time = "spatial" if stills else "factorized"
    if "demo" in words:
        shift = 1.0 if stills else 6.0  # motion is decided in much noise
        config.loop.steps = 2200 if stills else 2300
        # As in `diffusion:cpu`, few tokens.
        config.method.update(dict(prediction="x", time_min=0.05, time_shift=shift, net=dict(patch_size=8)))
        config.sample.update(dict(shift=shift, guidance=0.0))  # guidance makes frames flicker


def _for_family(config, family, stills):
    """Settings of the other demos: of videos from stills, and of these stills."""
    if family == "flow":  # as flow matching, few tokens
        config.method.net.update(dict(patch_size=8, width=192))
        config.loop.steps = 1500 if stills else 1600
    elif not stills:
        config.data.batch_size = 16
    if family == "gan":
        config.data.negatives = True  # captions wrong by a word: a neighbour's caption differs in more than the motion
    if family == "vae" and not stills:
        config.method.warmup = (700, 1400)
