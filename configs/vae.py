"""Variational autoencoders: text to image by a hierarchy of latents, and latents for other families.

    python train.py --config configs/vae.py --workdir runs/vae                      an accelerator; its step is measured
    python train.py --config configs/vae.py:cpu --workdir runs/vae_cpu              two CPU cores
    python train.py --config configs/vae.py:demo --workdir runs/vae_demo            two CPU cores, 6.5 minutes
    python train.py --config configs/vae.py:test --workdir /tmp/test                two steps, for tests
    python train.py --config configs/vae.py:autoencoder,cpu --workdir runs/latents  an autoencoder for data.latents

`autoencoder` combines with each of the other words, and so does `critic`, which adds a critic (VQGAN 2012.09841).

Measured: `docs/results/text_to_image.md`; the settings without which it did not learn: `docs/families/vae.md`.
"""

from zoo import recipes
from zoo.config import arguments


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, ("autoencoder", "critic", "cpu", "demo", "test"))
    config = recipes.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512),
        method=dict(
            name="vae",
            architecture="hierarchical",
            net=dict(
                patch_size=2,
                width=256,
                bottleneck=4,
                encoder_blocks=(4, 4, 3, 2, 1),
                decoder_blocks=(8, 6, 3, 2, 1),
                latent_dim=16,
                attention_size=8,
                heads=4,
                remat="cheap",
                conditioner=dict(width=256, depth=4, heads=4),
                mixtures=10,
            ),
            least_log_scale=-7.0,
            first_log_scale=-1.5,
            kl_weight=1.0,
            first_kl_weight=10.0,
            warmup=(5000, 30_000),
            free_bits=0.0,
            caption_drop=0.1,
        ),
        players=dict(
            model=recipes.player(
                learning_rate=5e-4,
                warmup_steps=500,
                betas=(0.9, 0.99),
                weight_decay=0.01,
                ema_half_lives=(500.0, 5000.0),
            )
        ),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(temperature=1.0),
    )
    autoencoder = "autoencoder" in words
    if autoencoder:
        _for_latents(config)
    if "cpu" in words or "demo" in words:
        _for_two_cores(config, autoencoder)
    if "demo" in words:
        _for_demo(config, autoencoder)
    if "test" in words:
        _for_tests(config, autoencoder)
    if "critic" in words:
        recipes.plug_in_critic(config, words, last_layer="head/kernel", weight=0.5, feature_matching=1.0)
    return config


def _for_latents(config):
    """Makes the recipe an autoencoder of f4.

    The prior only keeps the latents from growing. Logistics stay so wide that objects weigh as much as flat
    backgrounds, whose likelihood is high.
    """
    config.method.update(dict(architecture="autoencoder", kl_weight=1e-3, first_kl_weight=1e-3, warmup=(0, 20_000)))
    config.method.least_log_scale = -3.0
    config.method.net = dict(widths=(128, 256), blocks=3, latent_dim=4, mixtures=5, remat="cheap")


def _for_two_cores(config, autoencoder):
    """Most of the work at 8 x 8."""
    recipes.for_two_cores(config)
    config.loop.steps = 10_000
    if autoencoder:
        config.method.warmup = (0, 5000)
        config.method.net.update(dict(widths=(32, 64), blocks=1, mixtures=3))
    else:
        config.method.warmup = (1500, 6000)
        net = dict(patch_size=4, width=128, encoder_blocks=(1, 1, 1), decoder_blocks=(3, 2, 1), mixtures=4)
        config.method.net.update(net | dict(conditioner=dict(width=128, depth=2)))


def _for_demo(config, autoencoder):
    recipes.for_demo(config)
    config.loop.update(dict(steps=1600, checkpoint_every=500, grid_every=1000))
    if autoencoder:
        config.method.warmup = (0, 800)
    else:
        config.method.warmup = (700, 1400)
        net = dict(width=192, encoder_blocks=(1, 1), decoder_blocks=(3, 1), mixtures=1)
        config.method.net.update(net | dict(conditioner=dict(width=64, heads=1)))


def _for_tests(config, autoencoder):
    recipes.for_tests(config)
    if autoencoder:
        config.method.net.update(dict(widths=(8, 16), blocks=1, mixtures=1))
    else:
        net = dict(patch_size=4, width=16, encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=4, heads=2)
        config.method.net.update(net | dict(mixtures=2, conditioner=dict(width=16, depth=1, heads=2)))
