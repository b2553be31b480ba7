"""The one door to child processes.

A child is an async context manager (`launch`) or a call that waits for its end (`run`). Whatever happens to the block,
the child is gone and reaped afterwards: SIGTERM, a bounded wait, SIGKILL. Children die with this process too
(PR_SET_PDEATHSIG, set by util-linux's setpriv, which also drops privileges): a SIGKILL of the runtime leaves no VM.
"""

import asyncio
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kata_common.interpreter import python_code
from kata_runtime.cage import Cage, cage_prefix, capability_options
from kata_runtime.errors import HostError, ProcessError
from kata_runtime.helper_log import LAST, HelperLog, Lines, readable
from kata_telemetry.span import Site

__all__ = [
    "Child",
    "Privileges",
    "absolute",
    "ask",
    "describe",
    "find_program",
    "launch",
    "leave_behind",
    "run",
    "run_foreign",
    "run_python",
]

_trace = Site(package="runtime", subsystem="process")
_log = logging.getLogger("kata.process")

# What a child inherits of our environment: nothing that could steer a helper in unexpected ways.
_ENVIRONMENT = ("HOME", "LANG", "TZ", "TMPDIR")
# The same for lists of directories.
_SEARCHED = ("PATH", "LD_LIBRARY_PATH")
_TAIL_LINES = 40
# A pipe has room for one (pipe(7)); somebody else may write to it as well.
_PIPE_READS = 8


@dataclass(frozen=True)
class Privileges:
    """Whom a child runs as; `groups` are supplementary group ids (as kvm's).

    With `by_child` the child starts as we are, but can't gain anything any more, and drops the rest itself. It inherits
    the descriptor `lease`, which says for as long as it lives that the user is taken (-1: nothing does).
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    by_child: bool = False
    lease: int = -1


def find_program(name: str, *, package: str, also: Iterable[str] = ()) -> str:
    """Absolute path of a helper program: `name` itself if absolute, else on PATH, else one of `also`.

    Raises:
        HostError: not there, or not executable (names the Debian package that has it); a relative path.
    """
    search = [*absolute(os.environ.get("PATH", os.defpath)).split(os.pathsep), "/usr/sbin", "/sbin"]
    if "/" in name and not name.startswith("/"):
        raise HostError(
            f"{name}: the path of a program begins with /", hint="what it means depends on where one stands"
        )
    candidates = [name] if "/" in name else [f"{directory}/{name}" for directory in search if directory]
    for candidate in (*candidates, *also):
        if os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return candidate
    raise HostError(f"{name} was not found", hint=f"install it (Debian, Ubuntu: apt install {package})")


def absolute(search: str) -> str:
    """A list of directories as in PATH, without its relative entries, and empty ones, which mean where we stand."""
    return os.pathsep.join(directory for directory in search.split(os.pathsep) if directory.startswith("/"))


def describe(status: int) -> str:
    """An exit status, or the negative number of a signal, in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


class Child:
    """A running child process. Its end is known by pidfd; stderr's last lines are kept."""

    def __init__(
        self,
        argv: Sequence[str],
        popen: "subprocess.Popen[bytes]",
        log: HelperLog,
        on_line: Callable[[str], None] | None = None,
        name: str = "",
    ) -> None:
        self.argv = tuple(argv)
        self.name = name or Path(argv[0]).name
        self._on_line = on_line
        self.pid = popen.pid
        self._popen = popen
        self._log = log
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._lines = Lines()
        loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(self._pidfd, self._on_exit)
        if popen.stderr is not None:
            os.set_blocking(popen.stderr.fileno(), False)
            loop.add_reader(popen.stderr.fileno(), self._on_stderr)

    def __repr__(self) -> str:
        state = "running" if self.status is None else f"ended {self.status}"
        return f"<Child {self.name} {self.pid} {state}>"

    @property
    def status(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        return self._ended.result() if self._ended.done() else None

    @property
    def output(self) -> str:
        """The last lines that it wrote to stderr."""
        self._drain()
        last = readable(self._lines.partial)
        return "\n".join([*self._tail, *([last] if last else [])])

    async def wait(self) -> int:
        """Wait for its end; the exit status, or the negative number of the signal."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal unless it has ended."""
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, *, grace: float = 2.0) -> int:
        """End it: SIGTERM, at most `grace` seconds, SIGKILL. Returns its status. Safe to repeat."""
        if not self._ended.done():
            if grace > 0:
                self.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace):
                    return await self.wait()
            except TimeoutError:
                self.send_signal(signal.SIGKILL)
        return await self.wait()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        status = self._popen.wait()  # returns at once: the pidfd said so
        _log.debug("child ended", extra={"program": self.argv[0], "pid": self.pid, "status": status})
        self._ended.set_result(status)

    def _drain(self) -> None:
        """Read what an ended child has left in the pipe."""
        for _ in range(_PIPE_READS):
            if not self._on_stderr():
                return

    def _on_stderr(self) -> bool:
        """Read a piece; whether there was one."""
        stream = self._popen.stderr
        if stream is None or stream.closed:
            return False
        try:
            chunk = os.read(stream.fileno(), 65536)
        except BlockingIOError:
            return False
        if not chunk:
            asyncio.get_running_loop().remove_reader(stream.fileno())
            stream.close()
            return False
        within = self._log.allows(len(chunk))
        found = self._lines.feed(chunk) if within else self._lines.skip(chunk, LAST)
        lines = [readable(line) for line in found]
        (self._log.lines if within else self._log.last)(lines)
        self._tail.extend(lines)
        if self._on_line is not None:
            for line in lines:
                self._on_line(line)
        return True

    def close(self) -> None:
        """Give back what belongs to an ended child."""
        self._drain()
        loop = asyncio.get_running_loop()
        if self._popen.stderr is not None and not self._popen.stderr.closed:
            loop.remove_reader(self._popen.stderr.fileno())
            self._popen.stderr.close()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._log.close(readable(self._lines.partial))


def _spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int],
    privileges: Privileges | None,
    cage: Cage | None,
    environment: Mapping[str, str] | None,
    log_path: Path | None,
    on_line: Callable[[str], None] | None,
    name: str,
) -> Child:
    prefix = []
    if cage is not None:
        prefix += cage_prefix(cage, lambda name, package: find_program(name, package=package))
    prefix += [find_program("setpriv", package="util-linux"), "--pdeathsig", "KILL"]
    if cage is not None:
        prefix += capability_options(cage)
    if privileges is not None or cage is not None:
        prefix += ["--no-new-privs"]
    if privileges is not None and not privileges.by_child:
        groups = ["--groups", ",".join(map(str, privileges.groups))] if privileges.groups else ["--clear-groups"]
        prefix += ["--reuid", str(privileges.uid), "--regid", str(privileges.gid), *groups]
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    kept |= {name: directories for name in _SEARCHED if (directories := absolute(os.environ.get(name, "")))}
    _log.debug("child starts", extra={"command": shlex.join(argv)})
    lease = [privileges.lease] if privileges is not None and privileges.lease >= 0 else []
    log = HelperLog(log_path)
    try:
        popen = subprocess.Popen(
            [*prefix, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(*pass_fds, *lease),
            env={**kept, **(environment or {})},
            # Its own session: a Ctrl-C at the terminal is for us to handle, not for QEMU to die of.
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        raise HostError(f"{argv[0]} can't be started: {error.strerror}") from error
    return Child(argv, popen, log, on_line, name)


@asynccontextmanager
async def launch(  # noqa: PLR0913 - each of them is a property of the child
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    privileges: Privileges | None = None,
    cage: Cage | None = None,
    environment: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    grace: float = 2.0,
    name: str = "",
) -> AsyncIterator[Child]:
    """Run a long-lived child for the block. `argv[0]` is absolute (`find_program`), `name` what people call it.

    `pass_fds` stay the caller's to close; `cage` is what it is kept to. The child's stdin and stdout are /dev/null;
    stderr goes to `log_path`, its last lines also to `Child.output`, and each line to `on_line`. Leaving the block ends
    the child within `grace` seconds plus a SIGKILL, also when it was cancelled.

    Raises:
        HostError: it can't be started.
    """
    with _trace.span(f"start {Path(argv[0]).name}") as span:
        child = _spawn(
            argv,
            pass_fds=pass_fds,
            privileges=privileges,
            cage=cage,
            environment=environment,
            log_path=log_path,
            on_line=on_line,
            name=name,
        )
        span.set(pid=child.pid)
    try:
        yield child
    finally:
        # Shielded: a second cancellation must not leave the child behind.
        with _trace.span(f"stop {Path(argv[0]).name}", pid=child.pid):
            stopping = asyncio.ensure_future(child.stop(grace=grace))
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                child.send_signal(signal.SIGKILL)
                await stopping
                raise
            finally:
                child.close()


async def run(argv: Sequence[str], *, timeout: float = 60.0, span: str = "", file_size: int | None = None) -> None:
    """Run a helper to its end within `timeout` seconds. `file_size` is how many bytes a file may have that it writes.

    Raises:
        ProcessError: it failed, or had to be killed after `timeout`.
        HostError: it can't be started.
    """
    with _trace.span(span or f"run {Path(argv[0]).name}"):
        limited = (
            [find_program("prlimit", package="util-linux"), f"--fsize={file_size}"] if file_size is not None else []
        )
        async with launch([*limited, *argv], grace=0) as child:
            try:
                async with asyncio.timeout(timeout):
                    status = await child.wait()
            except TimeoutError:
                raise ProcessError(argv, -signal.SIGKILL, f"no end within {timeout:g} s") from None
            if status != 0:
                raise ProcessError(argv, status, child.output)


async def ask(argv: Sequence[str], *, timeout: float = 10.0) -> str:
    """What a helper says of itself (`--version`): the end of its output, whatever its status.

    Raises:
        HostError: it can't be started.
    """
    with _trace.detail(f"ask {Path(argv[0]).name}"):
        async with launch(["/bin/sh", "-c", 'exec "$@" 1>&2', "sh", *argv], grace=0) as child:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await child.wait()
            return child.output


def run_python(program: str, *arguments: str, timeout: float) -> None:
    """Run some Python, where `sys` and this process's modules can be imported, and wait for `timeout` seconds.

    Nobody is told what became of it: for what can be done without.
    """
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            python_code(program, *arguments),
            env={},
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def leave_behind(module: str, request: bytes, *, keep: Iterable[str] = (), pass_fds: Sequence[int] = ()) -> None:
    """Start a Python module of ours that outlives us and ends by itself; `request` is its stdin.

    Its environment is a helper's, with the variables `keep`. Nobody waits for it, and what it writes is lost.

    Raises:
        HostError: it can't be started.
    """
    # A file without a name: what is asked may hold credentials, and a command line is everybody's to read.
    stdin = os.memfd_create("request", os.MFD_CLOEXEC)
    kept = {name: os.environ[name] for name in (*_ENVIRONMENT, *keep) if name in os.environ}
    try:
        os.write(stdin, request)
        os.lseek(stdin, 0, os.SEEK_SET)
        # By a process between, which ends at once: the other one is init's to collect, however long we live.
        subprocess.run(
            [find_program("setsid", package="util-linux"), "--fork", sys.executable, "-P", "-m", module],
            check=True,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            cwd="/",
            pass_fds=tuple(pass_fds),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{sys.executable} can't be started: {error}") from error
    finally:
        os.close(stdin)


def _spawn_foreign(path: str, argv: Sequence[str], data: bytes, environment: Mapping[str, str]) -> Child:
    stdin = os.memfd_create("stdin")
    try:
        os.write(stdin, data)
        os.lseek(stdin, 0, os.SEEK_SET)
        popen = subprocess.Popen(
            list(argv),
            executable=path,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"{path} can't be started: {error.strerror}") from error
    finally:
        os.close(stdin)
    return Child(argv, popen, HelperLog(None))


async def run_foreign(
    path: str, argv: Sequence[str], *, data: bytes, environment: Mapping[str, str], timeout: float
) -> tuple[int, str]:
    """Run a program that is no helper of ours to its end: called `argv[0]`, with `data` on stdin and this environment.

    Returns its status (as `Child.wait`) and the end of what it wrote to stderr. It is killed after `timeout` seconds
    (TimeoutError), and where the caller is cancelled.

    Raises:
        HostError: it can't be started.
    """
    child = _spawn_foreign(path, argv, data, environment)
    try:
        async with asyncio.timeout(timeout):
            return await child.wait(), child.output.strip()
    finally:
        stopping = asyncio.ensure_future(child.stop(grace=0))
        try:
            await asyncio.shield(stopping)
        finally:
            await stopping
            child.close()
