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
