"""Debian's containerd on directories of its own, with shims of ours on its PATH."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containerd import Containerd, make_image, missing, running, write_shim

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI archive of busybox."""
    if why := missing():
        pytest.skip(why)
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `containerd-shim-host-v2`."""
    directory = tmp_path_factory.mktemp("shims")
    write_shim(directory / "containerd-shim-host-v2", sys.executable, ROOT / "tests" / "support" / "host_shim.py")
    return directory


@pytest.fixture
def containerd(shims: Path, image: Path) -> Iterator[Containerd]:
    """A containerd of this test's own."""
    with running(shims, image) as containerd:
        yield containerd
