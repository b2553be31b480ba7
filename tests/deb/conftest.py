"""Fresh systems of Debian 12 and 13."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fresh_root import System, debootstrap, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of the package."""
    directory = tmp_path_factory.mktemp("packages")
    build = (sys.executable, "-P", "debian/build.py", "--output", str(directory))
    for number in (1, 2):
        subprocess.run([*build, "--version", f"0.1.0-{number}"], check=True, cwd=ROOT)
    return sorted(directory.glob("*.deb"))


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A fresh Debian with nothing but apt."""
    if os.geteuid() != 0:
        pytest.fail("needs root")
    root = tmp_path_factory.mktemp("deb") / "root"
    debootstrap(root, request.param)
    with running(root) as found:
        yield found
