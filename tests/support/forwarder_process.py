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

__all__ = ["ForwarderProcess", "forwarder_process"]

PROGRAM = Path(sys.executable).with_name("kata-trace-forwarder")


@dataclass
class ForwarderProcess:
    """One that runs; its log is a file."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def rss(self) -> int:
        """Resident memory, in bytes."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """The most it ever had resident, in bytes."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        # proc(5): utime and stime are fields 14 and 15; the name before may have anything but ends with the last ')'.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
