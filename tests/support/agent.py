"""The whole agent in the test's process, on unix sockets, and a client of it."""

import asyncio
import ctypes
import itertools
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from kata_agent.server.app import Agent, Layout
from kata_agent.server.listeners import UnixEndpoints
from kata_common.contract import Port
from kata_common.linux import become_subreaper
from kata_protos import agent_pb2 as pb
from kata_protos import agent_pb2_grpc

__all__ = ["AgentClient", "Stream", "agent_client", "real_crun_reason", "remote_client"]

HERE = Path(__file__).parent
HYBRID = Path("/sys/fs/cgroup/unified")
_ports = itertools.count(1_000_000)


def real_crun_reason() -> str:
    """Why the real crun can't be used here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("crun") or not shutil.which("busybox"):
        return "needs crun and busybox"
    return ""


class Stream:
    """A stdio stream as the host opens it."""

    def __init__(self, stream: socket.socket, port: int) -> None:
        self.socket = stream
        self.port = port
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def receive(self, count: int = 65536) -> bytes:
        return await self._loop.sock_recv(self.socket, count)

    async def read_all(self) -> bytes:
        parts = []
        while part := await self.receive(1 << 20):
            parts.append(part)
        self.close()
        return b"".join(parts)

    async def read_until(self, needle: bytes) -> bytes:
        data = b""
        while needle not in data:
            part = await self.receive()
            assert part, f"stream ended after {data!r}"
            data += part
        return data

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


class AgentClient:
    """What a runtime does with the agent."""

    def __init__(
        self, agent: Agent | None, endpoints: UnixEndpoints, channel: grpc.aio.Channel, root: Path | None = None
    ) -> None:
        self.agent = agent
        self.endpoints = endpoints
        self.rpc: Any = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health: Any = agent_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        self.root = root
        self._streams: list[Stream] = []

    async def dial(self, port: int) -> Stream:
        number = next(_ports)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        stream.bind(f"\0kata-test-{os.getpid()}:{number}")
        stream.connect(str(self.endpoints.path(port)))
        opened = Stream(stream, number)
        self._streams.append(opened)
        return opened

    async def stdio(self) -> Stream:
        return await self.dial(Port.STDIO)

    async def clock(self) -> Stream:
        return await self.dial(Port.CLOCK)

    def spec(self, *args: str, terminal: bool = False, **process: Any) -> bytes:
        """config.json for a container with that command."""
        namespaces = ["pid", "mount", "ipc", "uts", "network", "cgroup"]
        return json.dumps(
            {
                "ociVersion": "1.0.2",
                "process": {
                    "terminal": terminal,
                    "user": {"uid": 0, "gid": 0},
                    "args": args,
                    "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
                    "cwd": "/",
                    **process,
                },
                "root": {"path": str(self.root or "/")},
                "hostname": "test",
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
                ],
                "linux": {"namespaces": [{"type": kind} for kind in namespaces]},
            }
        ).encode()

    def process(self, *args: str, terminal: bool = False, **process: Any) -> bytes:
        """The process of an exec."""
        return json.dumps(json.loads(self.spec(*args, terminal=terminal, **process))["process"]).encode()

    async def create_sandbox(self, **fields: Any) -> None:
        await self.rpc.CreateSandbox(pb.CreateSandboxRequest(sandbox_id="sandbox", hostname="guest", **fields))

    async def create(
        self, container: str, *args: str, stdin: Stream | None = None, stdout: Stream | None = None,
        stderr: Stream | None = None, terminal: bool = False, **process: Any,
    ) -> None:  # fmt: skip
        await self.rpc.CreateContainer(
            pb.CreateContainerRequest(
                container_id=container,
                oci=self.spec(*args, terminal=terminal, **process),
                stdio=_ports_of(stdin, stdout, stderr),
            )
        )

    async def start(self, container: str) -> None:
        await self.rpc.StartContainer(pb.StartContainerRequest(container_id=container))

    async def run(self, container: str, *args: str, **options: Any) -> None:
        await self.create(container, *args, **options)
        await self.start(container)

    async def exec(
        self, container: str, exec_id: str, *args: str, stdin: Stream | None = None, stdout: Stream | None = None,
        stderr: Stream | None = None, terminal: bool = False, **process: Any,
    ) -> None:  # fmt: skip
        await self.rpc.ExecProcess(
            pb.ExecProcessRequest(
                container_id=container,
                exec_id=exec_id,
                process=self.process(*args, terminal=terminal, **process),
                stdio=_ports_of(stdin, stdout, stderr),
            )
        )

    async def wait(self, container: str, exec_id: str = "") -> pb.WaitProcessResponse:
        reply: pb.WaitProcessResponse = await self.rpc.WaitProcess(
            pb.WaitProcessRequest(container_id=container, exec_id=exec_id)
        )
        return reply

    async def signal(self, container: str, number: int, exec_id: str = "", **fields: Any) -> None:
        await self.rpc.SignalProcess(
            pb.SignalProcessRequest(container_id=container, exec_id=exec_id, signal=number, **fields)
        )

    async def remove(self, container: str, timeout: int = 10) -> None:
        await self.rpc.RemoveContainer(pb.RemoveContainerRequest(container_id=container, timeout=timeout))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def _ports_of(stdin: Stream | None, stdout: Stream | None, stderr: Stream | None) -> pb.StdioPorts:
    return pb.StdioPorts(
        stdin_port=stdin.port if stdin else 0,
        stdout_port=stdout.port if stdout else 0,
        stderr_port=stderr.port if stderr else 0,
    )


def _busybox_root(directory: Path) -> Path:
    """A root file system with busybox, a file that isn't executable and programs that can't be."""
    root = directory / "rootfs"
    for name in ("bin", "proc", "dev", "sys", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    for name in (
        "sh",
        "cat",
        "sleep",
        "echo",
        "seq",
        "ps",
        "true",
        "head",
        "wc",
        "stty",
        "kill",
        "dd",
        "hostname",
        "tty",
    ):
        (root / "bin" / name).symlink_to("busybox")
    (root / "bin/plain").write_text("no program\n")
    (root / "bin/garbage").write_bytes(b"\x00garbage")
    (root / "bin/orphan").write_text("#!/no/such/interpreter\n")
    for name in ("garbage", "orphan"):
        (root / "bin" / name).chmod(0o755)
    return root


@asynccontextmanager
async def remote_client(directory: Path) -> AsyncIterator[AgentClient]:
    """A client of an agent in another process that serves unix sockets in `directory`."""
    endpoints = UnixEndpoints(directory)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{endpoints.path(Port.AGENT)}", options) as channel:
        client = AgentClient(None, endpoints, channel)
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def agent_client(directory: Path, *, real: bool) -> AsyncIterator[AgentClient]:
    """Agent and client, with the real crun or the fake one."""
    hybrid = HYBRID if HYBRID.exists() else None
    layout = Layout(
        bundles=directory / "b",
        crun_state=directory / "crun",
        socket=directory / "grpc.sock",
        cgroups=hybrid or Path("/sys/fs/cgroup"),
        parent=f"/kata-test-{os.getpid()}",
        resolv_conf=directory / "resolv.conf",
        crun=str(HERE / "fake_crun.py"),
        shared_namespaces=real,
    )
    (directory / "resolv.conf").touch()
    if real:
        layout = layout._replace(crun=str(HERE / "crun_hybrid.sh") if hybrid else "crun")
    root = _busybox_root(directory) if real else None
    endpoints = UnixEndpoints(directory)
    become_subreaper()
    try:
        async with Agent(endpoints, layout=layout) as agent:
            # A channel of its own for each test: grpc shares back-off between channels to one address.
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"unix:{endpoints.path(Port.AGENT)}", options) as channel:
                client = AgentClient(agent, endpoints, channel, root)
                try:
                    yield client
                finally:
                    client.close()
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
        assert sys.exc_info()[0] is not None or not any((directory / "b").glob("[!.]*")), "bundles were left behind"
