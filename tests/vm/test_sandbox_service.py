"""`containerd.runtime.sandbox.v1.Sandbox` over ttrpc: a shim without containerd, with a real guest."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_protos.containerd import sandbox_pb2 as pb
from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.cgroups2_pb2 import Metrics
from kata_protos.containerd.types_task_pb2 import RUNNING, STOPPED
from kata_runtime.shim.ttrpc.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RpcError
from kata_traces.read.trace import load_store
from kata_traces.store.store import Store
from support.containerd import eventually
from support.cri import cri_pb2 as cri
from support.kata_containers import vm_pids
from support.shim_process import Shim, running_shim

pytestmark = pytest.mark.slow

# Trace ids of callers.
CALLER, OTHER = 0xC0FFEE, 0xBEEF


@pytest.fixture
async def shim(guest_image: None, artifacts: Path) -> AsyncIterator[Shim]:
    async with running_shim() as shim:
        yield shim


@pytest.fixture
def traced(artifacts: Path) -> None:
    (artifacts / "configuration.toml").write_text(
        f'[runtime]\ntrace_dir = "{artifacts}/traces"\nenable_tracing = true\n[agent.kata]\nenable_tracing = true\n'
    )


def pod_config(hostname: str) -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(hostname=hostname, metadata=cri.PodSandboxMetadata(name="p"))


async def test_life_of_a_sandbox(traced: None, shim: Shim, artifacts: Path) -> None:
    platform = await shim.box("Platform", pb.PlatformRequest(sandbox_id="pod-of-its-own"), pb.PlatformResponse)
    assert (platform.platform.os, platform.platform.architecture) == ("linux", "amd64")
    request = pb.CreateSandboxRequest(sandbox_id="pod-of-its-own", bundle_path=str(shim.bundle))
    request.options.type_url = "runtime.v1.PodSandboxConfig"
    request.options.value = pod_config("from-cri").SerializeToString()
    shim.caller = f"00-{CALLER:032x}-00000000000000aa-01"
    await shim.box("CreateSandbox", request, pb.CreateSandboxResponse)
    shim.caller = f"00-{OTHER:032x}-00000000000000bb-01"
    assert (await shim.status()).state == "SANDBOX_CREATED"
    started = await shim.boot()
    assert [started.pid] == vm_pids("pod-of-its-own")
    status = await shim.status()
    assert (status.sandbox_id, status.pid, status.state) == ("pod-of-its-own", started.pid, "SANDBOX_READY")
    assert status.created_at == started.created_at
    assert not status.HasField("exited_at")
    assert status.info["configuration"].split(", ")[0] == f"{artifacts}/configuration.toml"
    await shim.box("PingSandbox", pb.PingRequest(sandbox_id="pod-of-its-own"), pb.PingResponse)
    waiting = asyncio.create_task(shim.wait())

    # No container's end is the sandbox's, and containers share its name and memory.
    first = await shim.run("first", "echo here > /dev/shm/mark; hostname; exit 3")
    ended = await shim.task("Wait", task.WaitRequest(id="first"), task.WaitResponse)
    assert ended.exit_status == 3
    assert first.read_text() == "from-cri\n"
    await shim.task("Delete", task.DeleteRequest(id="first"), task.DeleteResponse)
    await shim.task("Shutdown", task.ShutdownRequest(id="first"), Empty)
    second = await shim.run("second", "cat /dev/shm/mark; while :; do sleep 1; done")
    eventually(lambda: second.read_text() == "here\n", "no shared memory")
    metrics = await shim.box(
        "SandboxMetrics", pb.SandboxMetricsRequest(sandbox_id="pod-of-its-own"), pb.SandboxMetricsResponse
    )
    numbers = Metrics.FromString(metrics.metrics.data.value)
    assert metrics.metrics.id == "pod-of-its-own"
    assert 1 <= numbers.pids.current <= 2
    assert numbers.memory.usage > 0
    assert not waiting.done()

    await shim.stop()
    assert (await waiting).exit_status == 0
    stopped = await shim.task("State", task.StateRequest(id="second"), task.StateResponse)
    assert (stopped.status, stopped.exit_status) == (STOPPED, 137)
    assert vm_pids("pod-of-its-own") == []
    status = await shim.status()
    assert (status.state, status.exited_at) == ("SANDBOX_NOTREADY", waiting.result().exited_at)
    await shim.stop()  # safe to repeat
    await shim.shutdown()
    await asyncio.to_thread(shim.delete)  # which waits for the shim
    its_trace_is_whole(artifacts)


def its_trace_is_whole(artifacts: Path) -> None:
    """One trace, which continues the first caller's; another one's is linked."""
    (store,) = (artifacts / "traces").iterdir()
    trace = load_store(Store(store))
    assert trace is not None
    assert (trace.root.name, trace.orphans, trace.negative()) == ("rootSpan", [], [])
    assert (trace.trace_id, trace.root.parent_id) == (f"{CALLER:032x}", f"{0xAA:016x}")
    assert f'"links":[{{"traceId":"{OTHER:032x}"' in (store / "spans.jsonl").read_text().replace(" ", "")
    names = Counter(span.name for span in trace.spans)
    assert names["create"] == 2
    assert names["StartSandbox"] == names["createSandboxFromConfig"] == names["setup_shared_namespaces"] == 1


async def test_errors(shim: Shim) -> None:
    async def refused(expected: type[RpcError], method: str, request: Message) -> None:
        with pytest.raises(expected):
            await shim.box(method, request, Empty)

    await refused(FailedPrecondition, "StartSandbox", pb.StartSandboxRequest(sandbox_id="pod-of-its-own"))
    for method in ("StopSandbox", "WaitSandbox", "SandboxStatus", "SandboxMetrics"):
        await refused(NotFound, method, getattr(pb, f"{method}Request")(sandbox_id="pod-of-its-own"))
    await refused(NotFound, "PingSandbox", pb.PingRequest(sandbox_id="pod-of-its-own"))
    await refused(InvalidArgument, "CreateSandbox", pb.CreateSandboxRequest(sandbox_id="other"))
    broken = pb.CreateSandboxRequest(sandbox_id="pod-of-its-own")
    broken.options.type_url, broken.options.value = "runtime.v1.PodSandboxConfig", b"\xff"
    await refused(InvalidArgument, "CreateSandbox", broken)
    await shim.create()
    for name in ("pod-of-its-own", "other"):  # one shim has one
        await refused(AlreadyExists, "CreateSandbox", pb.CreateSandboxRequest(sandbox_id=name))
    created = await shim.status()
    assert (created.state, created.pid, created.HasField("created_at")) == ("SANDBOX_CREATED", 0, True)
    await refused(FailedPrecondition, "PingSandbox", pb.PingRequest(sandbox_id="pod-of-its-own"))
    await refused(FailedPrecondition, "SandboxMetrics", pb.SandboxMetricsRequest(sandbox_id="pod-of-its-own"))
    await refused(NotFound, "StartSandbox", pb.StartSandboxRequest(sandbox_id="other"))
    with pytest.raises(FailedPrecondition):  # a container of a sandbox that has not been started
        await shim.run("early", "true")
    await shim.boot()
    await refused(FailedPrecondition, "StartSandbox", pb.StartSandboxRequest(sandbox_id="pod-of-its-own"))
    await shim.shutdown()


async def test_a_sandbox_that_can_not_boot(shim: Shim, artifacts: Path) -> None:
    (artifacts / "configuration.toml").write_text('[hypervisor.qemu]\nkernel = "/nowhere/vmlinux"\n')
    await shim.create()
    with pytest.raises(RpcError, match="/nowhere/vmlinux"):
        await shim.boot()
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    assert (await shim.wait()).exit_status == 255
    await shim.shutdown()


async def test_a_vm_that_dies(shim: Shim) -> None:
    await shim.create()
    started = await shim.boot()
    await shim.run("one", "while :; do sleep 1; done")
    state = await shim.task("State", task.StateRequest(id="one"), task.StateResponse)
    assert state.status == RUNNING
    waiting = asyncio.create_task(shim.wait())
    os.kill(started.pid, signal.SIGKILL)
    assert (await waiting).exit_status == 255
    ended = await shim.task("Wait", task.WaitRequest(id="one"), task.WaitResponse)
    assert ended.exit_status == 255
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    await shim.shutdown()
