"""Whatever happens in a sandbox, and in whatever order: one trace, one root, no orphan, nothing secret.

The runtime's containers and processes talk to the real agent in this process; only crun and the sharing of root file
systems are fakes. Calls of several containers run beside each other, fail, and are cancelled at any moment.
"""

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Awaitable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kata_common.contract import Port
from kata_protos import agent_pb2 as pb
from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.errors import KataError
from kata_runtime.guest.agent import AgentClient
from kata_runtime.guest.clock import Reading
from kata_runtime.hypervisor.fake import FakeMachine
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.rootfs import Rootfs
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.trace import SandboxTrace
from kata_runtime.sandbox.vm import Vm
from kata_runtime.sandbox.volumes import Shown
from kata_telemetry.span import Site, use
from kata_traces.read.trace import Trace, TraceSpan, load_store
from kata_traces.store.store import Store
from support.agent import AgentClient as Client
from support.agent import agent_client

pytestmark = pytest.mark.slow

MILLISECOND = 1_000_000
CANARY = "canary-51b7e"
_trace = Site(package="test", subsystem="properties")


class Step(NamedTuple):
    """A call in a container's life; cancelled after `patience` ms, if that is not None."""

    what: str
    patience: int | None


steps = st.builds(
    Step,
    st.sampled_from(["exec", "exec fails", "signal", "pause", "stats", "wait", "start twice", "unknown"]),
    st.none() | st.integers(0, 40),
)


class Plan(NamedTuple):
    """One container: how it begins, what happens to it, and whether its end is awaited before it is removed."""

    begins: str
    patience: int | None
    steps: list[Step]
    awaited: bool


plans = st.builds(
    Plan,
    st.sampled_from(["runs", "ends", "fails"]),
    st.none() | st.none() | st.integers(0, 60),
    st.lists(steps, max_size=3),
    st.booleans(),
)


class UnixTransport:
    """A way to the agent in this process (kata_runtime.guest.transport.Transport)."""

    grpc_address = ""
    kata_address = ""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        stream = await self._client.dial(port)
        return stream.socket, stream.port


async def within(patience: int | None, work: Awaitable[object]) -> None:
    """Do it, or be cancelled; errors of ours are part of life."""
    with suppress(KataError, TimeoutError):
        async with asyncio.timeout(None if patience is None else patience / 1000):
            await work


def spec(client: Client, *args: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(client.spec(*args, env=["PATH=/bin:/usr/bin", f"SECRET={CANARY}"]))
    return content | {"annotations": {"secret": CANARY}}


async def live(client: Client, made: Container, plan: Plan, stdio: Stdio) -> None:
    commands = {
        "runs": ("sh", "-c", f"cat; exec sleep 60 # {CANARY}"),
        "ends": ("sh", "-c", f"echo {CANARY}"),
        "fails": ("/no/such/program", CANARY),
    }
    wanted = spec(client, *commands[plan.begins])
    await within(plan.patience, made.create(wanted, Rootfs(Path("/")), stdio, timeout=20))
    await within(None, made.start())
    for number, step in enumerate(plan.steps):
        # A process that sleeps is not waited for.
        patience = 40 if step.what == "wait" and step.patience is None else step.patience
        await within(patience, do(client, made, step.what, f"exec-{number}"))
    if plan.awaited and plan.begins == "ends":
        await within(None, made.wait())
    await within(None, made.remove())


async def do(client: Client, made: Container, what: str, exec_id: str) -> None:
    match what:
        case "exec" | "exec fails":
            program = "echo" if what == "exec" else "/no/such/program"
            extra = made.process(exec_id)
            await extra.exec(spec(client, program, CANARY)["process"], Stdio())
            try:
                await extra.wait()
            finally:
                await extra.close()
        case "signal":
            await made.signal(15)
        case "pause":
            await made.pause()
            await made.resume()
        case "stats":
            await made.pids()
        case "wait":
            await made.init.wait()
        case "start twice":
            await made.start()
        case _:
            await made.process(exec_id).signal(9)


async def scenario(directory: Path, sandbox: list[Plan]) -> Trace:
    runtime = RuntimeConfig(enable_tracing=True, trace_dir=str(directory / "traces"))
    config = Config(QemuConfig(), AgentConfig(enable_tracing=True), runtime)
    trace = SandboxTrace.open(config, "s1", command="test")
    read, write = os.pipe()
    os.write(write, f"{CANARY}\n".encode())
    os.close(write)
    null = os.open(os.devnull, os.O_WRONLY)
    with use(trace.root):
        async with agent_client(directory, real=False) as client, AgentClient.connected(address(client)) as agent:
            with _trace.span("StartVM") as boot:
                offset = trace.clock.to_host(0)
                tracing = trace.for_agent(boot, Reading(offset, 0))
                await agent.call(agent.service.CreateSandbox, pb.CreateSandboxRequest(sandbox_id="s1", tracing=tracing))
            trace.follow(agent)
            vm = Vm(FakeMachine(), UnixTransport(client), lambda: nullcontext(agent), lambda *_: nullcontext(Shown()))
            async with asyncio.TaskGroup() as group:
                for number, plan in enumerate(sandbox):
                    made = Container(f"c{number}", agent, vm, trace.root)
                    stdio = Stdio(read if number == 0 else None, null, null)
                    group.create_task(live(client, made, plan, stdio))
            assert client.agent is not None
            ending = asyncio.create_task(client.agent.destroyed())  # as the agent's main does
            await trace.finish_agent()
            await ending
    os.close(read)
    os.close(null)
    trace.close("exit 0")
    loaded = load_store(Store(directory / "traces/s1"))
    assert loaded is not None
    return loaded


def address(client: Client) -> str:

    return f"unix:{client.endpoints.path(Port.AGENT)}"


# What spans are about beyond the sandbox, by their names.
OF_A_CONTAINER = ("createContainer", "startContainer", "stopContainer", "process", "waitProcess", "crun ", "stdio.")
OF_CALLS = ("create_container", "start_container", "remove_container", "exec_process", "wait_process", "signal_process")
OF_AN_EXEC = ("enterContainer", "exec_process")


_IDS = ("sandbox_id", "container_id", "exec_id")


def about_too_little(span: TraceSpan) -> bool:
    needed = {"source", "package", "subsystem", "sandbox_id"}
    if span.name.startswith((*OF_A_CONTAINER, *OF_CALLS)):
        needed.add("container_id")
    if span.name in OF_AN_EXEC:
        needed |= {"container_id", "exec_id"}
    # What the agent was told, the runtime's call must say as well.
    parent = span.parent.attributes if span.parent and span.parent.service != span.service else span.attributes
    same = all(parent.get(key) == span.attributes.get(key) for key in _IDS)
    return not (needed <= span.attributes.keys() and same)


def outside(trace: Trace) -> list[str]:
    """Calls that are not within what waited for them, and children that begin before their parents."""
    found = []
    for span, before, after in trace.misfits(MILLISECOND):
        crosses = span.parent is not None and span.parent.service != span.service
        # Where the caller was cancelled, the agent undoes its work after that.
        cancelled = span.parent is not None and any(event.name == "cancelled" for event in span.parent.events)
        if before or (crosses and after and not cancelled):
            found.append(f"{span.name} in {span.parent and span.parent.name}: {before} {after}")
    return found


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],
)
@given(sandbox=st.lists(plans, min_size=1, max_size=3))
def test_any_life_makes_one_whole_trace(sandbox: list[Plan], caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level("DEBUG", "kata")
    with tempfile.TemporaryDirectory() as name:
        trace = asyncio.run(scenario(Path(name), sandbox))
        for path in (Path(name) / "traces").rglob("*"):
            assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    assert trace.foreign == trace.broken == 0
    assert trace.meta.lost == {}
    assert trace.orphans == []
    assert trace.root.name == "rootSpan"
    assert trace.services == ["kata", "kata-agent"]
    assert trace.negative() == []
    assert [span.name for span in trace.spans if span.open] == []
    assert [(span.name, dict(span.attributes)) for span in trace.spans if about_too_little(span)] == []
    assert outside(trace) == []
    assert [record for record in caplog.records if CANARY in record.getMessage() + repr(vars(record))] == []
