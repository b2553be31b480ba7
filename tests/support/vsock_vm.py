"""QEMU for the vsock backend's VM test, driven over a bare QMP socket."""

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.vsock_guest import Guest


class Vm:
    """A guest under TCG; with `vhost` its vsock device is there from the start."""

    def __init__(
        self,
        guest: Guest,
        directory: Path,
        vhost: socket.socket | None = None,
        *,
        memory: int = 512,
        cpus: int = 1,
        share: str = "on",
    ) -> None:
        self._qmp, qmp = socket.socketpair()
        self._console, console = socket.socketpair()
        self._log = (directory / "qemu.log").open("wb")
        passed = [qmp, console]
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max", "-m", str(memory), "-smp", str(cpus),
            "-object", f"memory-backend-memfd,id=ram,size={memory}M,share={share}",
            "-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", "console=ttyS0 quiet panic=-1",
            "-device", "pcie-root-port,id=port0,slot=1",
            "-chardev", f"socket,id=qmp,fd={qmp.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=con,fd={console.fileno()}", "-serial", "chardev:con",
        ]  # fmt: skip
        if vhost is not None:
            command += [
                "-chardev",
                f"socket,id=vs,fd={vhost.fileno()}",
                "-device",
                "vhost-user-vsock-pci,chardev=vs,id=vsock",
            ]
            passed.append(vhost)
        self.process = subprocess.Popen(command, pass_fds=[each.fileno() for each in passed], stderr=self._log)
        for each in passed:
            each.close()
        self.console = b""
        self._console.settimeout(90)
        self._qmp.settimeout(30)
        self._lines = self._qmp.makefile("rb")
        self.events: list[dict[str, Any]] = []
        json.loads(self._lines.readline())
        self.qmp("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def qmp(self, command: str, fd: int | None = None, **arguments: Any) -> Any:
        """Run a QMP command."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._qmp, [request], [fd] if fd is not None else [])
        while True:
            answer = json.loads(self._lines.readline())
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            else:
                return answer["return"]

    def wait_event(self, name: str, **data: str) -> None:
        """Until this event comes with this data, or came since the last look at events."""
        while not any(each["event"] == name and each["data"].items() >= data.items() for each in self.events):
            self.events.append(json.loads(self._lines.readline()))
        self.events.clear()

    def wait_console(self, text: bytes) -> None:
        """Until the guest's console shows `text`; what came before it is dropped."""
        while text not in self.console:
            data = self._console.recv(4096)
            assert data, f"QEMU ended; console: {self.console[-2000:]!r}"
            self.console += data
        self.console = self.console.partition(text)[2]

    def plug(self, vhost: socket.socket) -> None:
        """Hotplug the vsock device, as the runtime does for clones of a template."""
        self.qmp("getfd", fd=vhost.fileno(), fdname="vs")
        vhost.close()
        address = {"type": "fd", "data": {"str": "vs"}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.qmp("chardev-add", id="vs", backend=backend)
        self.qmp("device_add", driver="vhost-user-vsock-pci", id="vsock", chardev="vs", bus="port0")

    def unplug(self) -> None:
        """Remove it again."""
        self.events.clear()
        self.qmp("device_del", id="vsock")
        # There is another one before it, for the virtio device inside; the chardev is busy until this one.
        self.wait_event("DEVICE_DELETED", device="vsock")
        self.qmp("chardev-remove", id="vs")

    def close(self) -> None:
        """End QEMU."""
        with contextlib.suppress(OSError, ValueError):
            self.qmp("quit")
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._lines.close()
        self._qmp.close()
        self._console.close()
        self._log.close()
