"""Start the vsock backend as its parent does, and be its host-side client."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from kata_runtime.hypervisor.vsock.device.settings import Settings
from support import processes

REPO = Path(__file__).parents[2]
MODULE = "kata_runtime.hypervisor.vsock.device"
GUEST_CID = 3


def listener(path: Path) -> socket.socket:
    """A listening unix socket at `path`."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    made.listen(256)
    return made


class Backend:
    """A backend process; `vhost` is QEMU's end of its socket. `stderr` is there after `wait` or `close`."""

    def __init__(
        self,
        directory: Path,
        *,
        forwards: tuple[int, ...] = (),
        hold_timeout: float = 30.0,
        log_level: str = "debug",
        unprivileged: bool = True,
    ) -> None:
        self.directory = directory
        self.uds = directory / "vs.sock"
        self.vhost, theirs = socket.socketpair()
        sockets = [theirs, listener(self.uds)]
        made = []
        for port in forwards:
            sockets.append(listener(directory / f"port{port}"))
            made.append((port, sockets[-1].fileno()))
        settings = Settings(
            vhost_fd=theirs.fileno(),
            guest_cid=GUEST_CID,
            hybrid_fd=sockets[1].fileno(),
            uds_path=str(self.uds),
            forwards=tuple(made),
            hold_timeout=hold_timeout,
            log_level=log_level,
        )
        prefix = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
        ]
        self._errors = (directory / "backend.log").open("wb+")
        self.process = subprocess.Popen(
            [
                *(prefix if unprivileged and os.getuid() == 0 else []),
                sys.executable,
                "-X",
                "dev",
                "-W",
                "error",
                "-m",
                MODULE,
                settings.to_json(),
            ],
            pass_fds=[each.fileno() for each in sockets],
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(REPO / "runtime"), "PYTHONDEVMODE": "0"},
        )
        for each in sockets:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, port: int, *, timeout: float = 20.0) -> tuple[socket.socket, int]:
        """A stream to a guest port by the hybrid convention, and the host's port."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(timeout)
        client.connect(str(self.uds))
        client.sendall(b"CONNECT %d\n" % port)
        answer = b""
        while not answer.endswith(b"\n"):
            byte = client.recv(1)
            if not byte:
                client.close()
                raise ConnectionRefusedError(f"guest port {port}")
            answer += byte
        word, number = answer.split()
        assert word == b"OK"
        return client, int(number)

    def forward(self, port: int, *, timeout: float = 20.0) -> socket.socket:
        """A stream to a guest port through its own listener."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(timeout)
        client.connect(str(self.directory / f"port{port}"))
        return client

    def fds(self) -> int:
        """How many file descriptors the process has."""
        return processes.descriptors(self.process.pid)

    def mappings(self) -> int:
        """How many mappings of guest RAM (memfds) it has."""
        return processes.mappings(self.process.pid, "memfd:")

    def rss(self) -> int:
        """Its anonymous memory in bytes; guest RAM is not counted."""
        return processes.memory(self.process.pid)

    def cpu(self) -> float:
        """Seconds of processor time used so far."""
        return processes.processor_time(self.process.pid)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def stderr(self) -> str:
        """All that it said so far."""
        return (self.directory / "backend.log").read_text()

    def wait(self, timeout: float = 10.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout)

    def close(self) -> None:
        """End it, as the runtime does."""
        self.vhost.close()
        if self.alive():
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._errors.close()
