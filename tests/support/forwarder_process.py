"""`kata-trace-forwarder` as a process, as a user starts it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from support import processes

__all__ = ["ForwarderProcess", "forwarder_process"]

PROGRAM = Path(sys.executable).with_name("kata-trace-forwarder")


@dataclass
class ForwarderProcess:
    """One that runs; its log is a file."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def rss(self) -> int:
        """Resident memory, in bytes."""
        return processes.memory(self.process.pid, "VmRSS")

    def peak(self) -> int:
        """The most it ever had resident, in bytes."""
        return processes.memory(self.process.pid, "VmHWM")

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return processes.processor_time(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def forwarder_process(
    log: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[ForwarderProcess]:
    """Start one and wait until it says that it is ready."""
    reader, writer = os.pipe()
    command = [str(PROGRAM), *arguments]
    with subprocess.Popen(command, stderr=writer, env={**os.environ, **(environment or {})}) as process:
        os.close(writer)
        try:
            with os.fdopen(reader, "rb", buffering=0) as lines, log.open("ab") as file:
                _until_ready(lines, file)
                # The rest is copied by a process of its own: a pipe that nobody reads would stop the forwarder.
                with subprocess.Popen(["cat"], stdin=lines, stdout=file):
                    lines.close()
                    try:
                        yield ForwarderProcess(process, log)
                    finally:
                        process.kill()
                        process.wait()
        finally:
            process.kill()


def _until_ready(lines: IO[bytes], file: IO[bytes]) -> None:
    for line in lines:
        file.write(line)
        file.flush()
        if b"msg=ready" in line:
            return
    raise AssertionError("the forwarder ended before it was ready")
