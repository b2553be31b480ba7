"""The agent's switch and buffer for spans."""

import asyncio
from collections import Counter

from kata_agent.server.funnel import Funnel
from kata_agent.server.tracing import Setting, Tracing
from kata_protos import agent_pb2 as pb
from kata_telemetry import otlp
from kata_telemetry.span import Kind, Site

site = Site(package="test", subsystem="unit")
ON = Setting(True, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", (0, 0))


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


async def test_what_is_asked_again_and_again_does_not_fill_the_trace() -> None:
    tracing = Tracing()
    tracing.configure(ON)

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
