"""Text to image in one step by average velocities (MeanFlow 2505.13447), with the network of `configs/diffusion.py`.

    python train.py --config configs/mean_flow.py --workdir runs/mean_flow          an accelerator; its step is measured
    python train.py --config configs/mean_flow.py:cpu --workdir runs/mean_flow_cpu  two CPU cores (not measured)
    python train.py --config configs/mean_flow.py:demo --workdir runs/mean_flow     two CPU cores, 6.5 minutes
    python train.py --config configs/mean_flow.py:test --workdir /tmp/test          two steps, for tests

Measured: `docs/results/text_to_image.md`.
"""

import ml_collections

from zoo.config import arguments, load


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, ("cpu", "demo", "test"))
    config = load(f"diffusion:{','.join(sorted(words))}")
    net = config.method.net.to_dict() | dict(time_frequency=8.0)  # its derivative by time is taken
    config.method = ml_collections.ConfigDict(
        dict(
            name="mean_flow",
            net=net,
            prediction="u",
            time_min=0.0,
            time_mean=-0.4,
            time_std=1.0,
            time_shift=config.method.time_shift,
            data_proportion=0.75,
            norm_p=1.0,
            caption_drop=0.1,
            guidance=0.0,
            guidance_mix=0.0,
        )
    )
    config.sample = ml_collections.ConfigDict(dict(steps=1, shift=1.0))
    return config
