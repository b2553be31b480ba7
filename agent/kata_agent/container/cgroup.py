"""A container's cgroup (version 2): what it uses, who is in it, and when it runs out of memory.

crun makes the cgroup and sets its limits; this reads it, watches it and empties it. Files and their meaning: kernel
documentation, admin-guide/cgroup-v2.rst.
"""

import asyncio
import errno
import os
import select
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["Cgroup", "Watch"]

# What StatsContainer reports, where it exists.
STATS: Final = (
    "cpu.stat",
    "cpu.max",
    "cpu.pressure",
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "memory.events",
    "memory.swap.current",
    "memory.swap.max",
    "memory.pressure",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
    "hugetlb.2MB.current",
    "hugetlb.2MB.max",
)


class Watch:
    """Calls back when a cgroup file changes (memory.events, cgroup.events).

    The kernel tells it as POLLPRI on the open file, which the event loop can't ask for itself: hence an epoll of its
    own inside the loop's.
    """

    def __init__(self, path: Path, changed: Callable[[str], None]) -> None:
        """Raises OSError where the file isn't there."""
        self._changed = changed
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._fd, select.EPOLLPRI)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)
        self.read()  # only a change after a read is reported

    def read(self) -> str:
        """The content now; empty where the cgroup is gone."""
        try:
            return os.pread(self._fd, 4096, 0).decode("ascii", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> None:
        self._epoll.poll(0)
        content = self.read()
        if content:
            self._changed(content)
        else:
            self.close()  # a removed cgroup's file reports forever


def _value(content: str, key: str) -> int:
    for line in content.splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


class Cgroup:
    """The cgroup at `path`, which need not exist (yet, or where the host of a test has no version 2)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._memory: Watch | None = None

    def stats(self) -> dict[str, str]:
        """The content of each file of STATS that exists."""
        found = {}
        for name in STATS:
            with suppress(OSError):
                found[name] = (self.path / name).read_text()
        return found

    def pids(self) -> list[int]:
        """Processes in it and below it, as the guest numbers them."""
        found: set[int] = set()
        pending = [self.path]
        while pending:  # not os.walk, whose stack a workload could make overflow
            directory = pending.pop()
            with suppress(OSError):
                found.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
            with suppress(OSError), os.scandir(directory) as entries:
                pending += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(found)

    def memory(self) -> int:
        """Bytes that it uses; 0 where that can't be read."""
        try:
            return int((self.path / "memory.current").read_text())
        except (OSError, ValueError):
            return 0

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        try:
            return _value((self.path / "memory.events").read_text(), "oom_kill")
        except OSError:
            return 0

    def watch_memory(self, on_oom: Callable[[], None]) -> None:
        """Call `on_oom` for each change that saw the kernel kill something for memory."""
        seen = self.oom_kills()

        def changed(content: str) -> None:
            nonlocal seen
            kills = _value(content, "oom_kill")
            if kills > seen:
                seen = kills
                on_oom()

        with suppress(OSError):
            self._memory = Watch(self.path / "memory.events", changed)

    def kill(self) -> bool:
        """SIGKILL to all in it, atomically, forks included; False where the cgroup isn't there."""
        try:
            (self.path / "cgroup.kill").write_text("1")
        except OSError:
            return False
        return True

    async def emptied(self) -> None:
        """Return when no process is left in it."""
        empty = asyncio.Event()

        def changed(content: str) -> None:
            if not _value(content, "populated"):
                empty.set()

        try:
            watch = Watch(self.path / "cgroup.events", changed)
        except OSError:
            return
        try:
            changed(watch.read() or "populated 0")
            await empty.wait()
        finally:
            watch.close()

    def close(self) -> None:
        """Stop watching."""
        if self._memory:
            self._memory.close()
            self._memory = None

    def remove(self) -> None:
        """Remove it and what is below it; it must be empty. Raises OSError."""
        self.close()
        from kata_common.removal import remove_tree

        if left := remove_tree(self.path, files=False):
            raise OSError(errno.EBUSY, str(left))
