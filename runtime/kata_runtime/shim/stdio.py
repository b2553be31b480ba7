"""The host's ends of a process's stdio, as containerd names them.

    /path            a fifo (ctr, CRI, Docker), or an existing file
    fifo:///path     the same
    file:///path     a file that output is added to
    binary:///path?argument=value    a program that gets the output
    fd://PID/N      descriptor N of process PID: ours, for the commands of an OCI runtime (kata_runtime.engine)

Semantics are those of containerd's own shims (pkg/process/io.go in 1.6): a fifo is held open both ways, so that a
client may go away and come back without the container noticing. All descriptors are non-blocking.
"""

import asyncio
import errno
import os
import stat
import sys
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from kata_common.text import is_number
from kata_runtime.process import launch
from kata_runtime.sandbox.streams import Stdio, own_descriptor
from kata_runtime.shim.ttrpc.errors import FailedPrecondition, InvalidArgument
from kata_telemetry.span import Site

__all__ = ["HostStdio", "Names", "open_stdio"]

_trace = Site(package="containerdshim", subsystem="stdio")

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_PIPE_SIZE = 1 << 20
# Seconds for a logging program to say that it is ready, and to end after the last byte (containerd's own).
_LOGGER_READY = 10.0
_LOGGER_END = 12.0
# Puts inherited descriptors (none of them below 10) where the program looks for them; a shell can't close them.
_LOGGER_START = (
    "import os, sys\n"
    "for place, given in enumerate(map(int, sys.argv[1:4]), 3):\n"
    "    os.dup2(given, place)\n"
    "    os.close(given)\n"
    "os.execv(sys.argv[4], sys.argv[4:])\n"
)


@dataclass(frozen=True)
class Names:
    """What containerd calls them; empty where there is none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class HostStdio:
    """Open ends, for `stdio`. Made by `open_stdio`; `close` once nothing is copied any more."""

    def __init__(self) -> None:
        self.stdio = Stdio()
        self._stack = AsyncExitStack()
        self._input_keeper = -1

    async def open(self, names: Names, container_id: str, namespace: str) -> None:
        """See `open_stdio`."""
        stderr_name = "" if names.terminal else names.stderr
        stdout: int | None
        stderr: int | None
        try:
            stdin = self._open_input(names.stdin) if names.stdin else None
            if names.stdout.startswith("binary:"):
                stdout, stderr = await self._start_logger(names.stdout, container_id, namespace)
            else:
                stdout = self._open_output(names.stdout) if names.stdout else None
                stderr = self._open_output(stderr_name) if stderr_name else None
        except OSError as error:
            await self.close()
            raise InvalidArgument(f"stdio {error.filename or names} can't be opened: {error.strerror}") from error
        except BaseException:
            await self.close()
            raise
        self.stdio = Stdio(stdin, stdout, None if names.terminal else stderr)

    def end_input(self) -> None:
        """Let the input end when its last writer has closed it. Safe to repeat."""
        if self._input_keeper >= 0:
            os.close(self._input_keeper)
            self._input_keeper = -1

    async def close(self) -> None:
        """Close all; a logging program gets its time to write the last lines. Safe to repeat."""
        self.end_input()
        await self._stack.aclose()

    def _own(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _open_input(self, name: str) -> int:
        with _trace.span("openInput"):
            return self._open_fifo_in(name)

    def _take(self, url: SplitResult, *, writing: bool) -> int:
        from kata_common.linux import take_descriptor

        number = url.path.removeprefix("/")
        if not (is_number(url.netloc, 9) and is_number(number, 9)):
            raise InvalidArgument(f"{url.geturl()}: expected fd://PID/N")
        pidfd = os.pidfd_open(int(url.netloc))
        try:
            return own_descriptor(self._own(take_descriptor(pidfd, int(number))), self._stack.callback, writing=writing)
        finally:
            os.close(pidfd)

    def _open_fifo_in(self, name: str) -> int:
        url = urlsplit(name)
        if url.scheme == "fd":
            return self._take(url, writing=False)
        if url.scheme not in ("", "fifo"):
            raise InvalidArgument(f"stdin {name}: only a fifo can be an input")
        descriptor = self._own(os.open(unquote(url.path), os.O_RDONLY | _FLAGS))
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            # Without a writer of ours the input would end before the client comes, or when it goes for a while.
            self._input_keeper = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | _FLAGS)
        return descriptor

    def _open_output(self, name: str) -> int:
        with _trace.span("openOutput"):
            return self._open_named_output(name)

    def _open_named_output(self, name: str) -> int:
        url = urlsplit(name)
        if url.scheme == "file":
            path = Path(unquote(url.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._own(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS, 0o640))
        if url.scheme == "fd":
            return self._take(url, writing=True)
        if url.scheme not in ("", "fifo"):
            raise InvalidArgument(f"{name}: output goes to a fifo, to file:// or to binary://, not to {url.scheme}://")
        try:
            # A reader of our own (O_RDWR), so that a client that goes away breaks nothing.
            descriptor = self._own(os.open(unquote(url.path), os.O_RDWR | os.O_APPEND | _FLAGS))
        except IsADirectoryError as error:
            raise InvalidArgument(f"{name} is a directory") from error
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            _widen(descriptor)
        return descriptor

    async def _start_logger(self, name: str, container_id: str, namespace: str) -> tuple[int, int]:
        """Run a logging program; the ends to write stdout and stderr to."""
        url = urlsplit(name)
        program = unquote(url.path)
        if not os.access(program, os.X_OK):
            raise OSError(errno.ENOENT, "there is no such program", program)
        with ExitStack() as theirs, _trace.span("startLogger", program=program):
            ours: list[int] = []
            passed: list[int] = []
            for _ in range(2):
                reading, writing = os.pipe()
                os.set_blocking(writing, False)
                _widen(writing)
                ours.append(writing)
                passed.append(_high(reading, theirs))
            ready, announce = os.pipe()
            announce = _high(announce, theirs)
            # To be closed before the program is waited for, which ends when its inputs do.
            logger = launch(
                _logger_argv(url, program, [*passed, announce]),
                pass_fds=(*passed, announce),
                environment={"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace},
                grace=_LOGGER_END,
            )
            child = await self._stack.enter_async_context(logger)

            async def let_it_end() -> None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOGGER_END):
                        await child.wait()

            self._stack.push_async_callback(let_it_end)
            for descriptor in ours:
                self._own(descriptor)
            theirs.close()
            await _announced(ready, program)
        return ours[0], ours[1]


def _logger_argv(url: SplitResult, program: str, descriptors: list[int]) -> list[str]:
    """The program finds stdout, stderr and where to say that it is ready at descriptors 3, 4 and 5."""
    arguments = [part for pair in parse_qsl(url.query, keep_blank_values=True) for part in pair if part]
    return [sys.executable, "-IS", "-c", _LOGGER_START, *map(str, descriptors), program, *arguments]


async def _announced(ready: int, program: str) -> None:
    """Wait for a byte of the logging program, or for the end of its descriptor 5; both mean that it is ready."""
    loop = asyncio.get_running_loop()
    said = asyncio.Event()
    loop.add_reader(ready, said.set)
    try:
        async with asyncio.timeout(_LOGGER_READY):
            await said.wait()
    except TimeoutError:
        raise FailedPrecondition(f"{program} did not say within {_LOGGER_READY:g} s that it is ready") from None
    finally:
        loop.remove_reader(ready)
        os.close(ready)


def _high(descriptor: int, stack: ExitStack) -> int:
    """The same with a number out of the way of `_LOGGER_START`, and the stack's to close."""
    import fcntl

    try:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)
    stack.callback(os.close, high)
    return high


def _widen(descriptor: int) -> None:
    import fcntl

    with suppress(OSError):  # beyond what the user may have: then it stays as it is
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


async def open_stdio(names: Names, container_id: str, namespace: str) -> HostStdio:
    """Open what containerd has named.

    Raises:
        InvalidArgument: something can't be opened; nothing is open then.
        FailedPrecondition: a logging program does not start.
    """
    host = HostStdio()
    await host.open(names, container_id, namespace)
    return host
