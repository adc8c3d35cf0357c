"""Text to image by flow matching with a transformer on patches.

    python train.py --config configs/diffusion.py --workdir runs/diffusion          an accelerator; not yet measured
    python train.py --config configs/diffusion.py:cpu --workdir runs/full           two CPU cores, half an hour
    python train.py --config configs/diffusion.py:demo --workdir runs/demo          two CPU cores, what `make demo` runs
    python train.py --config configs/diffusion.py:test --workdir /tmp/test          seconds, for tests

Words combine in any order. `critic` adds a critic; `few_steps` trains a finished run with a critic until it needs one
to four steps:

    python train.py --config configs/diffusion.py:few_steps,demo --config.init=runs/demo --workdir runs/few_steps

`reward` changes a trained run by the derivative of a reward, `policy` by a reward that is a black box:

    python train.py --config configs/diffusion.py:demo --config.loop.steps=450 --workdir runs/base
    python train.py --config configs/diffusion.py:reward,demo --config.init=runs/base --workdir runs/reward
    python train.py --config configs/diffusion.py:policy,demo --config.init=runs/base --workdir runs/policy

Measured on two cores of an AMD EPYC (AVX-512), jax 0.10.2, float32. Shares of captions of which the oracle finds all
right, `python -m zoo score --workdir RUN --num 256 --split SPLIT`:

    :demo  `make demo` in a fresh clone, 4 min 37 s with installing     100% (test_seen; ceiling 100%, floor 0.4%)
           matmul peak 128 GFLOP/s                                      100% (test_unseen; ceiling 100%, floor 0.4%)
    :cpu   17,000 steps in 33 min 18 s, 1-3 objects at 32 px            22.3% (test_seen; ceiling 100%, floor 0.8%)
                                                                        19.5% (test_unseen; ceiling 100%, floor 1.6%)

`:demo` gets all of 1,000 (one seed). Its captions name size, colour, shape, place and background; of a prompt that
leaves one open it makes the mean of what there could be, not a choice. With `--config.data.source=scenes/one`, whose
captions leave them open, 3,400 steps and a reader of width 128 get 98.5% of 1,000; 2,600 steps 97.4%. Of 1,000 training
captions after those, Heun with 20 steps and guidance 1.5 got 97.1%, DDIM at the same cost and noise put back 98.2%, and
that with guidance 1 98.7%; trained with times uniform 95.7%, or shifted by 2, 96.3%. What is wrong then lies between
two things that the caption leaves open.

The `:cpu` run was on a Zen 5 with a matmul peak of 480 GFLOP/s. It is far from trained after 544,000 images:
backgrounds, places and colours come first (83.3%, 58.7%, 51.2% of the captions that name them), shapes late (30.9%).
Things look right; which thing gets which colour, shape and place often does not.

`:few_steps,demo` with 500 steps (6 min 12 s with other work beside it) gets 98.8% of 256 with one step and 100% with
two, where `:demo` itself gets 34.0% and 89.8%, with guidance (`python -m zoo nfe_sweep`). Sampled with more than its
four steps `few_steps` gets worse: 97.3% with 20.

`:reward,demo` on that run of 450 steps: CLIP's cosine rises from 0.65 to 0.81 in 240 steps (3 min 16 s) while the
oracle's share falls from 36.7% to 0; with `method.delta_penalty=400` to 0.75 and 18.0%. `:policy,demo` by the oracle,
for a sampler of two steps: 33.2% [29.3, 37.3] of 512 before, 46.9% [42.6, 51.1] after 450 steps of 256 images (9 min),
and CMMD 0.38 and 1.25: what the oracle does not ask for gets worse. Of 64 images and ten steps, 200 steps did not help
(57.0% and 49.2%).

On 3,224 captioned emoji (`:cpu --config.data.source=folder:emoji --config.data.vocab_size=2048
--config.data.text_length=24 --config.loop.steps=7000`), 11 min 6 s: twelve captions seen in training gave twelve
images that could be recognised, with some noise left in the patches.
"""

from configs import common
from zoo.config import arguments

WORDS = ("critic", "few_steps", "reward", "policy", "cpu", "demo", "test")


def get_config(text=None):
    words = arguments(text, WORDS)
    config = common.get_config(
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
                positions="rotary",
                time_frequency=1000.0,
                remat=False,
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
        players=dict(model=common.player(learning_rate=5e-4, warmup_steps=500, ema_half_lives=(500.0, 5000.0))),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(steps=20, sampler="heun", guidance=1.5, interval=(0.0, 1.0), eta=0.0, shift=3.0),
    )
    if {"cpu", "demo"} & words:
        _for_two_cores(config)
    if "demo" in words:
        _for_demo(config)
    if "test" in words:
        common.for_tests(config)
        config.method.net.update(dict(width=32, depth=1, heads=2, conditioner=dict(width=16, depth=1, heads=1)))
        config.sample.steps = 2
    if "few_steps" in words:
        _for_few_steps(config)
        if "demo" in words:
            config.loop.steps = 500
        if "test" not in words:
            config.init = "runs/demo"
    if {"critic", "few_steps"} & words:
        common.plug_in_critic(config, words, last_layer="^network/out/kernel", weight=0.5)
    if {"reward", "policy"} & words:
        _for_rewards(config, "policy" in words)
        if "test" not in words:
            config.loop.update(dict(steps=240, log_every=10, checkpoint_every=50, grid_every=100))
            if "policy" in words:
                config.loop.steps = 450
                config.data.batch_size, config.method.group_size = 256, 16  # few draws drown the gradient
                config.players.adapters.learning_rate = 3e-4
    return config


def _for_rewards(config, policy):
    """Low-rank changes of a trained run, given by --config.init=RUN, for a sampler of few steps without guidance."""
    steps = 2 if policy else 10  # with fewer draws it is clearer which one was good
    config.sample.update(dict(sampler="ddim", steps=steps, guidance=0.0, eta=float(policy)))
    sampling = dict(sampler="ddim", steps=steps, guidance=0.0, shift=config.sample.shift)
    if policy:
        common.plug_in_reward(config, gradient="policy", reward="oracle", sampling=sampling | dict(eta=1.0))
    else:
        common.plug_in_reward(config, sampling=sampling | dict(last=1))


def _for_few_steps(config):
    """What a critic makes of a trained run, given by --config.init=RUN: images in one to four steps (ADD 2311.17042).

    The network is only asked at four times, and DDIM with eta=1 puts back nearly all noise: after the first step a
    third of its standard deviation stays as predicted.
    """
    config.method.update(dict(time_distribution="steps", time_steps=4, time_shift=1.0))
    config.sample.update(dict(sampler="ddim", eta=1.0, steps=4, guidance=0.0, shift=1.0))
    config.players.model.update(dict(warmup_steps=0, betas=(0.0, 0.99)))


def _for_two_cores(config):
    """Few tokens: large patches, for which the clean image is predicted (JiT 2511.13720), and a narrow text encoder."""
    common.for_two_cores(config)
    conditioner = dict(width=128, depth=2, heads=2)
    net = dict(width=192, depth=6, heads=3, patch_size=8, conditioner=conditioner)
    config.method.update(dict(net=net, prediction="x", time_min=0.05))
    config.loop.steps = 17_000


def _for_demo(config):
    common.for_demo(config)
    config.loop.update(dict(steps=1300, checkpoint_every=500, grid_every=500))
    net = dict(patch_size=4, depth=4, conditioner=dict(width=64, heads=1))
    config.method.update(dict(net=net, prediction="v", time_min=0.0, time_shift=1.0))
    # Noise put back on the way corrects what lies between two objects.
    config.sample.update(dict(sampler="ddim", eta=1.0, steps=40, guidance=0.5, shift=1.0))
