"""`containerd-shim-kata-v2` without containerd: a process, and a client of its two services."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from kata_protos.containerd import sandbox_pb2 as pb
from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.bootstrap_pb2 import BootstrapParams
from kata_protos.containerd.types_pb2 import Mount
from kata_runtime.shim.ttrpc.client import Client

__all__ = ["Shim", "running_shim"]

SHIM = Path(__file__).parent / "kata_shim.py"
_M = TypeVar("_M", bound=Message)


class Shim:
    """A shim's process for the sandbox `pod-of-its-own`, and a client of its two services."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = directory / "pod-of-its-own"
        self.bundle.mkdir()  # containerd puts no config.json there
        self.caller = ""  # W3C context of the calls of the sandbox service

    def _run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        code = f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(SHIM)!r}, run_name='__main__')"
        flags = ("-namespace", "ns", "-id", "pod-of-its-own", "-address", str(self.directory / "containerd.sock"))
        command = [sys.executable, "-I", "-S", "-c", code, *flags, *arguments]
        return subprocess.run(
            command, cwd=self.bundle, input=stdin, stdout=subprocess.PIPE, check=True, timeout=30
        ).stdout

    async def start(self) -> "Shim":
        """As containerd 2.3 starts it."""
        given = BootstrapParams(instance_id="pod-of-its-own", namespace="ns", socket_dir=str(self.directory / "s"))
        said = json.loads(await asyncio.to_thread(self._run, "start", stdin=given.SerializeToString()))
        assert said["version"] == 3
        self.client = await Client.connect(said["address"])
        return self

    def delete(self) -> None:
        """As containerd does after the end of every shim."""
        self._run("-bundle", str(self.bundle), "delete")

    async def box(self, method: str, request: Message, answer: type[_M]) -> _M:
        """A call of the sandbox service."""
        metadata = {"traceparent": self.caller} if self.caller else {}
        service = "containerd.runtime.sandbox.v1.Sandbox"
        return await self.client.call(service, method, request, answer, timeout=120, metadata=metadata)

    async def task(self, method: str, request: Message, answer: type[_M]) -> _M:
        """A call of the task service."""
        return await self.client.call("containerd.task.v3.Task", method, request, answer, timeout=120)

    async def create(self, **settings: Any) -> None:
        await self.box(
            "CreateSandbox", pb.CreateSandboxRequest(sandbox_id="pod-of-its-own", **settings), pb.CreateSandboxResponse
        )

    async def boot(self) -> pb.StartSandboxResponse:
        return await self.box(
            "StartSandbox", pb.StartSandboxRequest(sandbox_id="pod-of-its-own"), pb.StartSandboxResponse
        )

    async def status(self) -> pb.SandboxStatusResponse:
        request = pb.SandboxStatusRequest(sandbox_id="pod-of-its-own", verbose=True)
        return await self.box("SandboxStatus", request, pb.SandboxStatusResponse)

    async def wait(self) -> pb.WaitSandboxResponse:
        return await self.box("WaitSandbox", pb.WaitSandboxRequest(sandbox_id="pod-of-its-own"), pb.WaitSandboxResponse)

    async def stop(self) -> None:
        request = pb.StopSandboxRequest(sandbox_id="pod-of-its-own", timeout_secs=10)
        await self.box("StopSandbox", request, pb.StopSandboxResponse)

    async def shutdown(self) -> None:
        await self.box(
            "ShutdownSandbox", pb.ShutdownSandboxRequest(sandbox_id="pod-of-its-own"), pb.ShutdownSandboxResponse
        )

    async def run(
        self,
        name: str,
        *command: str,
        rootfs: Sequence[Mount] = (),
        mounts: Sequence[Mapping[str, Any]] = (),
        linux: Mapping[str, Any] | None = None,
    ) -> Path:
        """Create and start a container; the file that its output goes to. Without `rootfs` it has a shell alone."""
        bundle = self.directory / name
        output = bundle / "output"
        (bundle / "rootfs").mkdir(parents=True)
        if not rootfs:
            (bundle / "rootfs/bin").mkdir()
            shutil.copy2(shutil.which("busybox") or "busybox", bundle / "rootfs/bin/sh")
        spec = {
            "ociVersion": "1.0.2",
            "process": {"args": ["sh", "-c", *command], "cwd": "/", "env": ["PATH=/bin"]},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]},
                *mounts,
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")], **(linux or {})},
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        request = task.CreateTaskRequest(id=name, bundle=str(bundle), stdout=f"file://{output}", rootfs=rootfs)
        await self.task("Create", request, task.CreateTaskResponse)
        await self.task("Start", task.StartRequest(id=name), task.StartResponse)
        return output


@asynccontextmanager
async def running_shim() -> AsyncIterator[Shim]:
    """A shim's process for the block."""
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp") as directory:
        shim = Shim(Path(directory))
        try:
            yield await shim.start()
            await shim.client.close()
        finally:
            with suppress(FileNotFoundError, ProcessLookupError):
                handle = os.pidfd_open(int((shim.bundle / "shim.pid").read_text()))
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                os.close(handle)
            await asyncio.to_thread(shim.delete)
