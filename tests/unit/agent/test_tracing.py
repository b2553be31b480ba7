"""The agent's switch and buffer for spans."""

import asyncio
import socket
from collections import Counter

from kata_agent.server.funnel import Funnel
from kata_agent.server.tracing import MAX_RECORDED, Setting, Tracing
from kata_protos import agent_pb2 as pb
from kata_telemetry import otlp
from kata_telemetry.span import Kind, Level, Site, Span, SpanContext

site = Site(package="test", subsystem="unit")
ON = Setting(True, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", (0, 0))
OFF = ON._replace(enabled=False)
RECORDER = OFF._replace(recorder=True)


def names(batch: bytes) -> list[str]:
    request = otlp.parse(batch)
    return [span.name for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]


async def test_spans_that_end_after_the_first_batch_are_streamed_too() -> None:
    tracing = Tracing()
    tracing.configure(ON)
    tracing.first_started()
    got: list[str] = []
    first = asyncio.Event()

    async def stream() -> None:
        async for batch, _ in tracing.stream():
            got.extend(names(batch))
            first.set()

    tracing.begin("early", None, 1, site, Kind.SERVER).finish()
    streaming = asyncio.create_task(stream())
    async with asyncio.timeout(20):
        await first.wait()
        tracing.begin("late", None, 1, site, Kind.SERVER).finish()
        tracing.close()
        await streaming
    assert got == ["early", "late"]


async def collect(tracing: Tracing) -> list[str]:
    async with asyncio.timeout(20):
        return [name async for batch, _ in tracing.stream() for name in names(batch)]


def call(tracing: Tracing, name: str) -> None:
    tracing.begin(name, None, tracing.clock.now(), site, Kind.SERVER).finish()


async def test_a_flight_recorder_is_streamed_when_it_is_wanted() -> None:
    tracing = Tracing()
    tracing.configure(RECORDER, "box")
    tracing.first_started()
    for number in range(MAX_RECORDED + 10):
        call(tracing, f"span {number}")
    assert await collect_for_nothing(tracing) == []
    tracing.configure(ON)
    call(tracing, "wanted")
    streaming = asyncio.create_task(collect(tracing))
    await asyncio.sleep(0)
    tracing.close()
    assert await streaming == [*(f"span {number}" for number in range(10, MAX_RECORDED + 10)), "wanted"]


async def collect_for_nothing(tracing: Tracing) -> list[str]:
    """Who asks where nothing is wanted is sent away at once."""
    tracing._leisure.set()
    return await collect(tracing)


async def test_spans_before_the_hosts_are_left_out() -> None:
    tracing = Tracing()
    tracing.configure(RECORDER)
    tracing.first_started()
    call(tracing, "before")
    since = tracing.clock.to_host(tracing.clock.now())
    call(tracing, "after")
    tracing.configure(ON._replace(since=since, clock=None))
    tracing.close()
    assert await collect(tracing) == ["after"]


async def test_off_hands_out_what_was_wanted_and_ends_the_stream() -> None:
    tracing = Tracing()
    tracing.configure(ON)
    call(tracing, "wanted")
    streaming = asyncio.create_task(collect(tracing))
    await asyncio.sleep(0)
    tracing.configure(RECORDER)  # before there was time to encode anything
    call(tracing, "not wanted")
    assert await streaming == ["wanted"]
    tracing.configure(ON)
    streaming = asyncio.create_task(collect(tracing))
    await asyncio.sleep(0)
    call(tracing, "wanted again")
    tracing.close()
    assert await streaming == ["not wanted", "wanted again"]


async def test_off_while_it_streams() -> None:
    tracing = Tracing()
    tracing.configure(ON)
    tracing._leisure.set()
    call(tracing, "one")
    got: list[str] = []
    async with asyncio.timeout(20):
        async for batch, _ in tracing.stream():
            got += names(batch)
            if tracing.enabled:
                call(tracing, "two")
                tracing.configure(OFF)
    assert not tracing.enabled
    assert got == ["one", "two"]


async def test_children_of_a_call_below_the_level_are_the_callers() -> None:
    tracing = Tracing()
    tracing.configure(ON._replace(level=Level.ESSENTIAL))
    caller = SpanContext(1, 2)
    assert not tracing.records(Level.NORMAL)
    with tracing.without_span(caller), site.stage("inner") as inner:
        assert (inner.parent_id, inner.context.trace_id) == (2, 1)
    with tracing.without_span(None), site.stage("inner") as inner:
        assert f"{inner.parent_id:016x}" in ON.traceparent


async def test_what_is_open_when_it_is_switched_off_orphans_nobody() -> None:
    tracing = Tracing()
    tracing.configure(ON)
    tracing._leisure.set()
    with tracing.begin("parent", None, tracing.clock.now(), site, Kind.SERVER) as parent:
        with site.span("child"):
            pass
        tracing.configure(OFF)
        assert parent.end
    assert await collect(tracing) == ["child", "parent"]


async def test_what_is_asked_again_and_again_does_not_fill_the_trace() -> None:
    tracing = Tracing()
    tracing.configure(ON._replace(level=Level.DETAILED))

    class Service:
        async def stats_container(self, _: pb.StatsContainerRequest) -> pb.StatsContainerResponse:
            return pb.StatsContainerResponse()

        async def pause_container(self, _: pb.PauseContainerRequest) -> pb.Empty:
            return pb.Empty()

    class Context:
        def peer(self) -> str:
            return "unix:"

        def invocation_metadata(self) -> tuple[()]:
            return ()

    handlers = Funnel(tracing).service(pb, "AgentService", Service())._method_handlers  # type: ignore[attr-defined]
    for _ in range(100):
        for method, request in (("StatsContainer", pb.StatsContainerRequest()), ("PauseContainer", pb.Empty())):
            await handlers[f"/grpc.AgentService/{method}"].unary_unary(request, Context())
    tracing.first_started()
    tracing.close()
    got = Counter([name async for batch, _ in tracing.stream() for name in names(batch)])
    assert got == {"stats_container": 32, "pause_container": 100}


async def test_off_waits_for_no_forwarder_and_on_begins_again() -> None:
    """The runtime gets what the forwarder did not take, and the next stream is one of its own."""

    async def nobody() -> socket.socket:
        raise ConnectionRefusedError

    tracing = Tracing(dial=nobody)
    forwarded = ON._replace(forward=True)
    tracing._leisure.set()
    for name in ("first", "second"):
        tracing.configure(forwarded)
        streaming = asyncio.create_task(collect(tracing))
        call(tracing, name)
        await asyncio.sleep(0)
        tracing.configure(OFF)
        assert await streaming == [name]
    tracing.configure(forwarded)
    streaming = asyncio.create_task(collect(tracing))
    await asyncio.sleep(0)
    call(tracing, "last")
    tracing.close()
    assert await streaming == ["last"]


async def test_what_ends_while_the_boot_is_told_is_not_owed() -> None:
    """Its parent ends later, with tracing off: it would be an orphan."""
    loop = asyncio.get_running_loop()

    async def end() -> None:
        tracing.begin("kill", None, 1, site, Kind.SERVER).finish()

    def boot(tracing: Tracing, parent: Span | SpanContext) -> None:
        tracing.record("boot.agent", 1, 2, parent)
        asyncio.run_coroutine_threadsafe(end(), loop).result(20)

    tracing = Tracing(boot)
    tracing.configure(ON)
    tracing.begin("early", None, 1, site, Kind.SERVER).finish()
    tracing.configure(RECORDER)
    assert sorted(await collect(tracing)) == ["boot.agent", "early"]


async def test_a_template_forgets_all_that_it_has_recorded() -> None:
    boots: list[object] = []
    tracing = Tracing(lambda _, parent: boots.append(parent))
    call(tracing, "the template's")
    tracing.configure(ON, "template")
    tracing.first_started()
    open_still = tracing.begin("forgetting", None, 1, site, Kind.SERVER)
    waiting = asyncio.create_task(collect(tracing))
    await asyncio.sleep(0)
    tracing.forget()
    assert await waiting == []
    open_still.finish()
    assert not tracing.clock.known
    call(tracing, "before it is known what is wanted")
    tracing.configure(ON, "clone")
    call(tracing, "wanted")
    streaming = asyncio.create_task(collect(tracing))
    await asyncio.sleep(0)
    assert not streaming.done()  # the clone's first process comes first
    tracing.close()
    assert await streaming == ["before it is known what is wanted", "wanted"]
    assert boots == []
