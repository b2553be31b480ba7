"""What VM tests share."""

from pathlib import Path

import pytest

from support.kata import Kata, build_image


@pytest.fixture(scope="session")
def guest_image() -> None:
    """The guest's image, up to date with this checkout's agent."""
    build_image()


@pytest.fixture
def kata(artifacts: Path, guest_image: None) -> Kata:
    """A `kata-runtime` with traces and logs among the test's artifacts; tracing is off until the test turns it on."""
    return Kata(artifacts)
