"""Where a fault happens: a `kata-runtime` whose programs, limits and disks are what the row makes of them."""

import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from support.holds import virtiofsd
from support.kata import Kata
from support.processes import children

__all__ = ["Outcome", "Scene"]

# A program that is asked for its version like the one that it stands for.
_STANDIN = """#!/bin/sh
[ "$1" = --version ] && exec {program} "$@"
{script}
"""
# What a test need not wait for (`Kata.prologue`): seconds that QEMU's monitor may be silent.
_IMPATIENT = """
from kata_runtime.hypervisor.qemu import machine
machine.launch_qemu.__wrapped__.__kwdefaults__["timeout"] = 6.0
"""
_HELPERS = """
import sys
sys.executable = {python!r}
"""
_LIMIT = """
import resource
resource.setrlimit(resource.{kind}, ({value}, {value}))
"""
_PROGRAMS = {
    "virtiofsd": ("virtio_fs_daemon", virtiofsd()),
    "QEMU": ("path", "/usr/bin/qemu-system-x86_64"),
}


class Outcome(NamedTuple):
    """How it ended: status, what was said on stderr, seconds from the fault (or the start) to the end."""

    status: int
    said: str
    seconds: float


@dataclass
class Scene:
    """What a row uses. `directory` is for what it makes, and can be read by every user."""

    kata: Kata
    directory: Path
    options: list[str] = field(default_factory=list)

    def standin(self, process: str, script: str) -> "Scene":
        """Have a script in place of a helper."""
        if process == "the vsock backend":
            self.kata.prologue += _HELPERS.format(python=self._script("python", sys.executable, script))
            return self
        key, program = _PROGRAMS[process]
        self.kata.configure("hypervisor.qemu", **{key: self._script(Path(program).name, program, script)})
        return self

    def impatient(self) -> "Scene":
        """Have it give up on silence sooner."""
        self.kata.prologue += _IMPATIENT
        return self

    def limited(self, kind: str, value: int) -> "Scene":
        """Give it less of something (setrlimit(2)), and so all of its helpers."""
        self.kata.prologue += _LIMIT.format(kind=kind, value=value)
        return self

    def _script(self, name: str, program: str, script: str) -> str:
        path = self.directory / name
        path.write_text(_STANDIN.format(program=program, script=script))
        path.chmod(0o755)
        return str(path)

    def run(self, *argv: str) -> Outcome:
        """A run that the fault ends."""
        begun = time.monotonic()
        done = self.kata.run(*(argv or ("true",)), options=["--name", "broken", *self.options])
        return Outcome(done.returncode, done.stderr.decode(), time.monotonic() - begun)

    @contextmanager
    def full(self, place: Path) -> Iterator[None]:
        """A file system without room at `place`, for the block."""
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=2,mode=755", "tmpfs", str(place)], check=True)
        try:
            with (place / ".filler").open("wb", buffering=0) as filler:
                try:
                    while filler.write(bytes(4096)):
                        pass
                except OSError:
                    pass
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)

    def strike(self, program: str, number: signal.Signals, *argv: str, then: signal.Signals | None = None) -> Outcome:
        """Send a signal to a helper of a running sandbox, and wait for the run's end; `then` is for the run itself."""
        child = self._up(*argv)
        pid = children(child.pid)[program]
        begun = time.monotonic()
        os.kill(pid, number)
        if then is not None:
            child.send_signal(then)
        _, errors = child.communicate(timeout=100)
        return Outcome(child.returncode, errors.decode(), time.monotonic() - begun)

    def _up(self, *argv: str) -> "subprocess.Popen[bytes]":
        """A sandbox whose workload has said that it is there."""
        command = argv or ("sh", "-c", "echo up; sleep 1000")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child = self.kata.start("run", "--name", "broken", *self.options, "--", *command, **pipes)
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line == b"up\n", child.communicate()[1].decode()
        return child


def readable_by_all(directory: Path) -> Path:
    """A directory that programs of other users find."""
    directory.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    return directory


def ended(pid: int, seconds: float) -> bool:
    """Whether a process has ended within so many seconds."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)
