"""A trained run learns a subject or a style from three to six images, under a word of its own.

    python train.py --config configs/personalize.py --config.init=RUN --config.data.subject=FOLDER \
        --config.data.class_name=teapot --workdir NEW
    python sample.py --workdir NEW --prompt "a [V] teapot on a black background"

The base is any run that reads captions; what this recipe leaves open (None) is the base's. `lora`, `cross` and `token`
change less than all parameters, see `zoo/wrappers/personalized.py`; `critic` is for a base that has one; `style` learns
how the images look in place of what they show. `demo` is for two CPU cores, `test` takes two steps, for tests.
"""

from ml_collections import config_dict

from zoo import recipes
from zoo.config import arguments
from zoo.errors import UserError

CHANGES = "lora", "cross", "token"
WORDS = (*CHANGES, "critic", "style", "demo", "test")
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4, "cross": 5e-5, "token": 5e-3}


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    changes = sorted(words & set(CHANGES))
    if len(changes) > 1:
        raise UserError(f"give one of the words {' and '.join(changes)}")
    change = changes[0] if changes else "full"
    config = recipes.get_config(
        dtype=config_dict.placeholder(str),
        data=dict(batch_size=4) | _of_base(),
        players=dict(model=_player(LEARNING_RATES[change])),
        method=dict(
            name="personalized",
            base=config_dict.placeholder(dict),
            token_ids=config_dict.placeholder(tuple),
            start_ids=config_dict.placeholder(tuple),
            base_step=config_dict.placeholder(int),
            change=change,
            target_modules="kernel$",
            rank=8,
            alpha=8.0,
            prior_weight=1.0,
        ),
        loop=dict(steps=800, log_every=50, checkpoint_every=200, grid_every=200),
    )
    config.data.update(
        dict(
            subject="",
            class_name=config_dict.placeholder(str),
            token="reserved",
            learn="style" if "style" in words else "subject",
            template=config_dict.placeholder(str),
            subject_holdout=1,
            prior_num=200,
        )
    )
    if "demo" in words:
        _for_demo(config, change)
    if "test" in words:
        config.data.update(dict(batch_size=8, prior_num=8))
        config.loop.update(dict(steps=2, log_every=1, checkpoint_every=1, grid_every=2))
    if "critic" in words:
        config.players.critic = config.players.model.to_dict()
    return config


def _of_base():
    """The keys of the data that are the base's."""
    kinds = dict(source=str, size=int, frames=int, text_length=int, vocab_size=int, latents=str, codes=str)
    return {name: config_dict.placeholder(kind) for name, kind in kinds.items()}


def _player(learning_rate):
    return recipes.player(learning_rate=learning_rate, warmup_steps=0, decay_start=1.0, ema_half_lives=())


def _for_demo(config, change):
    """Small networks learn at larger rates."""
    config.data.update(dict(batch_size=16, prior_num=64))
    config.players.model.learning_rate = dict(full=3e-4, lora=2e-3, cross=1e-3, token=1e-2)[change]
    config.loop.update(dict(steps=300, checkpoint_every=100, grid_every=100))
