"""Text to image by a normalizing flow: an autoregressive one (TarFlow 2412.06329), or couplings (Jet 2412.15129).

    python train.py --config configs/flow.py --workdir runs/flow                    an accelerator; its step is measured
    python train.py --config configs/flow.py:cpu --workdir runs/flow_cpu            two CPU cores; not yet measured
    python train.py --config configs/flow.py:demo --workdir runs/flow_demo          two CPU cores, 7 minutes
    python train.py --config configs/flow.py:test --workdir /tmp/test               two steps, for tests

Words combine, as in `configs/flow.py:jet,likelihood,demo`:

    jet          couplings in place of autoregressive transformers
    critic       a critic of samples beside the likelihood: with `jet`, whose inverse is one pass
    likelihood   trained on bits per dimension, without the Gaussian noise that makes better images

Measured: `docs/results/text_to_image.md`, `docs/results/likelihood.md`.
"""

from zoo import recipes
from zoo.config import arguments

WORDS = ("jet", "likelihood", "critic", "cpu", "demo", "test")


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    config = recipes.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512),
        method=dict(
            name="flow",
            architecture="tarflow",
            net=dict(
                width=384,
                heads=6,
                patch_size=4,
                remat="cheap",
                attention="auto",
                conditioner=dict(width=384, depth=2, heads=6),
            ),
            noise="gaussian",
            noise_std=0.1,
            caption_drop=0.1,
        ),
        players=dict(model=recipes.player(learning_rate=5e-4, warmup_steps=500, ema_half_lives=(500.0, 5000.0))),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(guidance=0.0, temperature=1.0, denoise=True, inverse="cached", tolerance=1e-3),
    )
    if "jet" in words:
        config.method.architecture = "jet"
    _set_stack(config, tarflow=dict(blocks=8, depth=4), jet=dict(couplings=32, depth=2))
    if "likelihood" in words:
        config.method.noise = "uniform"
    if {"cpu", "demo"} & words:
        _for_two_cores(config)
    if "demo" in words:
        recipes.for_demo(config)
        config.method.net.update(dict(width=128, patch_size=4))
        config.loop.update(dict(steps=2000, checkpoint_every=500, grid_every=1000))
    if "test" in words:
        recipes.for_tests(config)
        config.method.net.update(dict(width=32, heads=2, conditioner=dict(width=16, depth=1, heads=2)))
        _set_stack(config, tarflow=dict(blocks=2, depth=1), jet=dict(couplings=4, depth=1))
    if "critic" in words:
        recipes.plug_in_critic(config, words)
    return config


def _for_two_cores(config):
    """Few tokens, of large patches, and short stacks."""
    recipes.for_two_cores(config)
    config.method.net.update(dict(width=192, heads=4, patch_size=8, conditioner=dict(width=128, depth=2, heads=4)))
    config.loop.steps = 17_000
    _set_stack(config, tarflow=dict(blocks=4, depth=2), jet=dict(couplings=12, depth=1))


def _set_stack(config, **stacks):
    """The part of the network that the two do not share."""
    config.method.net.update(stacks[config.method.architecture])
