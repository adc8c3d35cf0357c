"""CLIP, trained on captioned images: what the zoo scores with where no published one is at hand.

    python train.py --config configs/clip.py --workdir runs/clip                two CPU cores, 25 minutes
    python train.py --config configs/clip.py:demo --workdir runs/clip_demo      two CPU cores, minutes; one simple world
    python train.py --config configs/clip.py:video --workdir runs/motion        motion; measured on a GPU
    python train.py --config configs/clip.py:test --workdir /tmp/test           two steps, for tests

Measured: `docs/results/clip.md`.
"""

from zoo import recipes
from zoo.config import arguments


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, ("video", "demo", "test"))
    config = recipes.get_config(
        data=dict(
            source="scenes/full + scenes/one",
            size=32,
            batch_size=128,
            text_length=40,
            vocab_size=512,
            negatives=True,
        ),
        players=dict(model=recipes.player(learning_rate=1e-3, warmup_steps=100, ema_half_lives=(100.0,))),
        loop=dict(steps=2000, log_every=50, checkpoint_every=500, grid_every=0),
    )
    config.method = dict(
        name="contrastive",
        objective="info_nce",
        time_layers=0,
        time_heads=2,
        net=dict(
            image_size=config.data.get_ref("size"),
            patch_size=4,
            width=128,
            depth=4,
            heads=2,
            mlp_width=512,
            text_width=128,
            text_depth=2,
            text_heads=2,
            text_mlp_width=512,
            text_length=config.data.get_ref("text_length"),
            projection=128,
            activation="gelu",
            text_activation="gelu",
            eps=1e-5,
            remat="cheap",
        ),
    )
    if "demo" in words:
        config.update(dict(data=dict(source="scenes/one"), loop=dict(steps=200)))
    if "video" in words:
        data = dict(source="scenes/video_one?fps=8", size=16, frames=8, batch_size=64)
        net = dict(width=96, depth=3, mlp_width=384, projection=64)
        config.update(dict(data=data, method=dict(net=net, time_layers=2), loop=dict(steps=1500)))
    if "test" in words:
        recipes.for_tests(config)
        net = dict(width=32, depth=1, mlp_width=64, text_width=16, text_depth=1, text_mlp_width=32)
        config.update(dict(method=dict(net=net), loop=dict(grid_every=0, grid_prompts=())))
        if "video" in words:
            config.data.update(dict(source="scenes/video_one?fps=4&examples=64", frames=4))
    return config
