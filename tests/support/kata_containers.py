"""Containers in VMs under a containerd of our own."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from kata_runtime.shim.grouping import SINGLE, Group
from kata_runtime.shim.launch import Launch
from kata_runtime.shim.ttrpc.client import Client
from kata_traces.read.trace import Trace, TraceSpan, load_store
from kata_traces.store.store import Store
from support import processes
from support.containerd import IMAGE, Containerd, eventually

__all__ = ["RUNTIME", "KataContainers", "ancestors", "vm_pids"]

_M = TypeVar("_M", bound=Message)
TASK = "containerd.task.v2.Task"
RUNTIME = ("--runtime", "io.containerd.kata.v2")
# For a guest that is emulated on a busy machine.
TIMEOUT = 240


@dataclass
class KataContainers:
    """`artifacts` has the configuration file that the shims read (KATA_CONF_FILE, see tests/conftest.py)."""

    containerd: Containerd
    artifacts: Path

    def tracing(self, level: str = "normal") -> None:
        """Trace the sandboxes from now on, both sides."""
        (self.artifacts / "configuration.toml").write_text(
            f'[runtime]\ntrace_dir = "{self.artifacts}/traces"\nenable_tracing = true\ntrace_level = "{level}"\n'
            "[agent.kata]\nenable_tracing = true\n"
        )

    def run(
        self, name: str, *command: str, options: tuple[str, ...] = (), data: bytes | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        """`ctr run --rm`; its status, stdout and stderr."""
        arguments = ("run", "--rm", *RUNTIME, *options, IMAGE, name, *command)
        return self.containerd.ctr(*arguments, check=False, timeout=TIMEOUT, data=data)

    def detached(self, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
        """`ctr run --detach`."""
        self.containerd.ctr("run", "--detach", *RUNTIME, *options, IMAGE, name, *command, timeout=TIMEOUT)

    def tasks(self, verb: str, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        """`ctr tasks VERB`."""
        return self.containerd.ctr("tasks", verb, *arguments, check=check, timeout=TIMEOUT)

    def exec(self, name: str, exec_id: str, *command: str) -> "subprocess.CompletedProcess[bytes]":
        """`ctr tasks exec`."""
        return self.tasks("exec", "--exec-id", exec_id, name, *command, check=False)

    def trace(self, sandbox: str) -> Trace:
        """A sandbox's trace, finished and whole."""
        (directory,) = (path for path in (self.artifacts / "traces").iterdir() if path.name.startswith(sandbox))
        trace = load_store(Store(directory))
        assert trace is not None
        assert trace.meta.lost == {}
        assert trace.orphans == []
        assert trace.negative() == []
        assert [span.name for span in trace.spans if span.open] == []
        return trace

    async def call(
        self, name: str, method: str, request: Message, answer: type[_M], *, traceparent: str = "", service: str = TASK
    ) -> _M:
        """One call to the shim of a task, past containerd and `ctr`, which know less than the protocol."""
        bundle = self.containerd.state / "io.containerd.runtime.v2.task" / "default" / name
        async with await Client.connect((bundle / "address").read_text()) as client:
            metadata = {"traceparent": traceparent} if traceparent else {}
            return await client.call(service, method, request, answer, timeout=60, metadata=metadata)

    def launch(self, name: str) -> Launch:
        """What the shim of a container knows of itself, as far as its socket's name needs it."""
        launch = Launch(namespace="default", container_id=name, bundle="", group=Group(SINGLE, name))
        launch.containerd = str(self.containerd.address)
        return launch

    def remains(self) -> list[str]:
        """What containers may not leave behind."""
        bundles = self.containerd.state / "io.containerd.runtime.v2.task" / "default"
        found = [str(path) for path in bundles.glob("*")]
        found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.containerd.state) in line]
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"kata_shim.py" in command and str(self.containerd.address).encode() in command:
                found.append(command.replace(b"\0", b" ").decode())
        return found

    def nothing_remains(self) -> None:
        """Wait until containerd has tidied up after its answer."""
        eventually(lambda: not self.remains(), "something is left behind")


def ancestors(span: TraceSpan) -> list[str]:
    """Names from a span's parent up to the root."""
    names = []
    while span.parent:
        span = span.parent
        names.append(span.name)
    return names


def vm_pids(sandbox: str) -> list[int]:
    """QEMU processes of a sandbox."""
    return processes.pids(b"qemu-system", f"sandbox-{sandbox},".encode())
