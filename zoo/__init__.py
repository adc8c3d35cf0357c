"""A zoo of image and video generators: one training loop, one sampling command, one set of measures."""


def load(name: str):
    """Opens a trained network: zoo.load("runs/demo").sample(["a red star"], seed=0).

    Args:
      name: workdir of a run, folder of a CLIP, or "zoo:clip".

    Returns:
      A `zoo.runs.run.Run`, or a `ClipRun` for a CLIP.

    Raises:
      UserError: there is no such network, or it cannot be read.
    """
    from zoo.runs.dependencies import open_any  # here, so that `import zoo` is quick

    return open_any(name)
