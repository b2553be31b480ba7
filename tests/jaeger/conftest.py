"""What the tests with Jaeger share."""

from pathlib import Path

import pytest

from support.kata import Kata, build_image


@pytest.fixture
def kata(artifacts: Path) -> Kata:
    """A `kata-runtime` whose guest has this checkout's agent."""
    build_image()
    return Kata(artifacts)
