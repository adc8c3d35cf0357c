"""Draws a row of samples for each run under the same prompts: the image of the README.

python -m benchmarks.teaser --out docs/teaser.png diffusion=runs/demo GAN=runs/gan_demo
"""

import argparse
import textwrap
from pathlib import Path

import matplotlib.figure

from zoo.runs.dependencies import open_run

PROMPTS = [line for line in Path("configs/demo_prompts.txt").read_text().splitlines() if line][:8]


def draw(runs: dict[str, str], seed: int) -> matplotlib.figure.Figure:
    """Returns the figure: a row a run, a column a prompt.

    Args:
      runs: name of the row -> workdir.
      seed: seed of the samples.
    """
    figure = matplotlib.figure.Figure(figsize=(1.25 * len(PROMPTS) + 1.3, 1.25 * len(runs) + 0.6), dpi=100)
    axes = figure.subplots(len(runs), len(PROMPTS), squeeze=False, gridspec_kw=dict(wspace=0.05, hspace=0.05))
    for row, (name, workdir) in zip(axes, runs.items(), strict=True):
        images = open_run(workdir).sample(PROMPTS, seed=seed)  # (N, T, H, W, 3)
        row[0].set_ylabel(textwrap.fill(name, 12), rotation=0, ha="right", va="center", fontsize=10)
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image[0], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for axis, prompt in zip(axes[0], PROMPTS, strict=True):
        axis.set_title(textwrap.fill(prompt, 18), fontsize=7)
    return figure


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=WORKDIR", help="name of the row, and the run")
    parser.add_argument("--out", default="docs/teaser.png", help="PNG file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    chosen = parser.parse_args()
    runs = dict(run.rsplit("=", 1) for run in chosen.runs)
    draw(runs, chosen.seed).savefig(chosen.out, bbox_inches="tight")


if __name__ == "__main__":
    main()
