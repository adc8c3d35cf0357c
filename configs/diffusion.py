"""Text to image by flow matching with a transformer on patches.

    python train.py --config configs/diffusion.py --workdir runs/diffusion          an accelerator
    python train.py --config configs/diffusion.py:cpu --workdir runs/full           two CPU cores, 50 minutes
    python train.py --config configs/diffusion.py:demo --workdir runs/demo          two CPU cores, what `make demo` runs
    python train.py --config configs/diffusion.py:test --workdir /tmp/test          two steps, for tests

Words combine in any order. `critic` adds a critic; `few_steps` trains a finished run with a critic until it needs one
to four steps:

    python train.py --config configs/diffusion.py:few_steps,demo --config.init=runs/demo --workdir runs/few_steps

`reward` changes a trained run by the derivative of a reward, `policy` by a reward that is a black box:

    python train.py --config configs/diffusion.py:demo --config.loop.steps=450 --workdir runs/base
    python train.py --config configs/diffusion.py:reward,demo --config.init=runs/base --workdir runs/reward
    python train.py --config configs/diffusion.py:policy,demo --config.init=runs/base --workdir runs/policy

`:demo` captions name size, colour, shape, position and background, and prompts should too. Measured:
`docs/results/text_to_image.md`, `docs/results/rewards.md`, and on one GPU `docs/results/accelerator.md`.
"""

from zoo import recipes
from zoo.config import arguments

WORDS = ("critic", "few_steps", "reward", "policy", "cpu", "demo", "test")


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    config = recipes.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512),
        method=dict(
            name="diffusion",
            net=dict(
                width=384,
                depth=12,
                heads=6,
                patch_size=4,
                conditioner=dict(width=256, depth=4, heads=4),
                text="joint",
                space_time="spatial",
                positions="rotary",
                time_frequency=1000.0,
                remat="cheap",
                attention="auto",
            ),
            path="linear",
            prediction="v",
            loss_space="v",
            time_distribution="logit_normal",
            time_mean=0.0,
            time_std=1.0,
            time_steps=4,
            time_shift=3.0,  # where most pixels are alike, what an image shows is decided in much noise
            time_min=0.0,
            caption_drop=0.1,
        ),
        players=dict(model=recipes.player(learning_rate=5e-4, warmup_steps=500, ema_half_lives=(500.0, 5000.0))),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(steps=20, sampler="heun", guidance=1.5, interval=(0.0, 1.0), eta=0.0, shift=3.0),
    )
    if {"cpu", "demo"} & words:
        _for_two_cores(config)
    if "demo" in words:
        _for_demo(config)
    if "test" in words:
        recipes.for_tests(config)
        config.method.net.update(dict(width=32, depth=1, heads=2, conditioner=dict(width=16, depth=1, heads=1)))
        config.sample.steps = 2
    if "few_steps" in words:
        _for_few_steps(config)
        if "demo" in words:
            config.loop.steps = 500
        if "test" not in words:
            config.init = "runs/demo"
    if {"critic", "few_steps"} & words:
        recipes.plug_in_critic(config, words, last_layer="^network/out/kernel", weight=0.5)
    if {"reward", "policy"} & words:
        _for_rewards(config, "policy" in words)
        if "test" not in words:
            recipes.for_reward_runs(config, "policy" in words)
    return config


def _for_rewards(config, policy):
    """Low-rank changes of a trained run, given by --config.init=RUN, for a sampler of few steps without guidance."""
    steps = 2 if policy else 10  # with fewer draws it is clearer which one was good
    config.sample.update(dict(sampler="ddim", steps=steps, guidance=0.0, eta=float(policy)))
    sampling = dict(sampler="ddim", steps=steps, guidance=0.0, shift=config.sample.shift)
    if policy:
        recipes.plug_in_reward(config, gradient="policy", reward="oracle", sampling=sampling | dict(eta=1.0))
    else:
        recipes.plug_in_reward(config, sampling=sampling | dict(last=1))


def _for_few_steps(config):
    """Trains a finished run, given by --config.init=RUN, with a critic for one to four steps (ADD 2311.17042).

    The network is evaluated at four times only, and DDIM with eta=1 puts back nearly all noise: after the first step a
    third of its standard deviation stays as predicted.
    """
    config.method.update(dict(time_distribution="steps", time_steps=4, time_shift=1.0))
    config.sample.update(dict(sampler="ddim", eta=1.0, steps=4, guidance=0.0, shift=1.0))
    config.players.model.update(dict(warmup_steps=0, betas=(0.0, 0.99)))


def _for_two_cores(config):
    """Few tokens: large patches, for which the clean image is predicted (JiT 2511.13720), and a narrow text encoder."""
    recipes.for_two_cores(config)
    conditioner = dict(width=128, depth=2, heads=2)
    net = dict(width=192, depth=6, heads=3, patch_size=8, conditioner=conditioner)
    config.method.update(dict(net=net, prediction="x", time_min=0.05))
    config.loop.steps = 17_000


def _for_demo(config):
    recipes.for_demo(config)
    config.loop.update(dict(steps=1300, checkpoint_every=500, grid_every=500))
    net = dict(patch_size=4, depth=4, conditioner=dict(width=64, heads=1))
    config.method.update(dict(net=net, prediction="v", time_min=0.0, time_shift=1.0))
    # Noise put back on the way corrects what lies between two objects.
    config.sample.update(dict(sampler="ddim", eta=1.0, steps=40, guidance=0.5, shift=1.0))
