"""The agent's span buffer."""

import asyncio
import threading

import pytest

from kata_telemetry import buffer, otlp
from kata_telemetry.buffer import Batch, SpanBuffer
from kata_telemetry.span import Site, Tracer

site = Site(package="test", subsystem="unit")


def record(spans: SpanBuffer, *names: str, **attributes: str) -> None:
    tracer = Tracer("kata-agent", spans.sink)
    for name in names:
        tracer.start(name, attributes=attributes).finish()


def names(batch: Batch) -> list[str]:
    request = otlp.parse(batch.otlp)
    return [span.name for resource in request.resource_spans for s in resource.scope_spans for span in s.spans]


async def test_boot_spans_are_kept_until_tracing_is_known() -> None:
    spans = SpanBuffer()
    record(spans, "boot", "mount")
    spans.enable()
    spans.begin()
    batches = spans.drain()
    assert names(await anext(batches)) == ["boot", "mount"]
    record(spans, "create_sandbox")
    spans.close()
    assert [name for batch in [b async for b in batches] for name in names(batch)] == ["create_sandbox"]


async def test_tracing_off_keeps_nothing() -> None:
    spans = SpanBuffer()
    record(spans, "boot")
    spans.disable()
    record(spans, "more")
    assert len(spans) == 0
    assert not spans.enabled
    spans.close()
    assert [batch async for batch in spans.drain()] == []


async def test_never_decided_sends_nothing() -> None:
    spans = SpanBuffer()
    record(spans, "boot")
    spans.close()
    assert [batch async for batch in spans.drain()] == []


async def test_the_oldest_are_dropped_and_counted() -> None:
    spans = SpanBuffer(capacity=3)
    record(spans, *"abcde")
    spans.enable()
    spans.close()
    (batch,) = [batch async for batch in spans.drain()]
    assert names(batch) == ["c", "d", "e"]
    assert batch.dropped == 2


async def test_spans_from_other_threads_wake_the_drain() -> None:
    spans = SpanBuffer()
    spans.enable()
    spans.begin()
    batches = spans.drain()
    first = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)
    thread = threading.Thread(target=record, args=(spans, "threaded"))
    thread.start()
    async with asyncio.timeout(5):
        assert names(await first) == ["threaded"]
    thread.join()
    await batches.aclose()


async def test_one_caller_at_a_time_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "BATCH", 2)
    spans = SpanBuffer()
    spans.enable()
    spans.begin()
    record(spans, *"abcd")
    batches = spans.drain()
    assert names(await anext(batches)) == ["a", "b"]
    with pytest.raises(RuntimeError, match="already"):
        await anext(spans.drain())
    await batches.aclose()
    spans.close()
    assert [name for batch in [b async for b in spans.drain()] for name in names(batch)] == ["a", "b", "c", "d"]


async def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "MAX_FRAME", 3000)
    spans = SpanBuffer()
    spans.enable()
    record(spans, *[str(number) for number in range(8)], text="x" * 1000)
    record(spans, "too large", text="x" * 3500)
    spans.close()
    batches = [batch async for batch in spans.drain()]
    assert [name for batch in batches for name in names(batch)] == [str(number) for number in range(8)]
    assert all(len(batch.otlp) <= 3000 for batch in batches)
    assert sum(batch.dropped for batch in batches) == 1


async def test_it_waits_for_its_moment() -> None:
    spans = SpanBuffer()
    spans.enable()
    record(spans, "boot")
    first = asyncio.ensure_future(anext(spans.drain()))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.done()
    spans.begin()
    async with asyncio.timeout(5):
        assert names(await first) == ["boot"]


@pytest.mark.parametrize(("quiet", "linger"), [(0.01, 600), (600, 0.01)], ids=["once it is quiet", "at last anyway"])
async def test_spans_gather_and_then_go(monkeypatch: pytest.MonkeyPatch, quiet: float, linger: float) -> None:
    monkeypatch.setattr(buffer, "QUIET", quiet)
    monkeypatch.setattr(buffer, "LINGER", linger)
    spans = SpanBuffer()
    spans.enable()
    spans.begin()
    record(spans, "one", "two")
    async with asyncio.timeout(60):
        assert names(await anext(spans.drain())) == ["one", "two"]


async def test_what_comes_meanwhile_puts_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "LINGER", 600)
    monkeypatch.setattr(buffer, "QUIET", 0.01)
    spans = SpanBuffer()
    spans.enable()
    spans.begin()
    record(spans, "one")
    batch = asyncio.ensure_future(anext(spans.drain()))
    loop, timeout = asyncio.get_running_loop(), asyncio.timeout

    def another(delay: float) -> asyncio.Timeout:
        # Something happens in each quiet time, until it is enough.
        if delay == 0.01 and len(spans) < 5:
            loop.call_soon(record, spans, "more")
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", another)
    async with timeout(60):
        assert names(await batch) == ["one", *["more"] * 4]
