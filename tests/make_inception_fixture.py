"""Makes the fixtures of Inception and of the Frechet distance with the packages to agree with.

Not a test, and needed only to make them anew. In an environment of its own:

  pip install torch==2.13.0
  pip install --no-deps torchvision==0.28.0 pytorch-fid==0.3.0 clean-fid==0.1.35
  pip install numpy scipy pillow requests tqdm
  python tests/make_inception_fixture.py

The network's 90 MB of weights are no fixture: they are random numbers that `random_tensor` gives again.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).with_name("fixtures")


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 weights that a tensor of torch's name and shape has here: the same ones everywhere.

    What passes through the network keeps its scale roughly, and every batch norm has its own statistics.
    """
    uniform = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape)  # a stream that numpy never changes
    if name.endswith("running_var") or name.endswith("bn.weight"):
        values = 0.5 + uniform
    else:
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 400
        values = (2 * uniform - 1) * np.sqrt(5 / fan_in)
    return values.astype(np.float32)


def random_images() -> list[np.ndarray]:
    """Returns uint8 images (H, W, 3) of several sizes: waves that a resize can follow, and noise."""
    random = np.random.RandomState(0)
    images = []
    for height, width in ((32, 48), (299, 299), (330, 421)):
        y, x = np.mgrid[:height, :width][..., None] / max(height, width)
        waves = np.sin(20 * random.random_sample(3) * x + 30 * random.random_sample(3) * y + random.random_sample(3))
        noise = random.random_sample((height, width, 3))
        images.append(np.uint8(255 * (0.35 * (waves + 1) + 0.3 * noise)))
    return images


def make_frechet() -> None:
    """Two samples, (200, 64), non-negative and correlated as Inception's features are, and what others say of them."""
    from cleanfid.fid import frechet_distance
    from pytorch_fid.fid_score import calculate_frechet_distance

    random = np.random.RandomState(0)
    mixing = random.standard_normal((64, 64)) * np.exp(-np.arange(64) / 12)[:, None]

    def features(shift, scale):
        z = random.standard_normal((200, 64)) * scale
        return np.maximum(z @ mixing / 4 + shift, 0).astype(np.float32)

    a, b = features(0.3, 1.0), features(0.5, 1.3)
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a.astype(np.float64), b.astype(np.float64))]
    theirs = {
        "pytorch_fid": calculate_frechet_distance(*moments[0], *moments[1]),
        "clean_fid": frechet_distance(*moments[0], *moments[1]),
    }
    print(theirs)
    np.savez_compressed(FIXTURES / "frechet.npz", features_a=a, features_b=b, **theirs)


def make_inception() -> None:
    """The features of `random_images` by pytorch-fid's network of random weights, and a part of what it was given."""
    import torch
    from cleanfid.resize import build_resizer
    from pytorch_fid import inception

    shapes = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    shapes = {name: tuple(x.shape) for name, x in shapes.items() if not name.endswith("num_batches_tracked")}
    tensors = {name: torch.from_numpy(random_tensor(name, shape)) for name, shape in shapes.items()}
    inception.load_state_dict_from_url = lambda *args, **options: tensors
    whole, bare = (
        inception.InceptionV3().eval(),
        inception.InceptionV3(resize_input=False, normalize_input=False).eval(),
    )
    clean = build_resizer("clean")
    images = random_images()

    def given(image):  # what pytorch-fid's network makes of an image first
        x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        return 2 * torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1

    inputs = {
        "pytorch": np.concatenate([given(image).permute(0, 2, 3, 1).numpy() for image in images]),
        "clean": (np.stack([clean(image) for image in images]) - 128) / 128,
    }
    arrays = {f"input_{name}": x[:, ::13, ::13].astype(np.float32) for name, x in inputs.items()}
    arrays["shapes"] = json.dumps(shapes)
    with torch.no_grad():
        ours = [whole(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0] for image in images]
        arrays["features_pytorch"] = torch.cat(ours)[:, :, 0, 0].numpy()
        x = torch.from_numpy(inputs["clean"]).float().permute(0, 3, 1, 2)
        arrays["features_clean"] = bare(x)[0][:, :, 0, 0].numpy()
    np.savez_compressed(FIXTURES / "inception" / "features.npz", **arrays)


def main() -> None:
    import torch

    # Beside a torch for CPUs alone, torchvision imports only if its operators have names.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    make_frechet()
    make_inception()


if __name__ == "__main__":
    main()
