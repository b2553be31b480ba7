"""A guest's connection to a port of the host: the backend is nobody, the directories are root's alone."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from kata_common.places import PORTS
from kata_runtime.hypervisor.vsock.backend import _make_ports, start_vsock_backend
from kata_runtime.process import Privileges
from kata_traces.forwarder.inbox import Origin
from kata_traces.forwarder.sources import HybridSource, Template
from support.vsock_frontend import REQUEST, RESPONSE, RST, Frontend

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")]

NOBODY = Privileges(0x7000_0001, 0x7000_0001)


@pytest.mark.parametrize("privileges", [NOBODY, None], ids=["rootless", "root"])
async def test_a_guest_reaches_who_waited_for_it(tmp_path: Path, privileges: Privileges | None) -> None:
    """Who listens makes its socket the moment the directory is there, as the trace forwarder does."""
    accepted: list[tuple[socket.socket, Origin]] = []
    changed = asyncio.Event()

    def accept(stream: socket.socket, origin: Origin) -> None:
        accepted.append((stream, origin))
        changed.set()

    def talk(chardev: socket.socket) -> None:
        guest = Frontend(chardev, timeout=30)  # the backend starts meanwhile
        guest.handshake()
        guest.boot()
        guest.packet(REQUEST, 5000, 10240)
        guest.expect(RESPONSE, 10240)
        guest.packet(REQUEST, 5000, 7)
        guest.expect(RST, 7)
        guest.close()

    source = HybridSource(Template.parse(f"{tmp_path}/{{ID}}/ports/vsock.sock"), 10240, accept, changed.set)
    ready = asyncio.Event()
    task = asyncio.create_task(source.run(ready.set))
    await ready.wait()
    directory = tmp_path / "s1"
    directory.mkdir(mode=0o700)
    async with asyncio.timeout(30), start_vsock_backend(directory, privileges=privileges) as backend:
        while not source.sockets:
            changed.clear()
            await changed.wait()
        await asyncio.to_thread(talk, backend.chardev)
        while not accepted:
            changed.clear()
            await changed.wait()
        ((stream, origin),) = accepted
        stream.close()
        assert origin.sandbox_id == "s1"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_directory_is_there_when_it_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that somebody made in it before had root's group, and the guest was refused."""
    changed = []

    def chown(path: Path, uid: int, gid: int) -> None:
        changed.append(gid)
        assert not (tmp_path / PORTS).exists()

    monkeypatch.setattr(os, "chown", chown)
    ports = _make_ports(tmp_path, NOBODY)
    assert changed == [NOBODY.gid]
    assert stat.S_IMODE(ports.stat().st_mode) == 0o2710
