"""The agent as a process of its own, with the diet of modules it has in a guest; reaping and tracing seen from
outside.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from kata_protos import agent_pb2 as pb
from support.agent import AgentClient, agent_client, remote_client

pytestmark = pytest.mark.slow

TRACE, PARENT = "ab" * 16, "cd" * 8


@asynccontextmanager
async def process(directory: Path, *arguments: str) -> AsyncIterator[tuple[AgentClient, asyncio.subprocess.Process]]:
    """An agent that serves unix sockets in `directory`, and its client."""
    command = [sys.executable, "-m", "kata_agent.main", "--unix", str(directory), *arguments]
    agent = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert agent.stdout
    try:
        assert await agent.stdout.readline() == b"kata-agent: ready\n"
        async with remote_client(directory) as client:
            yield client, agent
    finally:
        if agent.returncode is None:
            agent.send_signal(signal.SIGTERM)
        await agent.wait()


def modules(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def test_a_life_with_the_diet(tmp_path: Path) -> None:
    async with process(tmp_path, "--crun", str(Path(__file__).parents[1] / "support/fake_crun.py")) as (client, agent):
        await client.create_sandbox()
        stdout = await client.stdio()
        await client.run("c1", "sh", "-c", "echo hello; exit 3", stdout=stdout)
        assert await stdout.read_all() == b"hello\n"
        assert (await client.wait("c1")).status == 3
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.create("c2", "nosuch")
        assert dict(error.value.trailing_metadata() or ())["kata-error"] == "command-not-found"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.rpc.CreateContainer(pb.CreateContainerRequest(container_id="c3", oci=b"{"))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await client.remove("c1")
        await client.rpc.DestroySandbox(pb.DestroySandboxRequest())
        assert await agent.wait() == 0


async def test_orphans_are_reaped_and_statuses_kept(tmp_path: Path) -> None:
    async with process(tmp_path, "--crun", str(Path(__file__).parents[1] / "support/fake_crun.py")) as (client, agent):
        await client.create_sandbox()
        # Containers that end at once and leave orphans, many at a time: no status may be lost or mixed up.
        script = "(sleep 0.01 & sleep 0.02 &) ; exit {}"

        async def one(number: int) -> int:
            await client.run(f"c{number}", "sh", "-c", script.format(number))
            return (await client.wait(f"c{number}")).status

        results = await asyncio.gather(*(one(number) for number in range(1, 13)))
        assert results == list(range(1, 13))
        async with asyncio.timeout(10):
            while children := _children(agent.pid):
                await client.health.Check(pb.CheckRequest())
        assert not children
        await client.rpc.DestroySandbox(pb.DestroySandboxRequest())


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


@pytest.mark.parametrize("traced", [False, True])
async def test_opentelemetry_only_when_tracing(tmp_path: Path, traced: bool) -> None:
    code = (
        "import asyncio, sys; sys.argv = ['kata-agent', *sys.argv[1:]]\n"
        "from kata_agent.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "names = [n for n in sys.modules if n.startswith('opentelemetry')]\n"
        "print('opentelemetry' if names else 'without')\n"
    )
    fake = str(Path(__file__).parents[1] / "support/fake_crun.py")
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "--unix", str(tmp_path), "--crun", fake), stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout
    await agent.stdout.readline()
    try:
        async with remote_client(tmp_path) as client:
            await client.create_sandbox(tracing=pb.Tracing(enabled=traced))
            reading = asyncio.create_task(_spans(client))
            await client.run("c1", "true")
            await client.wait("c1")
            await client.rpc.DestroySandbox(pb.DestroySandboxRequest())
            assert bool(await reading) is traced
        assert (await agent.stdout.readline()).strip() == (b"opentelemetry" if traced else b"without")
    finally:
        if agent.returncode is None:
            agent.terminate()
        await agent.wait()


async def _spans(client: AgentClient) -> list[Span]:
    found: list[Span] = []
    async for batch in client.rpc.StreamSpans(pb.StreamSpansRequest()):
        for resource in ExportTraceServiceRequest.FromString(batch.otlp).resource_spans:
            assert any(a.value.string_value == "kata-agent" for a in resource.resource.attributes)
            for scope in resource.scope_spans:
                found.extend(scope.spans)
    return found


async def _traced_life(client: AgentClient, tracing: pb.Tracing, metadata: tuple[tuple[str, str], ...]) -> list[Span]:
    request = pb.CreateSandboxRequest(sandbox_id="s1", tracing=tracing)
    await client.rpc.CreateSandbox(request, metadata=metadata)
    reading = asyncio.create_task(_spans(client))
    await client.run("c1", "sh", "-c", "exit 1", env=["SECRET=hidden", "PATH=/bin:/usr/bin"])
    await client.wait("c1")
    gone = asyncio.create_task(client.agent.destroyed()) if client.agent else None
    await client.rpc.DestroySandbox(pb.DestroySandboxRequest(), metadata=metadata)
    spans = await reading
    if gone:
        await gone
    return spans


async def test_a_trace_of_our_own(tmp_path: Path) -> None:
    async with agent_client(tmp_path, real=False) as client:
        clock = pb.Clock(offset_ns=10**18, bound_ns=5)
        spans = await _traced_life(client, pb.Tracing(enabled=True, clock=clock), ())
    by_name = {span.name: span for span in spans}
    roots = [span for span in spans if not span.parent_span_id]
    assert [root.name for root in roots] == ["rootSpan"]
    assert {span.trace_id for span in spans} == {roots[0].trace_id}
    ids = {span.span_id for span in spans}
    assert all(span.parent_span_id in ids for span in spans if span.parent_span_id)
    assert {"create_sandbox", "create_container", "start_container", "wait_process", "destroy_sandbox"} <= set(by_name)
    assert by_name["crun create"].parent_span_id == by_name["create_container"].span_id
    assert all(span.start_time_unix_nano >= 10**18 for span in spans)
    assert all(roots[0].start_time_unix_nano <= span.start_time_unix_nano for span in spans)
    assert all(span.end_time_unix_nano <= roots[0].end_time_unix_nano for span in spans)
    attributes = {a.key: a.value.string_value for a in by_name["create_container"].attributes}
    assert attributes["container_id"] == "c1"
    assert attributes["sandbox_id"] == "s1"
    assert attributes["source"] == "agent"
    assert {"package", "subsystem"} <= set(attributes)
    assert "hidden" not in json.dumps([str(span) for span in spans])


async def test_a_trace_of_the_runtimes(tmp_path: Path) -> None:
    async with agent_client(tmp_path, real=False) as client:
        caller = "ef" * 8
        tracing = pb.Tracing(enabled=True, traceparent=f"00-{TRACE}-{PARENT}-01")
        spans = await _traced_life(client, tracing, (("traceparent", f"00-{TRACE}-{caller}-01"),))
    by_name = {span.name: span for span in spans}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert by_name["create_sandbox"].parent_span_id.hex() == caller
    assert by_name["create_container"].parent_span_id.hex() == PARENT
    assert by_name["destroy_sandbox"].parent_span_id.hex() == caller
    assert "rootSpan" not in by_name


async def test_a_trace_context_that_is_none(tmp_path: Path) -> None:
    async with agent_client(tmp_path, real=False) as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.create_sandbox(tracing=pb.Tracing(enabled=True, traceparent="nonsense"))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await client.create_sandbox()
        assert await _no_spans(client) == []


async def _no_spans(client: AgentClient) -> list[Span]:
    await client.run("c1", "true")
    spans = await _spans(client)
    await client.remove("c1")
    return spans


async def test_main_needs_to_be_told_what_to_do() -> None:
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kata_agent.main"), stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    _, text = await agent.communicate()
    assert agent.returncode == 2
    assert b"usage: kata-agent --unix DIR" in text
