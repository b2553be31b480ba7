"""A sandbox that runs in the background, with a shell to talk to."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from support.kata import Kata
from support.processes import children

__all__ = ["Running"]

_END = "--end--"


@dataclass
class Running:
    """A `kata-runtime run -i -- sh` that has started. Ended by `finish`, a test, or the end of its block."""

    kata: Kata
    name: str
    process: "subprocess.Popen[bytes]"

    @classmethod
    @contextmanager
    def shell(cls, kata: Kata, name: str) -> Iterator[Self]:
        """A shell that answers; whatever happens, it and its VM are gone after the block."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = kata.start("run", "-i", "--name", name, "--", "sh", **pipes)
        running = cls(kata, name, process)
        try:
            running("true")
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=120)

    def __call__(self, command: str) -> str:
        """Run a command line in the container; what it printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho {_END}\n".encode())
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.decode().strip() == _END:
                return "".join(lines)
            lines.append(line.decode())
        raise AssertionError(f"the sandbox ended: {self.process.communicate()[1].decode()}")

    def finish(self, status: int = 0) -> "tuple[int, str]":
        """Have the shell exit; the run's status and stderr."""
        _, errors = self.process.communicate(f"exit {status}\n".encode(), timeout=120)
        return self.process.returncode, errors.decode()

    def helper(self, program: str) -> int:
        """Process id of the runtime's child that runs this program."""
        return children(self.process.pid)[program]

    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of the runtime's children."""
        os.kill(self.helper(program), number)

    def qemu_arguments(self) -> list[str]:
        """QEMU's command line."""
        path = Path(f"/proc/{self.helper('qemu-system-x86_64')}/cmdline")
        return path.read_text().rstrip("\0").split("\0")

    @property
    def cid(self) -> int:
        """The guest's context id."""
        found = re.search(r"guest-cid=(\d+)", " ".join(self.qemu_arguments()))
        assert found is not None, "QEMU has no vhost-vsock device"
        return int(found[1])

    def log(self, name: str) -> str:
        """One of the sandbox's logs: console, qemu, qmp, virtiofsd."""
        return (self.kata.logs_dir / self.name / f"{name}.log").read_text(errors="replace")
