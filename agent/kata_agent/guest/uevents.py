"""Waiting for devices: the kernel tells of each that comes or goes (kobject uevents, netlink(7))."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["awaited"]

_T = TypeVar("_T")
# linux/netlink.h; the group of events as the kernel itself sends them.
_NETLINK_KOBJECT_UEVENT: Final = 15
_KERNEL_EVENTS: Final = 1
_EVENT_SIZE: Final = 1 << 16


async def awaited(look: Callable[[], _T | None], within: float) -> _T | None:
    """What `look` finds: it looks now, and whenever a device has come or gone. None after `within` seconds."""
    changed = asyncio.Event()
    events = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        _NETLINK_KOBJECT_UEVENT,
    )
    with events:
        events.bind((0, _KERNEL_EVENTS))
        loop = asyncio.get_running_loop()
        loop.add_reader(events, lambda: _drain(events, changed))
        try:
            async with asyncio.timeout(within):
                while True:
                    changed.clear()
                    if (found := look()) is not None:
                        return found
                    await changed.wait()
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(events)


def _drain(events: socket.socket, changed: asyncio.Event) -> None:
    """What was told doesn't matter (and ENOBUFS says that it was a lot)."""
    try:
        while events.recv(_EVENT_SIZE):
            pass
    except OSError:
        pass
    changed.set()
