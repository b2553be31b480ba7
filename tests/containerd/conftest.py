"""Debian's containerd on directories of its own, with shims of ours on its PATH."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containerd import Containerd, CriSettings, major_version, make_image, missing, running, write_shim
from support.cri.client import Cri, bridge, open_cri
from support.kata_containers import KataContainers
from support.netns import made

ROOT = Path(__file__).parent.parent.parent
# What only containerd 2 can do (`nox -s containerd2`).
collect_ignore = ["test_containerd2.py"] if major_version() < 2 else []


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI archive of busybox."""
    if why := missing():
        pytest.skip(why)
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `containerd-shim-host-v2` and, from the source tree, `containerd-shim-kata-v2`."""
    directory = tmp_path_factory.mktemp("shims")
    for name in ("host", "kata"):
        program = ROOT / "tests" / "support" / f"{name}_shim.py"
        write_shim(directory / f"containerd-shim-{name}-v2", sys.executable, program)
    return directory


@pytest.fixture
def containerd(shims: Path, image: Path) -> Iterator[Containerd]:
    """A containerd of this test's own."""
    with running(shims, image) as containerd:
        yield containerd


@pytest.fixture
def kata(guest_image: None, artifacts: Path, containerd: Containerd) -> Iterator[KataContainers]:
    """A containerd whose containers run in VMs; traces and logs are among the test's artifacts."""
    yield KataContainers(containerd, artifacts)
    if containerd.log.exists():
        shutil.copy(containerd.log, artifacts)


@pytest.fixture
def cri(guest_image: None, artifacts: Path, shims: Path, image: Path, tmp_path: Path) -> Iterator[Cri]:
    """containerd's CRI plugin, with a bridge for its pods, all in a network namespace of this test's own."""
    bridge(tmp_path / "cni")
    logs = artifacts / "containers"
    logs.mkdir()
    with made() as (network,), running(shims, image, CriSettings(tmp_path / "cni", network.prefix)) as containerd:
        try:
            with open_cri(containerd, network, logs) as client:
                yield client
        finally:
            shutil.copy(containerd.log, artifacts)
