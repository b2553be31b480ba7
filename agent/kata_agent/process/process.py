"""One process of a container: its stdio, its end.

How the pieces meet: `Stdio.open` claims the host's streams and makes pipes; crun gets the far ends (or, for a terminal,
a socket to hand the pty's master to); once crun has succeeded `Process.started` connects near ends and streams by
pumps. Until then nothing is pumped, so what crun itself prints on failure never mixes with the output of a process.
"""

import asyncio
import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from kata_agent.errors import InvalidError, PreconditionError, TimedOutError
from kata_agent.process.pump import PIPE_SIZE, Inlet, Outlet, PumpThread
from kata_agent.process.reaper import Child
from kata_agent.process.streams import StreamRoom

__all__ = ["Exit", "Ports", "Process", "Stdio"]

# Seconds that crun may take from its start to handing over a terminal's master.
CONSOLE_WITHIN: Final = 30.0


class Ports(NamedTuple):
    """The host's port numbers of a process's streams; 0 is none."""

    stdin: int = 0
    stdout: int = 0
    stderr: int = 0


class Exit(NamedTuple):
    """How a process ended; `ended_ns` is a CLOCK_MONOTONIC reading."""

    status: int
    ended_ns: int
    oom_killed: bool


class Stdio:
    """Near ends, far ends and streams of one process, until a `Process` takes them. Closing is idempotent."""

    def __init__(self, pumps: PumpThread, *, terminal: bool) -> None:
        self.terminal = terminal
        self._pumps = pumps
        self.far: tuple[int, int, int] | None = None
        self.master = -1
        self.console: Path | None = None
        self._console: socket.socket | None = None
        self._streams: list[socket.socket | None] = [None, None, None]
        self._near = [-1, -1, -1]
        self._open_far: list[int] = []

    @classmethod
    async def open(cls, ports: Ports, room: StreamRoom, pumps: PumpThread, *, terminal: bool, console: Path) -> Self:
        """Claim the streams that `ports` names and make the other ends; `pumps` will connect them. `console` is a free
        path for a terminal's socket.

        Raises NotFoundError where a stream didn't arrive, InvalidError where the ports contradict themselves.
        """
        named = [port for port in ports if port]
        if len(set(named)) != len(named):
            raise InvalidError("one stdio stream is named for two channels")
        if terminal and ports.stderr:
            raise InvalidError("a terminal has no stderr of its own: stderr_port must be 0")
        stdio = cls(pumps, terminal=terminal)
        try:
            for channel, port in enumerate(ports):
                if port:
                    stdio._streams[channel] = await room.claim(port)
            if terminal:
                stdio._listen(console)
            else:
                stdio._make_pipes()
        except BaseException:
            stdio.close()
            raise
        return stdio

    def _make_pipes(self) -> None:
        far = []
        for channel, stream in enumerate(self._streams):
            # stderr is read even where nobody wants it: it says why a command could not be executed.
            if stream is None and channel != 2:
                fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                self._open_far.append(fd)
                far.append(fd)
                continue
            reading, writing = os.pipe()
            near, other = (writing, reading) if channel == 0 else (reading, writing)
            self._near[channel] = near
            self._open_far.append(other)
            far.append(other)
            with suppress(OSError):
                fcntl.fcntl(near, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.far = (far[0], far[1], far[2])

    def _listen(self, path: Path) -> None:
        self.console = path
        self._console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._console.bind(str(path))
        self._console.listen(1)

    async def receive_master(self) -> None:
        """Take the pty's master from crun (OCI runtime: --console-socket). Raises TimedOutError."""
        assert self._console
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONSOLE_WITHIN):
                connection, _ = await loop.sock_accept(self._console)
                with connection:
                    readable = asyncio.Event()
                    loop.add_reader(connection.fileno(), readable.set)
                    try:
                        await readable.wait()
                    finally:
                        loop.remove_reader(connection.fileno())
                    _, fds, _, _ = socket.recv_fds(connection, 4096, 4, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise TimedOutError(f"crun handed no terminal over within {CONSOLE_WITHIN:g} s") from None
        for extra in fds[1:]:
            os.close(extra)
        if fds:
            self.master = fds[0]

    def connect(self) -> tuple[Inlet | None, list[Outlet]]:
        """Close the far ends and start pumping."""
        self._close_far()
        inlet = None
        outlets = []
        stdin, stdout, stderr = self._streams
        # Even without a stream somebody must read a terminal's master, or the process blocks.
        near = [os.dup(self.master), os.dup(self.master), -1] if self.terminal else self._near
        if stdin:
            inlet = Inlet(self._pumps, stdin, near[0], at_end=_end_of_input if self.terminal else None)
        elif near[0] >= 0:
            os.close(near[0])
        for stream, fd in ((stdout, near[1]), (stderr, near[2])):
            if fd >= 0:
                outlets.append(Outlet(self._pumps, fd, stream, keep_reading=self.terminal))
        self._streams = [None, None, None]
        self._near = [-1, -1, -1]
        for pump in (inlet, *outlets):
            if pump:
                pump.start()
        return inlet, outlets

    def _close_far(self) -> None:
        for fd in self._open_far:
            os.close(fd)
        self._open_far.clear()
        self.far = None
        if self._console:
            self._console.close()
            self._console = None
        if self.console:
            self.console.unlink(missing_ok=True)
            self.console = None

    def close(self) -> None:
        """Close whatever `connect` didn't hand on."""
        self._close_far()
        for fd in self._near:
            if fd >= 0:
                os.close(fd)
        self._near = [-1, -1, -1]
        for stream in self._streams:
            if stream:
                stream.close()
        self._streams = [None, None, None]
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


def _end_of_input(master: int) -> None:
    """What a terminal sends for the end of input: its VEOF character."""
    characters = termios.tcgetattr(master)[6]
    os.write(master, characters[termios.VEOF])


def shrugs_off(pid: int, number: int) -> bool:
    """Whether a signal that ends other processes would do nothing to this one, the first of its pid namespace.

    The kernel delivers to such a process only what it has a handler for (pid_namespaces(7)): `sleep` as a container's
    command can't be stopped by SIGTERM or Ctrl-C. One that ignores the signal on purpose is left alone.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    cares = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
    return fields["NSpid"].split()[-1] == "1" and not cares >> (number - 1) & 1


class Process:
    """A process that runs or has run. Made by its container."""

    def __init__(self, name: str, stdio: Stdio) -> None:
        self.name = name
        self.terminal = stdio.terminal
        self._stdio = stdio
        self._inlet: Inlet | None = None
        self._outlets: list[Outlet] = []
        self._child: Child | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self.exit: Exit | None = None
        # The signal that a SIGKILL stood in for.
        self._ended_by = 0

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    def started(self, child: Child, judge: Callable[[Child, bytes], Exit]) -> None:
        """crun has made it: connect stdio, watch for the end. `judge` says how it ended, knowing the first
        bytes on stderr (on the terminal) where its status isn't 0."""
        self._child = child
        self._inlet, self._outlets = self._stdio.connect()
        self._watcher = asyncio.create_task(self._watch(child, judge), name=f"watch {self.name}")

    async def _watch(self, child: Child, judge: Callable[[Child, bytes], Exit]) -> None:
        await child.wait()
        # Errors are said on stderr, or on a terminal: the last outlet either way.
        said = await self._outlets[-1].look() if child.status and self._outlets else b""
        self.exit = judge(child, said)
        if self._ended_by and self.exit.status == 128 + signal.SIGKILL:
            self.exit = self.exit._replace(status=128 + self._ended_by)
        if self._inlet:
            self._inlet.process_ended()
        for outlet in self._outlets:
            outlet.process_ended()
        self._known.set()

    async def wait(self) -> Exit:
        """How it ended, once it has; for any number of waiters. Its output may still be on the way (streams end)."""
        await self._known.wait()
        assert self.exit
        return self.exit

    def signal(self, number: int, *, ending: bool = False) -> None:
        """Send it a signal. One that shall end it is SIGKILL where it would do nothing to a container's first process:
        SIGTERM always, as with Kata (its agent's rpc.rs), any with `ending`.

        Raises PreconditionError where the process isn't running, InvalidError for no such signal.
        """
        if not 0 < number < signal.NSIG:
            raise InvalidError(f"there is no signal {number}: signals are 1 to {signal.NSIG - 1}")
        ending = ending or number == signal.SIGTERM
        if self._child and ending and shrugs_off(self._child.pid, number):
            self._ended_by = number
            number = signal.SIGKILL
        if self._child is None or not self._child.signal(number):
            raise PreconditionError(f"process {self.name} is not running")

    def close_stdin(self) -> None:
        """End the input after what has arrived. Without a stdin it does nothing."""
        if self._inlet:
            self._inlet.end()

    def resize(self, rows: int, columns: int) -> None:
        """Raises PreconditionError where it has no terminal."""
        if not 0 <= rows < 65536 or not 0 <= columns < 65536:
            raise InvalidError(f"a terminal can't have {rows} rows and {columns} columns")
        if not self.terminal or self._stdio.master < 0:
            raise PreconditionError(f"process {self.name} has no terminal")
        fcntl.ioctl(self._stdio.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def flushed(self) -> None:
        """Return when all its output has been handed to the host's streams and those are closed."""
        for outlet in self._outlets:
            await outlet.done.wait()

    async def close(self, within: float) -> None:
        """Give output `within` seconds to leave, then let go of everything. The process must have ended or never
        begun.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self._stdio.close)
            if self._watcher:
                await self._watcher
                with suppress(TimeoutError):
                    async with asyncio.timeout(within):
                        await self.flushed()
            for pump in (self._inlet, *self._outlets):
                if pump:
                    pump.abandon()
                    await pump.done.wait()
