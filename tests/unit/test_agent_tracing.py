"""The agent's switch and buffer for spans."""

import asyncio

from kata_agent.server.tracing import Setting, Tracing
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
