"""Fresh systems of Debian 12 and 13."""

import os
from collections.abc import Iterator

import pytest

from support.fresh_root import System, debootstrap, running


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A fresh Debian with nothing but apt."""
    if os.geteuid() != 0:
        pytest.fail("needs root")
    root = tmp_path_factory.mktemp("deb") / "root"
    debootstrap(root, request.param)
    with running(root) as found:
        yield found
