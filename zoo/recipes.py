"""Parts of recipes: the sections of every config, and what the words `cpu`, `demo`, `test`, `critic` and `reward` set.

The recipes themselves are the files in configs/.
"""

import ml_collections
from ml_collections import config_dict

from zoo.config import Config


def get_config(**sections) -> Config:
    """Returns a config with every section; a section given here is laid over the default one."""
    config: Config = ml_collections.ConfigDict(
        dict(
            seed=0,
            dtype="float32",
            init="",
            data=dict(
                source="scenes/one",
                size=16,
                frames=1,
                batch_size=64,
                text_length=32,
                vocab_size=1024,
                flip=False,
                negatives=False,
                latents="",
                codes="",
                images="",
                images_batch_size=0,
                threads=0,
                workers=0,
            ),
            method=dict(name=config_dict.placeholder(str)),
            players=dict(),
            loop=dict(
                steps=1000,
                steps_per_call=1,
                accumulate=1,
                log_every=50,
                checkpoint_every=500,
                grid_every=500,
                grid_prompts=(),
                held_out_every=0,
                held_out_num=512,
                score_every=0,
                score_num=128,
                score_measures=("all",),
                max_to_keep=2,
                max_bad_steps=20,
            ),
            sample=dict(),
        )
    )
    for name, section in sections.items():
        if isinstance(section, dict):
            config[name].update(section)
        else:
            config[name] = section
    return config


def player(**changes) -> dict:
    """One player's optimizer, see `zoo.training.optim.Optimizer`."""
    return (
        dict(
            learning_rate=1e-3,
            warmup_steps=100,
            decay="linear",
            decay_start=0.5,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            weight_decay_on="kernel$",
            clip_norm=1.0,
            skip_norm=0.0,
            freeze="",
            ema_half_lives=(50.0, 500.0),
            ema_rampup=0.1,
        )
        | changes
    )


def for_two_cores(config: Config) -> None:
    """The shared part of the words `cpu` and `demo`: float32, small batches, short averages."""
    config.update(
        dict(
            dtype="float32",
            data=dict(batch_size=32),
            players=dict(model=dict(learning_rate=1e-3, warmup_steps=100, ema_half_lives=(20.0, 100.0))),
            loop=dict(log_every=100, checkpoint_every=1000, grid_every=5000),
        )
    )


def for_demo(config: Config) -> None:
    """The shared part of the word `demo`: one object at 16 px under captions that name everything.

    An attribute that captions leave open takes two to three times as long to learn.
    """
    config.dtype = "float32"
    config.data.update(dict(source="scenes/one?omit=0", size=16, batch_size=64, text_length=16))
    config.players.model.ema_half_lives = (10.0, 40.0)
    config.loop.log_every = 50


def for_tests(config: Config) -> None:
    """The shared part of the word `test`: as small as possible; the images are noise."""
    config.update(
        dict(
            dtype="float32",
            data=dict(source="scenes/one?examples=64", size=16, batch_size=8, text_length=16),
            players=dict(model=dict(warmup_steps=1, ema_half_lives=(1.0, 10.0))),
            loop=dict(
                steps=2, steps_per_call=1, log_every=1, checkpoint_every=1, grid_every=2, grid_prompts=("a star",)
            ),
        )
    )


def plug_in_critic(config: Config, words: set[str], **changes) -> None:
    """Wraps the config's method with a critic, see `zoo.wrappers.adversarial`: small for `demo` and least for `test`.

    Args:
      config: config of a family that yields differentiable samples; its `method` becomes `method.base`.
      words: arguments of the recipe; with `projected` the critic's features are those of a trained run, which
        `--config.method.feature_network=RUN` names.
      **changes: settings of the wrapper.
    """
    penalty = 0.1 if "demo" in words else 1.0
    own = dict(
        name="adversarial",
        base=config.method.to_dict(),
        critic=_critic(words),
        feature_network="runs/demo" if "projected" in words else "",
        objective="relativistic",
        weight=1.0,
        base_weight=1.0,
        last_layer="",
        start=0,
        critic_steps=1,
        r1=penalty,
        r2=penalty,
        penalty="exact",
        mismatch=1.0,
        feature_matching=0.0,
        noise=(),
        augmentations=(),
    )
    config.method = ml_collections.ConfigDict(own | changes)
    rate = 5e-4 if "demo" in words else 2e-4
    config.players.critic = player(
        learning_rate=rate, warmup_steps=0, betas=(0.0, 0.99), clip_norm=1e6, ema_half_lives=()
    )


def _critic(words: set[str]) -> dict:
    """Network of the critic; with a feature network only the heads are its own."""
    own, text = dict(patch_size=2, widths=(256, 384, 384)), dict(width=256, depth=4, heads=4)
    heads, blocks = dict(width=256), 2
    if "demo" in words:
        own, text = dict(patch_size=4, widths=(192, 192)), dict(width=64, depth=2, heads=1)
        heads, blocks = dict(width=192), 1
    if "test" in words:
        own, text = dict(patch_size=4, widths=(8, 16)), dict(width=16, depth=1, heads=2)
        heads, blocks = dict(width=8), 1
    return (heads if "projected" in words else own) | dict(blocks=blocks, bottleneck=2, remat="cheap", conditioner=text)


def plug_in_reward(config: Config, **changes) -> None:
    """Wraps the config's method with a reward, see `zoo.wrappers.rewarded`; `--config.init=RUN` is the run to change.

    Args:
      config: config of a family that makes samples from noise; its `method` becomes `method.base`.
      **changes: settings of the wrapper.
    """
    own = dict(
        name="rewarded",
        base=config.method.to_dict(),
        reward="zoo:clip",
        gradient="direct",
        sampling=dict(),
        target_modules="^model/.*kernel$",
        rank=8,
        alpha=8.0,
        delta_penalty=0.0,
        group_size=8,
    )
    config.method = ml_collections.ConfigDict(own | changes)
    adapters = player(learning_rate=1e-3, warmup_steps=0, decay_start=1.0, ema_half_lives=())
    config.players = ml_collections.ConfigDict(dict(adapters=adapters))


def for_reward_runs(config: Config, policy: bool) -> None:
    """The length of runs by a reward; many draws a step for a policy, where few drown the gradient."""
    config.loop.update(dict(steps=240, log_every=10, checkpoint_every=50, grid_every=100))
    if policy:
        config.loop.steps = 450
        config.data.batch_size, config.method.group_size = 256, 16
        config.players.adapters.learning_rate = 3e-4
