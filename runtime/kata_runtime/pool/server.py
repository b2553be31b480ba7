"""Keeps members of the pool ready, and hands them over: `kata-runtime factory serve`.

It may be stopped and started at any time: members that nobody has taken end with it, and those that were taken are
their takers'. A new member is begun when one is taken, at a lower priority than any start. Where memory runs short all
that wait are ended, and none is begun for a while.
"""

import asyncio
import json
import logging
import os
import select
import signal
import socket
import stat
import struct
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from kata_common.places import POOL
from kata_runtime.config.model import Config
from kata_runtime.errors import HostError, TemplateError
from kata_runtime.pool import wire
from kata_runtime.process import leave_behind

__all__ = ["serve"]

_log = logging.getLogger("kata.pool")

_MEMBER = "kata_runtime.member"
# Seconds before another member is begun after one has ended before it was ready: doubled up to the last.
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0
# Seconds without new members after memory has been short.
_RELIEF = 60.0
# Some task has waited for memory for 150 ms of a second (Documentation/accounting/psi.rst).
_PRESSURE = Path("/proc/pressure/memory")
_TRIGGER = b"some 150000 1000000\0"
# systemd's sd_listen_fds(3).
_FIRST_LISTEN_FD = 3


async def serve(config: Config, image_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        TemplateError: the configuration wants no pool.
        HostError: the socket can't be made.
    """
    if not (config.factory.vm_cache_number and config.factory.enable_template):
        hint = "set [factory] vm_cache_number, and enable_template = true: members are clones"
        raise TemplateError("the configuration wants no pool", hint=hint)
    events = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(number, stop.set)
    with ExitStack() as stack:
        listener = _listener(config.factory.vm_cache_endpoint, stack)
        _be_known(Path(listener.getsockname()), stack)
        pool = _Pool(config, image_dir)
        stack.callback(pool.empty)
        stack.callback(events.remove_reader, listener)
        events.add_reader(listener, pool.accept, listener)
        _watch_memory(pool, stack)
        refilling = asyncio.create_task(pool.refill())
        ending = asyncio.create_task(stop.wait())
        await asyncio.wait({refilling, ending}, return_when=asyncio.FIRST_COMPLETED)
        refilling.cancel()
        ending.cancel()


def _listener(endpoint: str, stack: ExitStack) -> socket.socket:
    """systemd's socket, where it has given us one, else our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        listener = stack.enter_context(socket.socket(fileno=_FIRST_LISTEN_FD))
        os.set_inheritable(listener.fileno(), False)
        if listener.type != socket.SOCK_SEQPACKET:
            raise HostError("the socket of systemd is of another type", hint="ListenSequentialPacket= in its unit")
        listener.setblocking(False)
        return listener
    path = Path(endpoint)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if _answers(path):
            raise HostError(f"another pool serves at {path}", hint="stop it, or set [factory] vm_cache_endpoint")
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(64)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror or error}", hint="correct [factory] vm_cache_endpoint") from error
    stack.callback(path.unlink, missing_ok=True)
    return listener


def _be_known(endpoint: Path, stack: ExitStack) -> None:
    """Let containerd's shim find us, which has read no configuration when it asks; the last pool is the one."""
    known = Path(POOL)
    try:
        known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        known.unlink(missing_ok=True)
        known.symlink_to(endpoint)
    except OSError as error:
        _log.warning("containerd's shims take nothing from the pool: %s: %s", known, error.strerror)
        return

    def forget() -> None:
        with suppress(OSError):
            if known.readlink() == endpoint:
                known.unlink()

    stack.callback(forget)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _watch_memory(pool: "_Pool", stack: ExitStack) -> None:
    """Empty the pool where memory is short, if this kernel tells."""
    try:
        pressure = os.open(_PRESSURE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        _log.info("%s can't be watched: the pool looks at the free memory before it grows", _PRESSURE)
        return
    stack.callback(os.close, pressure)
    try:
        os.write(pressure, _TRIGGER)
    except OSError:
        return
    # What it tells is an exceptional condition, which no event loop watches for; that of an epoll of our own is plain.
    watch = stack.enter_context(select.epoll())
    watch.register(pressure, select.EPOLLPRI)

    def short() -> None:
        watch.poll(0)
        pool.relieve()

    asyncio.get_running_loop().add_reader(watch.fileno(), short)
    stack.callback(asyncio.get_running_loop().remove_reader, watch.fileno())


class _Pool:
    """The members, each by the socket to it; those that are ready in the order in which they will be taken."""

    def __init__(self, config: Config, image_dir: Path) -> None:
        self._wanted = config.factory.vm_cache_number
        self._request = {"config": asdict(config), "image_dir": str(image_dir)}
        self._members: dict[int, socket.socket] = {}
        self._ready: list[int] = []
        self._changed = asyncio.Event()
        self._retry = _FIRST_RETRY
        self._not_before = 0.0

    async def refill(self) -> None:
        """Begin a member whenever there are too few, one after the other."""
        events = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            wait = self._not_before - events.time()
            # One at a time: they are begun beside what the host is for.
            if wait <= 0 and len(self._members) < self._wanted and len(self._ready) == len(self._members):
                self._begin()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait if wait > 0 and len(self._members) < self._wanted else None):
                    await self._changed.wait()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = {**self._request, "control": theirs.fileno()}
            try:
                leave_behind(_MEMBER, json.dumps(request).encode(), pass_fds=(theirs.fileno(),))
            except HostError as error:
                _log.warning("no member of the pool: %s", error)
                ours.close()
                self._postpone()
                return
        ours.setblocking(False)
        self._members[ours.fileno()] = ours
        asyncio.get_running_loop().add_reader(ours, self._heard, ours.fileno())

    def _heard(self, fd: int) -> None:
        """A member is ready, or has ended."""
        stream = self._members[fd]
        try:
            data = stream.recv(wire.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and fd not in self._ready:
            self._ready.append(fd)
            self._retry = _FIRST_RETRY
        elif not data:
            if fd not in self._ready:
                self._postpone()
            self._drop(fd)
        self._changed.set()

    def _postpone(self) -> None:
        self._not_before = asyncio.get_running_loop().time() + self._retry
        self._retry = min(self._retry * 2, _LAST_RETRY)

    def _drop(self, fd: int) -> None:
        stream = self._members.pop(fd)
        if fd in self._ready:
            self._ready.remove(fd)
        asyncio.get_running_loop().remove_reader(stream)
        stream.close()
        self._changed.set()

    def accept(self, listener: socket.socket) -> None:
        """Pass a client on to the member that has waited longest."""
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            # pid, uid, gid: unix(7).
            _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            while uid == os.geteuid() and self._ready:
                fd = self._ready[0]
                if wire.send(self._members[fd], {"take": True}, (client.fileno(),)):
                    # It closes its end when it has been taken, and says that it is ready where it has not.
                    self._ready.remove(fd)
                    return
                self._drop(fd)
            wire.send(client, {"taken": 0})

    def relieve(self) -> None:
        """Memory is short: end all that nobody has taken."""
        if self._members:
            _log.warning("memory is short: %d guests that nobody has taken are ended", len(self._members))
        self._not_before = asyncio.get_running_loop().time() + _RELIEF
        self.empty()

    def empty(self) -> None:
        """End all that nobody has taken."""
        for fd in list(self._members):
            self._drop(fd)
