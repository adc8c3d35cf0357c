"""What all recipes share: the sections of a config, with defaults that suit a small run on one device."""

import ml_collections


def get_config(**sections) -> ml_collections.ConfigDict:
    """Returns a config with every section; a section given here is laid over the default one."""
    config = ml_collections.ConfigDict(
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
            ),
            method=dict(name=ml_collections.config_dict.placeholder(str)),
            players=dict(),
            loop=dict(
                steps=1000,
                steps_per_call=1,
                accumulate=1,
                log_every=50,
                checkpoint_every=500,
                grid_every=500,
                grid_prompts=(),
                score_every=0,
                score_num=128,
                score_measures=("all",),
                keep=2,
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


def plug_in_critic(config: ml_collections.ConfigDict, words: set[str], **changes) -> None:
    """Puts the config's method under a critic, see `zoo.methods.adversarial`: small for `demo` and least for `test`.

    Args:
      config: of a family that shows pictures; its `method` becomes `method.base`.
      words: the recipe's arguments; with `projected` the critic looks through the run `--config.method.trunk=RUN`.
      **changes: of the plug-in's own settings.
    """
    penalty = 0.1 if "demo" in words else 1.0
    own = dict(
        name="adversarial",
        base=config.method.to_dict(),
        critic=_critic(words),
        trunk="runs/demo" if "projected" in words else "",
        objective="relativistic",
        weight=1.0,
        base_weight=1.0,
        adaptive_on="",
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
    config.players.critic = player(
        learning_rate=2e-4, warmup_steps=0, betas=(0.0, 0.99), clip_norm=1e6, ema_half_lives=()
    )
    if "demo" in words:
        config.players.critic.learning_rate = 5e-4


def _critic(words: set[str]) -> dict:
    """The critic's network; of one with a trunk only the heads are its own."""
    own, text = dict(patch_size=2, widths=(256, 384, 384)), dict(text_width=256, text_depth=4, text_heads=4)
    heads, blocks = dict(width=256), 2
    if "demo" in words:
        own, text = dict(patch_size=4, widths=(192, 192)), dict(text_width=64, text_depth=2, text_heads=1)
        heads, blocks = dict(width=192), 1
    if "test" in words:
        own, text = dict(patch_size=4, widths=(8, 16)), dict(text_width=16, text_depth=1, text_heads=2)
        heads, blocks = dict(width=8), 1
    return (heads if "projected" in words else own) | dict(blocks=blocks, bottleneck=2) | text


def plug_in_reward(config: ml_collections.ConfigDict, **changes) -> None:
    """Puts the config's method under a reward, see `zoo.methods.rewarded`; the run to change is `--config.init=RUN`.

    Args:
      config: of a family that makes pictures of noise; its `method` becomes `method.base`.
      **changes: of the plug-in's own settings.
    """
    own = dict(
        name="rewarded",
        base=config.method.to_dict(),
        reward="clip",
        gradient="direct",
        sampling=dict(),
        adapt="^model/.*kernel$",
        rank=8,
        scale=8.0,
        leash=0.0,
        group=8,
    )
    config.method = ml_collections.ConfigDict(own | changes)
    adapters = player(learning_rate=1e-3, warmup_steps=0, decay_start=1.0, ema_half_lives=())
    config.players = ml_collections.ConfigDict(dict(adapters=adapters))
