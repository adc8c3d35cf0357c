"""Text to video by flow matching with attention over space and time, on the network of `configs/diffusion.py`.

python train.py --config configs/video.py --workdir runs/video          an accelerator (not measured)
python train.py --config configs/video.py:demo --workdir runs/video     two CPU cores
python train.py --config configs/video.py:test --workdir /tmp/test      seconds, for tests

Words combine in any order. `images` trains on images too, in every step.
"""

from zoo.config import arguments, load


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, ("images", "demo", "test"))
    config = load(f"diffusion:{','.join(sorted(words - {'images'}))}")
    data, rate, options = dict(source="scenes/video", size=32, frames=16, text_length=48, batch_size=64), 8, ""
    if "demo" in words:
        data, options = dict(source="scenes/video_one", size=16, frames=8, text_length=20, batch_size=32), "omit=0"
    if "test" in words:
        data, rate = dict(source="scenes/video_one", size=16, frames=4, text_length=16, batch_size=8), 4
        options = "examples=32"
    source = data["source"]
    config.data.update(data | dict(source=f"{source}?fps={rate}" + (f"&{options}" if options else "")))
    config.method.net.space_time = "factorized"
    if "images" in words:
        images = f"{source}?{options}" if options else source
        config.data.update(dict(images=images, images_batch_size=2 * config.data.batch_size))
        config.method = dict(name="joint", weight=1.0, base=config.method)
    return config
