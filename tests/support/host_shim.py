"""A shim for tests of the protocol: its containers are processes of the host, in a chroot.

What it shares with `containerd-shim-kata-v2` is everything but the sandbox: command line, bootstrap, daemon, ttrpc,
events, delete. Install it with `support.containerd.write_shim`.
"""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kata_runtime.shim.launch import Launch
from kata_runtime.shim.main import main


def daemon(launch: Launch, listener: socket.socket) -> int:
    from kata_runtime.shim import daemon as real

    return real.main(launch, listener, open_service)


@asynccontextmanager
async def open_service(shim: Any) -> AsyncIterator[Any]:
    from support.host_tasks import HostTasks

    service = HostTasks(shim)
    yield service
    await service.close()


if __name__ == "__main__":
    sys.exit(main(daemon=daemon))
