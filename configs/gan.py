"""Text to image by a generator in one pass, trained by a critic (R3GAN 2501.05441).

    python train.py --config configs/gan.py --workdir runs/gan                      an accelerator; its step is measured
    python train.py --config configs/gan.py:demo --workdir runs/gan_demo            two CPU cores, 8 minutes
    python train.py --config configs/gan.py:test --workdir /tmp/test                two steps, for tests

`projected` makes the features of a finished run on the same data the critic's input (Projected GANs 2111.01007):

    python train.py --config configs/gan.py:projected,demo --config.method.feature_network=runs/demo \
        --workdir runs/projected

The base is a generator without a loss; see `zoo.wrappers.adversarial` for the families that a critic can wrap.

Measured: `docs/results/critics.md`.
"""

from zoo import recipes
from zoo.config import arguments


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, ("projected", "demo", "test"))
    config = recipes.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512),
        method=dict(
            name="generator",
            net=dict(
                patch_size=2,
                widths=(256, 384, 384),
                blocks=2,
                bottleneck=2,
                attention_size=8,
                heads=4,
                remat="cheap",
                conditioner=dict(width=256, depth=4, heads=4),
            ),
            latent_dim=64,
            caption_drop=0.0,
        ),
        players=dict(
            model=recipes.player(
                learning_rate=2e-4, warmup_steps=0, betas=(0.0, 0.99), clip_norm=1e6, ema_half_lives=(500.0, 5000.0)
            ),
        ),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(temperature=1.0),
    )
    if "demo" in words:
        _for_demo(config)
    if "test" in words:
        recipes.for_tests(config)
        config.method.latent_dim = 8
        conditioner = dict(width=16, depth=1, heads=2)
        config.method.net.update(dict(patch_size=4, widths=(8, 16), blocks=1, heads=2, conditioner=conditioner))
    recipes.plug_in_critic(config, words, **_of_critic(words))
    return config


def _of_critic(words):
    """Settings of the critic that are not its defaults."""
    if "projected" in words:  # as LADD (2403.12015): noise keeps a feature network from separating all images at once
        return dict(objective="hinge", r1=0.0, r2=0.0, noise=(0.05, 0.95))
    return dict(r1=0.3, r2=0.3) if "demo" in words else {}


def _for_demo(config):
    """Few patches, of 4 x 4 pixels, at two levels."""
    recipes.for_demo(config)
    config.players.model.learning_rate = 5e-4
    config.loop.update(dict(steps=1600, checkpoint_every=400, grid_every=400))
    conditioner = dict(width=64, depth=2, heads=1)
    config.method.net.update(dict(patch_size=4, widths=(192, 192), heads=3, conditioner=conditioner))
