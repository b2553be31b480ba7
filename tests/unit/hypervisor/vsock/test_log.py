"""Root in a guest, which has the device's registers, resets and breaks the device again and again."""

import asyncio
import os
import select
import socket
from pathlib import Path

import pytest

from kata_runtime.hypervisor.vsock.backend import start_vsock_backend
from support.vsock_frontend import Frontend

pytestmark = pytest.mark.slow

RESETS = 200


def flood(chardev: socket.socket) -> None:
    """What QEMU passes on of a driver that publishes more buffers than its ring has, and starts again."""
    guest = Frontend(chardev, timeout=30)
    guest.handshake()
    guest.boot()
    for _ in range(RESETS):
        guest.tx.publish(50_000)
        guest.tx.signal(force=True)
        assert select.select([guest.tx.error], [], [], 30)[0], "the backend has not noticed"
        os.eventfd_read(guest.tx.error)
        guest.stop()
        guest.rx.reset()
        guest.tx.reset()
        guest.start()
    guest.close()


async def test_it_says_so_ten_times(tmp_path: Path) -> None:
    log = tmp_path / "vsock.log"
    async with asyncio.timeout(60), start_vsock_backend(tmp_path, privileges=None, log_path=log) as backend:
        await asyncio.to_thread(flood, backend.chardev)
        assert await backend.child.wait() == 0
    _, *lines = log.read_text().splitlines()
    assert len(lines) == 10
    assert all("the device stops until the guest resets it: available index ran away" in line for line in lines)
    assert [line.endswith("; further times are not logged") for line in lines] == [False] * 9 + [True]
