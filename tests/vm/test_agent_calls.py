"""Calls of the agent that no command makes, answered by a real guest."""

import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kata_common import linux
from kata_protos import agent_pb2 as pb
from kata_runtime.errors import AgentError
from kata_runtime.mount import private_mount_namespace
from kata_runtime.mount_tree import unmount_below
from support import leaks
from support.hostile import HostileGuest, bind_mount, hostile_guest

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(guest_image: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostileGuest]:
    private_mount_namespace()
    before = leaks.look()
    async with hostile_guest(tmp_path_factory.mktemp("host"), tmp_path_factory.mktemp("logs")) as guest:
        yield guest
    assert leaks.look(before).left_since(before) == []


async def call(guest: HostileGuest, name: str, **fields: Any) -> Any:
    agent = guest.sandbox._agent
    assert agent is not None
    return await agent.call(getattr(agent.service, name), getattr(pb, f"{name}Request")(**fields))


async def test_interfaces_and_routes(guest: HostileGuest) -> None:
    listed = (await call(guest, "ListInterfaces")).Interfaces
    assert [(entry.name, [a.address for a in entry.IPAddresses][:1]) for entry in listed] == [("lo", ["127.0.0.1"])]
    assert list((await call(guest, "ListRoutes")).Routes) == []


async def test_memory_and_files(guest: HostileGuest, tmp_path: Path) -> None:
    """A file that is sent into memory which a container mounts; that memory then grows."""
    memory = tmp_path / "pods/u/volumes/kubernetes.io~empty-dir/memory"
    memory.mkdir(parents=True)
    linux.mount("memory", memory, "tmpfs", 0, "size=8m")
    log = tmp_path / "termination"
    log.touch()
    try:
        mounts = [bind_mount(memory, "/memory"), bind_mount(log, "/dev/termination-log")]
        client = await guest.attacker("client", privileged=False, mounts=mounts)
        size = "status = os.statvfs('/memory'); result = status.f_blocks * status.f_frsize"
        assert await client.does(size) == 8 << 20
        (place,) = guest.sandbox._directory.volumes._memory.values()
        data = os.urandom(3 << 19)
        for offset in (0, 1 << 20):
            part = data[offset : offset + (1 << 20)]
            fields = {"file_size": len(data), "file_mode": stat.S_IFREG | 0o640, "uid": 7, "gid": 8}
            await call(guest, "CopyFile", path=f"{place}/in/file", offset=offset, data=part, **fields)
        told = await client.does(
            """
            import hashlib
            status, content = os.stat("/memory/in/file"), open("/memory/in/file", "rb").read()
            result = [stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, hashlib.sha256(content).hexdigest()]
            """
        )
        assert told == [0o640, 7, 8, hashlib.sha256(data).hexdigest()]
        with pytest.raises(AgentError, match="expected a path below"):
            await call(guest, "CopyFile", path="/etc/passwd", file_size=0)
        grown = pb.Storage(driver="ephemeral", mount_point=place, options=["size=16m"])
        await call(guest, "UpdateEphemeralMounts", storages=[grown])
        assert await client.does(size) == 16 << 20
        await client.does("write('/dev/termination-log', 'because')")
        asked = {"log_type": "termination_log", "container_id": "client"}
        assert (await call(guest, "GetDiagnosticData", **asked)).data == "because"
    finally:
        unmount_below(memory)


async def test_what_is_no_swap(guest: HostileGuest) -> None:
    """The guest's disk, its only one, is found by its place; it is none."""
    found = []
    for slot in range(32):
        with pytest.raises(AgentError) as refused:
            await call(guest, "AddSwap", PCIPath=[slot])
        found += [slot] if "no swap signature" in str(refused.value) else []
    assert len(found) == 1
    with pytest.raises(AgentError, match="has no swap signature"):
        await call(guest, "AddSwapPath", path="/dev/vda")
