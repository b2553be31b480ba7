"""Child processes of the agent, its own and those it inherits.

Two kinds of children end here: those the agent starts (crun, modprobe) and those it inherits as PID 1 or child
subreaper (a container's init once crun has left, an exec'd process, anything a workload orphans). Who waits for which
must not be a race, hence:

- A process that somebody waits for has a `Child`. Its pidfd tells the event loop when it ended and makes signals safe
  against a reused pid.
- As PID 1 everything that ended is collected on SIGCHLD, whoever it was. What belongs to a `Child` is delivered to it,
  so it makes no difference whether SIGCHLD or the pidfd came first: there is one event loop, and one of them finds
  nothing.
- A container's init may end before the agent has read its pid from crun's file. While such a pid is `expected`, the
  status of unknown processes is kept; `adopt` finds it there. Nothing else needs to be held back.
- A process that isn't PID 1 or subreaper of a workload (tests) does without SIGCHLD, and leaves other people's children
  alone.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kata_common import linux
from kata_common.threads import in_thread

__all__ = ["Child", "Reaper"]

# A fork bomb that dies while a container is being created must not eat the guest's memory.
MAX_KEPT: Final = 4096
# linux/sched.h; set by fork(2), cleared by execve(2).
PF_FORKNOEXEC: Final = 0x40


class Child:
    """A process that the agent waits for. `status` is 0-255, 128 + N where signal N ended it.

    `became` tells, of one that failed, whether it ever was the program that it was made for (execve(2)).
    """

    __slots__ = ("_ended", "became", "ended_ns", "pid", "pidfd", "status")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status = -1
        self.became = True
        self.ended_ns = 0  # CLOCK_MONOTONIC
        self._ended = asyncio.Event()

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    async def wait(self) -> int:
        """The status, as soon as there is one; for any number of waiters."""
        await self._ended.wait()
        return self.status

    def signal(self, number: int) -> bool:
        """Send a signal; False where the process has already ended. Raises OSError EINVAL for no such signal."""
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def _finish(self, status: int, *, became: bool = True) -> None:
        self.status = status
        self.became = became
        self.ended_ns = time.monotonic_ns()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self._ended.set()


class Reaper:
    """Starts processes and collects the ends of all.

    With `orphans` it collects every child that ends (PID 1, subreaper); it then must be made in the main thread. An
    async context manager; leaving it stops collecting, processes are not touched.
    """

    def __init__(self, *, orphans: bool) -> None:
        self._orphans = orphans
        self._children: dict[int, Child] = {}
        self._expected = 0
        self._kept: dict[int, tuple[int, bool]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> "Reaper":
        self._loop = asyncio.get_running_loop()
        if self._orphans:
            self._loop.add_signal_handler(signal.SIGCHLD, self.collect)
            self.collect()  # what ended before the handler was there
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._loop
        if self._orphans:
            self._loop.remove_signal_handler(signal.SIGCHLD)
        for child in list(self._children.values()):
            self._forget(child)
            os.close(child.pidfd)
            child.pidfd = -1

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdio: tuple[int, int, int],
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a program with these descriptors as 0, 1 and 2 (all above 2); the caller keeps and closes its own.

        Raises OSError where the program can't be started.
        """
        return self._claim(linux.spawn(argv, stdio, os.environ if env is None else env))

    async def spawn_after(
        self,
        prepare: Callable[[], None],
        argv: Sequence[str],
        *,
        stdio: tuple[int, int, int],
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """`spawn` from a thread that has done `prepare` first, for itself alone (unshare, a scheduling policy).

        Raises OSError where it can't be started, and what `prepare` raises.
        """

        def start() -> int:
            prepare()
            return linux.spawn(argv, stdio, os.environ if env is None else env)

        with self.expected():
            return self.adopt(await in_thread("spawn", start))

    def adopt(self, pid: int) -> Child:
        """Wait for a process that crun left to us, whether it still runs or already ended. Raises
        ProcessLookupError.
        """
        kept = self._kept.pop(pid, None)
        if kept is not None:
            child = Child(pid, -1)
            child._finish(kept[0], became=kept[1])
            return child
        return self._claim(pid)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Within the block a process may be left to us whose pid is not known yet."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._kept.clear()

    def collect(self) -> None:
        """Take the status of every child that has ended. Called on SIGCHLD."""
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if result is None:
                return
            # What it was can be seen until it is waited for.
            became = _became(result)
            os.waitid(os.P_PID, result.si_pid, os.WEXITED | os.WNOHANG)
            self._deliver(result, became=became)

    def _claim(self, pid: int) -> Child:
        # No await lies between the start of a process and this, so nothing can collect it in between.
        child = Child(pid, os.pidfd_open(pid))
        self._children[pid] = child
        assert self._loop, "the reaper is not running"
        self._loop.add_reader(child.pidfd, self._ended, child)
        return child

    def _ended(self, child: Child) -> None:
        try:
            result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            became = result is None or _became(result)
            if result is not None:
                os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # Not ours to wait for: its parent lives (then only the end is known, never the status).
            self._forget(child)
            child._finish(255)
            return
        if result is not None:
            self._deliver(result, became=became)

    def _deliver(self, result: os.waitid_result, *, became: bool) -> None:
        status = result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status
        child = self._children.get(result.si_pid)
        if child is not None:
            self._forget(child)
            child._finish(status, became=became)
        elif self._expected:
            if len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[result.si_pid] = status, became

    def _forget(self, child: Child) -> None:
        assert self._loop
        self._children.pop(child.pid, None)
        with suppress(ValueError, OSError):
            self._loop.remove_reader(child.pidfd)


def _became(result: os.waitid_result) -> bool:
    """Whether a process that has ended had called execve(2) since its fork(2); true also where that can't be known."""
    if result.si_code != os.CLD_EXITED or not result.si_status:
        return True
    try:
        # Fields after the name, which may hold anything: state, ppid, pgrp, session, tty_nr, tpgid, flags (proc(5)).
        fields = Path(f"/proc/{result.si_pid}/stat").read_bytes().rpartition(b")")[2].split()
        return not int(fields[6]) & PF_FORKNOEXEC
    except (OSError, ValueError, IndexError):
        return True
