"""A guest whose root is against us. One boot serves all attacks of a module."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from kata_runtime.mount import private_mount_namespace
from support import leaks
from support.hostile import Attacker, HostileGuest, hostile_guest

ARTIFACTS = Path(__file__).parents[2] / "artifacts"


@pytest.fixture(scope="session", autouse=True)
def _own_mounts() -> None:
    """As the runtime, which is in this process here: what it mounts is seen by it and its helpers alone."""
    private_mount_namespace()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(guest_image: None) -> Iterator[None]:
    """The guest of a module is gone after it."""
    before = leaks.look()
    yield
    assert leaks.look(before).left_since(before) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(_nothing_left: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostileGuest]:
    """A sandbox in this process."""
    logs = ARTIFACTS / "hostile-guest"
    shutil.rmtree(logs, ignore_errors=True)
    async with hostile_guest(tmp_path_factory.mktemp("host"), logs) as guest:
        yield guest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def root(guest: HostileGuest) -> Attacker:
    """Root in the guest: a privileged container that has mounted the share."""
    return await guest.attacker("root", privileged=True)
