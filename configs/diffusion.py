"""Text to image by flow matching."""

from configs import common
from zoo.config import arguments


def get_config(text=None):
    words = arguments(text, ("demo", "test"))
    net = dict(
        width=192,
        depth=4,
        heads=3,
        patch_size=4,
        text_depth=2,
        text="joint",
        positions="rotary",
        remat=False,
        attention="auto",
    )
    config = common.get_config(
        data=dict(source="scenes/one", size=16, text_length=24, vocab_size=512, batch_size=64),
        method=dict(
            name="diffusion",
            net=net,
            path="linear",
            prediction="v",
            error="v",
            times="logit_normal",
            time_mean=0.0,
            time_std=1.0,
            time_shift=1.0,
            time_min=0.0,
            caption_drop=0.1,
        ),
        players=dict(model=common.player(ema_half_lives=(70.0,))),
        loop=dict(steps=1600, steps_per_call=10, grid_every=400),
        sample=dict(steps=20, sampler="heun", guidance=1.5, interval=(0.0, 1.0), eta=0.0, shift=1.0),
    )
    return config
