"""crun, the OCI runtime that makes containers. This module alone knows its command line and its words.

Its messages go to a file of their own (`--log`), never to its stderr: that one is the container's. What they mean is
matched in `explain`, here and nowhere else, because crun (1.8) has one exit code for everything.
"""

import asyncio
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from kata_agent.container.placement import NOWHERE, Placement
from kata_agent.errors import CommandNotExecutableError, CommandNotFoundError, CrunError, TimedOutError
from kata_agent.process.reaper import Child, Reaper
from kata_common.documents import parse_json
from kata_telemetry.span import Site

__all__ = ["Crun", "exec_failure", "explain"]

_trace = Site(package="container", subsystem="crun")

# Seconds for one crun command; far more than it takes in an emulated guest.
TIMEOUT: Final = 60.0
MAX_LOG: Final = 16 * 1024

_NOT_FOUND = re.compile(r"executable file .* not found in \$PATH")
_NOT_EXECUTABLE = re.compile(r"open executable: ")
# By a process that crun has already reported as made: a container's init on its stderr, an exec'd one in crun's log.
# A workload that prints the same and exits 1 gets the status it asked for.
_EXEC_FAILED = re.compile(r"^exec( container process.*)?: (?P<reason>[^:]*)$", re.DOTALL)


def explain(command: str, text: str) -> CrunError:
    """The error that crun's last message means."""
    if _NOT_FOUND.search(text):
        return CommandNotFoundError(command, text)
    if _NOT_EXECUTABLE.match(text):
        return CommandNotExecutableError(command, text)
    if failure := exec_failure(text):
        return (CommandNotFoundError if failure == 127 else CommandNotExecutableError)(command, text)
    return CrunError(command, text or "failed without a message")


def exec_failure(text: str) -> int:
    """What a shell would exit with where execve(2) of the command failed (127 or 126); 0 where it didn't."""
    found = _EXEC_FAILED.match(text.strip())
    if not found:
        return 0
    # A script whose interpreter isn't there, or a program whose loader isn't.
    return 127 if found["reason"] == os.strerror(2) else 126


def last_message(log: Path) -> str:
    """The last message in a log that crun wrote, as JSON lines or as text; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - MAX_LOG))
            # Names in it may have other ends of lines.
            lines = file.read().decode("utf-8", "replace").rstrip("\n").split("\n")
    except OSError:
        return ""
    for line in reversed(lines):
        with suppress(ValueError):
            entry = parse_json(line)
            if isinstance(entry, dict) and isinstance(entry.get("msg"), str):
                return str(entry["msg"])
    return lines[-1]


class Crun:
    """Runs crun's commands. `state` is crun's own directory (tmpfs), `scratch` a place for its logs."""

    def __init__(self, reaper: Reaper, state: Path, *, program: str = "crun") -> None:
        self._reaper = reaper
        self._state = state
        self._program = program
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._env = _environment(program)

    def close(self) -> None:
        os.close(self._null)

    async def start(self, container: str, log: Path) -> None:
        """crun start. Raises CrunError.

        The container's init waits for a byte from a fifo in crun's state directory; `crun start` opens it, unlinks it
        (which is how crun knows a container that has started) and writes that byte (crun 1.8.1, seen with strace).
        Done here it saves a process, 75 ms in an emulated guest. Where it isn't as expected, crun is asked to do it.
        """
        fifo = self._state / container / "exec.fifo"
        with _trace.stage("crun start", container_id=container):
            try:
                # Without a reader, whose end crun explains, this fails.
                fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                await self.run("start", container=container, log=log)
                return
            try:
                fifo.unlink()
                os.write(fd, b"\0")
            except OSError as error:
                raise CrunError("start", f"can't release the container's init: {error.strerror}") from error
            finally:
                os.close(fd)

    async def run(
        self,
        command: str,
        *arguments: str,
        container: str,
        log: Path,
        stdio: tuple[int, int, int] | None = None,
        timeout: float = TIMEOUT,
        placement: Placement = NOWHERE,
    ) -> None:
        """`crun COMMAND ARGUMENTS CONTAINER`, to its end.

        `stdio` becomes the container's (create) or the process's (exec), which begins where `placement` says.
        Raises CrunError, CommandNotFoundError,
        CommandNotExecutableError, TimedOutError. Cancelled, it kills crun and waits for its end.
        """
        with _trace.stage(f"crun {command}", container_id=container) as span:
            child = await self._spawn(command, [*arguments, container], log, stdio, placement)
            try:
                async with asyncio.timeout(timeout):
                    status = await child.wait()
            except TimeoutError:
                raise TimedOutError(
                    f"crun {command} of container {container} did not end within {timeout:g} s and was killed"
                ) from None
            finally:
                if child.running:
                    child.signal(9)
                    await asyncio.shield(child.wait())
            span.set(exit_status=status)
            if status:
                raise explain(command, last_message(log))

    async def version(self) -> str:
        """From `crun --version`, whose first line is `crun version 1.8.1`; empty where there is none."""
        reading, writing = os.pipe()
        try:
            child = self._reaper.spawn([self._program, "--version"], stdio=(self._null, writing, self._null))
            await child.wait()
            os.set_blocking(reading, False)
            # A few lines: they fit into the pipe.
            words = os.read(reading, 4096).decode("utf-8", "replace").split("\n", 1)[0].split()
        except OSError:
            return ""
        finally:
            os.close(reading)
            os.close(writing)
        return words[-1][:64] if words else ""

    async def _spawn(
        self,
        command: str,
        arguments: Sequence[str],
        log: Path,
        stdio: tuple[int, int, int] | None,
        placement: Placement,
    ) -> Child:
        argv = [
            self._program,
            f"--root={self._state}",
            "--cgroup-manager=cgroupfs",
            f"--log={log}",
            # A container's init that can't become its command says so in this format on its stderr, where people read.
            f"--log-format={'text' if command == 'create' else 'json'}",
            command,
            *arguments,
        ]
        try:
            fds = stdio or (self._null, self._null, self._null)
            if placement != NOWHERE:
                return await self._reaper.spawn_after(placement.begin, argv, stdio=fds, env=self._env)
            return self._reaper.spawn(argv, stdio=fds, env=self._env)
        except OSError as error:
            raise CrunError(command, f"can't start {self._program}: {error.strerror}; is it in the image?") from error


def _environment(program: str) -> dict[str, str]:
    """crun's environment.

    Against a workload that overwrites the runtime's binary through /proc (CVE-2019-5736) crun first runs itself again
    from a read-only copy. On a read-only file system, as in the guest's image, it can be told that there is no need.
    """
    environment = dict(os.environ)
    for directory in environment.get("PATH", os.defpath).split(":"):
        path = Path(directory, program)
        with suppress(OSError):
            if os.statvfs(path).f_flag & os.ST_RDONLY:
                environment["_LIBCONTAINER_CLONED_BINARY"] = "1"
            break
    return environment
