"""The task service past `ctr`, which asks less than the protocol allows: its methods and errors, with a real guest."""

import json
import signal
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.cgroups2_pb2 import Metrics
from kata_protos.containerd.types_task_pb2 import CREATED, PAUSED, RUNNING, STOPPED
from kata_runtime.shim.ttrpc.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RpcError,
    Unimplemented,
    Unknown,
)
from support.containerd import eventually
from support.kata_containers import KataContainers

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
BOX = "asked"

# Calls to a container that runs, by how they fail.
REFUSED: dict[type[RpcError], list[tuple[str, Message]]] = {
    NotFound: [
        ("State", task.StateRequest(id="nobody")),
        ("State", task.StateRequest(id=BOX, exec_id="nobody")),
        ("Start", task.StartRequest(id=BOX, exec_id="nobody")),
        ("Wait", task.WaitRequest(id="nobody")),
        ("Stats", task.StatsRequest(id="nobody")),
        ("Pids", task.PidsRequest(id="nobody")),
        ("Pause", task.PauseRequest(id="nobody")),
        ("Resume", task.ResumeRequest(id="nobody")),
        ("Exec", task.ExecProcessRequest(id="nobody", exec_id="e")),
        ("Kill", task.KillRequest(id=BOX, exec_id="nobody", signal=9)),
        ("ResizePty", task.ResizePtyRequest(id=BOX, exec_id="nobody")),
        ("CloseIO", task.CloseIORequest(id=BOX, exec_id="nobody")),
        ("Update", task.UpdateTaskRequest(id="nobody")),
        ("Delete", task.DeleteRequest(id="nobody")),
    ],
    FailedPrecondition: [
        ("Start", task.StartRequest(id=BOX)),
        ("Delete", task.DeleteRequest(id=BOX)),
        ("Resume", task.ResumeRequest(id=BOX)),
        ("ResizePty", task.ResizePtyRequest(id=BOX, width=80, height=25)),
    ],
    AlreadyExists: [("Create", task.CreateTaskRequest(id=BOX))],
    InvalidArgument: [
        ("Exec", task.ExecProcessRequest(id=BOX, exec_id="e")),
        ("Exec", task.ExecProcessRequest(id=BOX)),
        ("Kill", task.KillRequest(id=BOX, signal=1000)),
        ("Update", task.UpdateTaskRequest(id=BOX)),
    ],
    Unimplemented: [
        ("Checkpoint", task.CheckpointTaskRequest(id=BOX)),
        ("Create", task.CreateTaskRequest(id="restored", checkpoint="/somewhere")),
        ("NoSuchMethod", Empty()),
    ],
}


class Asked:
    """The shim of one container."""

    def __init__(self, kata: KataContainers) -> None:
        self.kata = kata

    async def state(self, exec_id: str = "") -> task.StateResponse:
        request = task.StateRequest(id=BOX, exec_id=exec_id)
        return await self.kata.call(BOX, "State", request, task.StateResponse)

    async def do(self, method: str, request: Message) -> None:
        await self.kata.call(BOX, method, request, Empty)

    async def refused(self, expected: type[RpcError], method: str, request: Message) -> None:
        with pytest.raises(expected):
            await self.do(method, request)

    async def exec(self, exec_id: str, *command: str, terminal: bool = False, stdout: str = "") -> None:
        """Add an exec; it is not started."""
        process = {"args": command, "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal}
        request = task.ExecProcessRequest(id=BOX, exec_id=exec_id, terminal=terminal, stdout=stdout)
        request.spec.value = json.dumps(process).encode()
        await self.do("Exec", request)

    async def start(self, exec_id: str) -> task.StartResponse:
        return await self.kata.call(BOX, "Start", task.StartRequest(id=BOX, exec_id=exec_id), task.StartResponse)

    async def wait(self, exec_id: str = "") -> task.WaitResponse:
        return await self.kata.call(BOX, "Wait", task.WaitRequest(id=BOX, exec_id=exec_id), task.WaitResponse)

    async def delete(self, exec_id: str) -> task.DeleteResponse:
        return await self.kata.call(BOX, "Delete", task.DeleteRequest(id=BOX, exec_id=exec_id), task.DeleteResponse)

    async def stats(self) -> Metrics:
        found = await self.kata.call(BOX, "Stats", task.StatsRequest(id=BOX), task.StatsResponse)
        return Metrics.FromString(found.stats.value)


async def lives_of_execs(shim: Asked, output: Path) -> None:
    """From added to deleted; a second one of the same name; one that never starts; one that can't; a terminal."""
    await shim.exec("e", "sh", "-c", "echo out; exit 3", stdout=f"file://{output}")
    await shim.refused(AlreadyExists, "Exec", task.ExecProcessRequest(id=BOX, exec_id="e"))
    assert (await shim.state("e")).status == CREATED
    await shim.refused(FailedPrecondition, "Kill", task.KillRequest(id=BOX, exec_id="e", signal=9))
    await shim.start("e")
    ended = await shim.wait("e")
    assert (ended.exit_status, (await shim.state("e")).status) == (3, STOPPED)
    assert await shim.wait("e") == ended
    await shim.refused(NotFound, "Kill", task.KillRequest(id=BOX, exec_id="e", signal=9))
    await shim.refused(FailedPrecondition, "Start", task.StartRequest(id=BOX, exec_id="e"))
    assert (await shim.delete("e")).exit_status == 3
    await shim.refused(NotFound, "Delete", task.DeleteRequest(id=BOX, exec_id="e"))
    assert output.read_bytes() == b"out\n"
    await shim.exec("never", "true")
    never = await shim.delete("never")  # as by runc's shim
    assert (never.exit_status, never.HasField("exited_at")) == (0, False)
    await shim.exec("missing", "no-such-command")
    with pytest.raises(Unknown, match="no-such-command"):
        await shim.start("missing")
    await shim.delete("missing")
    await shim.exec("tty", "sh", "-c", "stty size; sleep 1000", terminal=True, stdout=f"file://{output}")
    await shim.do("ResizePty", task.ResizePtyRequest(id=BOX, exec_id="tty", width=91, height=17))
    await shim.start("tty")
    eventually(lambda: b"17 91" in output.read_bytes(), "the terminal has another size")
    await shim.refused(FailedPrecondition, "Delete", task.DeleteRequest(id=BOX, exec_id="tty"))
    pids = await shim.kata.call(BOX, "Pids", task.PidsRequest(id=BOX), task.PidsResponse)
    assert len(pids.processes) >= 2
    await shim.do("Kill", task.KillRequest(id=BOX, exec_id="tty", signal=signal.SIGKILL))
    assert (await shim.wait("tty")).exit_status == 137
    await shim.delete("tty")


async def test_every_method_and_its_errors(kata: KataContainers) -> None:
    kata.tracing()
    kata.detached(BOX, "sh", "-c", "trap 'echo got it' USR1; while :; do sleep 0.1; done")
    shim = Asked(kata)
    traceparent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    pid = (await shim.state()).pid
    connected = await kata.call(BOX, "Connect", task.ConnectRequest(id=BOX), task.ConnectResponse)
    assert (connected.task_pid, connected.version) == (pid, "2")
    bundle = kata.containerd.state / "io.containerd.runtime.v2.task" / "default" / BOX
    assert connected.shim_pid == int((bundle / "shim.pid").read_text())

    resources = task.UpdateTaskRequest(id=BOX)
    resources.resources.value = json.dumps({"memory": {"limit": 134217728}, "pids": {"limit": 33}}).encode()
    await kata.call(BOX, "Update", resources, Empty, traceparent=traceparent)
    metrics = await shim.stats()
    assert (metrics.memory.usage_limit, metrics.pids.limit) == (134217728, 33)

    for expected, calls in REFUSED.items():
        for method, wrong in calls:
            await shim.refused(expected, method, wrong)
    with pytest.raises(Unimplemented):
        await kata.call(BOX, "State", task.StateRequest(id=BOX), Empty, service="no.such.Service")

    await lives_of_execs(shim, kata.artifacts / "output")
    await shim.do("Pause", task.PauseRequest(id=BOX))
    assert (await shim.state()).status == PAUSED
    await shim.refused(FailedPrecondition, "Pause", task.PauseRequest(id=BOX))
    late = task.ExecProcessRequest(id=BOX, exec_id="late")
    late.spec.value = json.dumps({"args": ["true"], "cwd": "/"}).encode()
    await shim.refused(FailedPrecondition, "Exec", late)
    await shim.do("Resume", task.ResumeRequest(id=BOX))
    assert (await shim.state()).status == RUNNING
    # Others need the shim.
    await shim.do("Shutdown", task.ShutdownRequest(id=BOX))
    assert (await shim.state()).status == RUNNING

    await shim.do("Kill", task.KillRequest(id=BOX, signal=signal.SIGKILL, all=True))
    assert (await shim.wait()).exit_status == 137
    kata.tasks("delete", BOX, check=False)
    kata.nothing_remains()
    # Another trace than the caller's is linked with it, never mixed.
    assert kata.trace(BOX).trace_id != TRACE_ID
    (spans,) = (kata.artifacts / "traces").glob(f"{BOX}*/spans.jsonl")
    assert f'"links":[{{"traceId":"{TRACE_ID}"' in spans.read_text().replace(" ", "")


async def test_a_health_check_does_not_fill_the_trace(kata: KataContainers) -> None:
    kata.tracing("detailed")
    kata.detached(BOX, "sleep", "1000")
    for _ in range(50):
        await kata.call(BOX, "State", task.StateRequest(id=BOX), task.StateResponse)
        await kata.call(BOX, "Connect", task.ConnectRequest(id=BOX), task.ConnectResponse)
        await kata.call(BOX, "Pids", task.PidsRequest(id=BOX), task.PidsResponse)
        await kata.call(BOX, "Stats", task.StatsRequest(id=BOX), task.StatsResponse)
    # What fails is always told.
    for _ in range(40):
        with pytest.raises(NotFound):
            await kata.call(BOX, "State", task.StateRequest(id="nobody"), task.StateResponse)
    kata.tasks("delete", "--force", BOX)
    kata.nothing_remains()
    names: dict[str, int] = {}
    failed = 0
    for span in kata.trace(BOX).spans:
        names[span.name] = names.get(span.name, 0) + 1
        failed += span.name == "State" and span.failed
    for name in ("State", "Connect", "Pids", "Stats", "AgentService.StatsContainer", "stats_container"):
        assert names[name] - (failed if name == "State" else 0) <= 40, (name, names[name])
    assert failed == 40
