"""A zoo of image and video generators: one training loop, one sampling command, one set of measures."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.runs.run import ClipRun, Run

__version__ = "0.1.0"


def load(name: str) -> "Run | ClipRun":
    """Opens a trained network: zoo.load("runs/demo").sample(["a red star"], seed=0).

    Args:
      name: workdir of a run, folder of a CLIP, or "zoo:clip".

    Returns:
      The run, or for a CLIP a `ClipRun`.

    Raises:
      UserError: there is no such network, or it cannot be read.
    """
    from zoo.runs.dependencies import open_any  # here, so that `import zoo` is quick

    return open_any(name)
