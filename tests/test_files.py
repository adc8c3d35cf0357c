"""Paths of this machine, and addresses, which are refused in one line."""

from pathlib import Path

import pytest

from zoo import loop
from zoo.data.pipeline import open_source
from zoo.errors import UserError
from zoo.files import local, write_json
from zoo.runs.dependencies import open_any, open_run


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "hf://a/b", Path("gs://bucket/run")])
def test_an_address_is_refused(address, tiny):
    calls = (
        lambda: local(address),
        lambda: loop.train(tiny(), address),
        lambda: open_run(address),
        lambda: open_any(str(address)),
        lambda: write_json(address, {}),
        lambda: open_source(f"folder:{address}", "train", 8, 1),
    )
    for call in calls:
        with pytest.raises(UserError, match="no path of this machine: mount the bucket"):
            call()


@pytest.mark.parametrize("path", ["runs/demo", "/tmp/x", "a:b", "C:/x", "zoo:clip", "x/gs://y"])
def test_paths_are_paths(path):
    assert local(path) == Path(path)
    assert local("~/x") == Path.home() / "x"
