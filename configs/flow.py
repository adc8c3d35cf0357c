"""Text to image by a normalizing flow: an autoregressive one (TarFlow 2412.06329), or couplings (Jet 2412.15129).

    python train.py --config configs/flow.py --workdir runs/flow                    an accelerator; not yet measured
    python train.py --config configs/flow.py:cpu --workdir runs/flow_cpu            two CPU cores; not yet measured
    python train.py --config configs/flow.py:demo --workdir runs/flow_demo          two CPU cores, 7 minutes
    python train.py --config configs/flow.py:test --workdir /tmp/test               seconds, for tests

Words combine, as in `configs/flow.py:jet,likelihood,demo`:

    jet          couplings in place of autoregressive transformers
    critic       a critic teaches too, by samples: with `jet`, whose inverse is one pass
    likelihood   trained on bits per dimension, without the Gaussian noise that makes better pictures

Measured on two cores of an AMD EPYC, jax 0.10.2:

    :demo       7 min 8 s, all is right for 256 of 256 test captions (`python -m zoo.scoring --workdir runs/flow_demo`;
                ceiling 100%, floor 0.4%). Guidance, chosen on 512 train captions: 0, 0.5, 1, 2 give 100, 99.8, 87.3,
                44.1%; it leaves noise in the patches that each block reads first.
    :jet,demo   13 min with tests beside it, all is right for 256 of 256 (3.1% where a coupling's scale was below 2,
                as in the paper: twelve of them were busy making flat patches wide).

`--measures round_trip`, 256 pictures after 2,000 steps: largest error 1.7e-6 (TarFlow) and 7.7e-7 (Jet).
"""

from configs import common
from zoo.config import arguments

WORDS = ("jet", "likelihood", "critic", "cpu", "demo", "test")


def get_config(text=None):
    words = arguments(text, WORDS)
    config = common.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512),
        method=dict(
            name="flow",
            architecture="autoregressive",
            net=dict(width=384, heads=6, patch_size=4, text_width=384, text_depth=2),
            noise="gaussian",
            noise_std=0.1,
            caption_drop=0.1,
        ),
        players=dict(model=common.player(learning_rate=5e-4, warmup_steps=500, ema_half_lives=(500.0, 5000.0))),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(guidance=0.0, temperature=1.0, denoise=True, cache=True),
    )
    if "jet" in words:
        config.method.architecture = "jet"
    _set_stack(config, autoregressive=dict(blocks=8, depth=4), jet=dict(couplings=32, depth=2))
    if "likelihood" in words:
        config.method.noise = "uniform"
    if "cpu" in words:
        _for_two_cores(config)
    if "demo" in words:
        _for_two_cores(config)
        config.data.update(dict(source="scenes/one?omit=0", size=16, batch_size=64, text_length=16))
        config.method.net.update(dict(width=128, patch_size=4))
        config.loop.update(dict(steps=2000, log_every=50, checkpoint_every=500, grid_every=1000))
        config.players.model.ema_half_lives = (10.0, 40.0)
    if "test" in words:
        _for_tests(config)
    if "critic" in words:
        common.plug_in_critic(config, words)
    return config


def _for_two_cores(config):
    """Few tokens, of large patches, and short stacks."""
    config.update(
        dict(
            dtype="float32",
            data=dict(batch_size=32),
            method=dict(net=dict(width=192, heads=4, patch_size=8, text_width=128, text_depth=2)),
            players=dict(model=dict(learning_rate=1e-3, warmup_steps=100, ema_half_lives=(20.0, 100.0))),
            loop=dict(steps=17_000, log_every=100, checkpoint_every=1000, grid_every=5000),
        )
    )
    _set_stack(config, autoregressive=dict(blocks=4, depth=2), jet=dict(couplings=12, depth=1))


def _for_tests(config):
    """Everything as small as it can be; the pictures are noise."""
    config.update(
        dict(
            dtype="float32",
            data=dict(source="scenes/one?examples=64", size=16, batch_size=8, text_length=16),
            method=dict(net=dict(width=32, heads=2, text_width=16, text_depth=1)),
            players=dict(model=dict(warmup_steps=1, ema_half_lives=(1.0, 10.0))),
            loop=dict(
                steps=2, steps_per_call=1, log_every=1, checkpoint_every=1, grid_every=2, grid_prompts=("a star",)
            ),
        )
    )
    _set_stack(config, autoregressive=dict(blocks=2, depth=1), jet=dict(couplings=4, depth=1))


def _set_stack(config, **stacks):
    """The part of the network that the two do not share."""
    config.method.net.update(stacks[config.method.architecture])
