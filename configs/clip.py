"""CLIP, trained on captioned images: what the zoo scores with where no published one is at hand.

    python train.py --config configs/clip.py --workdir runs/clip                two CPU cores, 25 minutes
    python train.py --config configs/clip.py:demo --workdir runs/clip_demo      two CPU cores, minutes; one simple world
    python train.py --config configs/clip.py:test --workdir /tmp/test           seconds, for tests

Measured on two cores of an AMD EPYC (Zen 5), jax 0.10.2, float32: 2,000 steps of 128 at about 155 images a second,
stopped and resumed twice. Among 1,000 images of scenes/full an image's nearest caption is its own for 48.9%
(test_seen) and 37.3% (test_unseen); its own caption scores above the same with a word wrong for 78.1% and 76.0%; all
figures are in zoo/pretrained/clip_scenes/README.md, with the weights. It was still getting better when it ended.

On captioned emoji, of which a tenth is held out (`--config.data.source='folder:emoji?holdout=0.1'
--config.data.negatives=False --config.data.vocab_size=2048 --config.loop.steps=400`), 8 min 29 s: among 320 held-out
images an image's nearest caption is its own for 65.0%, a caption's nearest image for 67.8%; among 320 that it
was trained on 87.2% and 89.4% (`python -m zoo clip_eval --clip FOLDER --size 32 --num 320 --split test`).
Many emoji differ by a skin tone or a direction alone, in the image as in the caption, and variants of one are on both
sides of the split.
"""

from configs import common
from zoo.config import arguments


def get_config(text=None):
    words = arguments(text, ("demo", "test"))
    config = common.get_config(
        data=dict(
            source="scenes/full + scenes/one",
            size=32,
            batch_size=128,
            text_length=40,
            vocab_size=512,
            negatives=True,
        ),
        players=dict(model=common.player(learning_rate=1e-3, warmup_steps=100, ema_half_lives=(100.0,))),
        loop=dict(steps=2000, log_every=50, checkpoint_every=500, grid_every=0),
    )
    config.method = dict(
        name="contrastive",
        objective="info_nce",
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
        ),
    )
    if "demo" in words:
        config.update(dict(data=dict(source="scenes/one"), loop=dict(steps=200)))
    if "test" in words:
        common.for_tests(config)
        net = dict(width=32, depth=1, mlp_width=64, text_width=16, text_depth=1, text_mlp_width=32)
        config.update(dict(method=dict(net=net), loop=dict(grid_every=0, grid_prompts=())))
    return config
