"""The agent's end of the trace forwarder: what a forwarder that misbehaves, or isn't there, does to it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from kata_agent.server import forwarding
from kata_agent.server.forwarding import WINDOW, Forwarding
from kata_agent.server.listeners import UnixEndpoints
from kata_common.contract import Port
from kata_protos import agent_pb2 as pb
from kata_telemetry import otlp
from kata_telemetry.wire import NUMBER, Frames
from kata_traces.forwarder.inbox import Inbox
from kata_traces.forwarder.service import Forwarder
from kata_traces.forwarder.sources import HybridSource, Template
from kata_traces.store.store import Store
from support.agent import agent_client
from support.forwarder import names, span_names


class Peer:
    """A forwarder by hand. `confirm` says whether it confirms what it takes."""

    def __init__(self, path: Path, *, confirm: bool = True) -> None:
        self.path = path
        self.confirm = confirm
        self.taken: list[bytes] = []
        self.connections = 0
        self.changed = asyncio.Condition()
        self._streams: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Peer"]:
        server = await asyncio.start_unix_server(self._serve, str(self.path))
        try:
            yield self
        finally:
            self.hang_up()
            server.close()
            await server.wait_closed()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._streams.append(writer)
        frames, number = Frames(), 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for payload in frames.feed(data):
                    number += 1
                    async with self.changed:
                        self.taken.append(payload)
                        self.changed.notify_all()
                    if self.confirm:
                        writer.write(NUMBER.pack(number))
        writer.close()

    def hang_up(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.taken) >= count)


class Batches:
    """What the span buffer gives; `put` never waits."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[bytes, int] | None] = asyncio.Queue()
        self.ending = asyncio.Event()

    def put(self, *batches: bytes, dropped: int = 0) -> None:
        for batch in batches:
            self.queue.put_nowait((batch, dropped))

    def end(self) -> None:
        self.ending.set()
        self.queue.put_nowait(None)

    async def stream(self) -> AsyncGenerator[tuple[bytes, int], None]:
        while (batch := await self.queue.get()) is not None:
            yield batch


@contextlib.asynccontextmanager
async def forwarded(directory: Path) -> AsyncIterator[tuple[Batches, "asyncio.Task[list[tuple[bytes, int]]]"]]:
    """A Forwarding at work; the task's result is what was left for the runtime."""
    batches, endpoints = Batches(), UnixEndpoints(directory)
    work = Forwarding(lambda: endpoints.dial(Port.FORWARDER), batches.ending)

    async def run() -> list[tuple[bytes, int]]:
        return [left async for left in work.run(batches.stream())]

    task = asyncio.create_task(run())
    try:
        yield batches, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def host_port(tmp_path: Path) -> Path:
    return tmp_path / f"host_{Port.FORWARDER}"


async def test_everything_goes_to_the_forwarder(tmp_path: Path, host_port: Path) -> None:
    async with Peer(host_port).listening() as peer, forwarded(tmp_path) as (batches, task):
        batches.put(b"one", b"two", b"three")
        batches.end()
        async with asyncio.timeout(20):
            assert await task == []
        assert peer.taken == [b"one", b"two", b"three"]
        assert peer.connections == 1


async def test_a_forwarder_that_comes_late_and_comes_again(tmp_path: Path, host_port: Path) -> None:
    async with forwarded(tmp_path) as (batches, task):
        batches.put(b"early")
        async with Peer(host_port, confirm=False).listening() as first:
            await first.has(1)
            batches.put(b"second")
            await first.has(2)
        async with Peer(host_port).listening() as second:
            batches.put(b"third")
            batches.end()
            async with asyncio.timeout(20):
                assert await task == []
            # What the first one had not confirmed comes again, in order.
            assert second.taken == [b"early", b"second", b"third"]


async def test_without_a_forwarder_the_runtime_gets_all_at_the_end(tmp_path: Path) -> None:
    async with forwarded(tmp_path) as (batches, task):
        batches.put(b"one", b"two", dropped=3)
        batches.end()
        async with asyncio.timeout(forwarding.FLUSH):
            assert await task == [(b"", 3), (b"one", 0), (b"", 3), (b"two", 0)]


async def test_last_spans_that_are_encoded_late_still_go_to_the_forwarder(
    tmp_path: Path, host_port: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "FLUSH", 0.5)
    async with Peer(host_port).listening() as peer, forwarded(tmp_path) as (batches, task):
        batches.ending.set()
        await asyncio.sleep(0.6)  # longer than the forwarder has when all is there
        batches.put(b"late")
        batches.end()
        async with asyncio.timeout(20):
            assert await task == []
        assert peer.taken == [b"late"]


async def test_without_a_forwarder_nothing_piles_up(tmp_path: Path) -> None:
    async with forwarded(tmp_path) as (batches, task):
        batches.put(*(b"%d" % number for number in range(5 * WINDOW)))
        # The buffer keeps the rest, and drops its oldest when it is full.
        for _ in range(100):  # turns of the loop: nothing here waits for anything else
            await asyncio.sleep(0)
        assert batches.queue.qsize() == 5 * WINDOW - WINDOW
        batches.end()
        async with asyncio.timeout(20):
            assert [data for data, _ in await task] == [b"%d" % number for number in range(5 * WINDOW)]


async def test_a_forwarder_that_never_confirms_holds_the_end_up_for_a_bounded_time(
    tmp_path: Path, host_port: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "FLUSH", 0.1)
    async with Peer(host_port, confirm=False).listening() as peer, forwarded(tmp_path) as (batches, task):
        batches.put(b"one")
        await peer.has(1)
        batches.end()
        async with asyncio.timeout(20):
            assert await task == [(b"one", 0)]


async def test_a_forwarder_that_does_not_read(tmp_path: Path, host_port: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "FLUSH", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host_port))
        listener.listen(1)
        async with forwarded(tmp_path) as (batches, task):
            batches.put(*[b"x" * 200_000] * 3)
            batches.end()
            async with asyncio.timeout(20):
                assert len(await task) == 3


async def test_a_forwarder_that_lies_about_what_it_has(tmp_path: Path, host_port: Path) -> None:
    """It may confirm too much, and then loses it; the agent only does not fall over."""
    peer = Peer(host_port, confirm=False)
    async with peer.listening(), forwarded(tmp_path) as (batches, task):
        batches.put(b"one")
        await peer.has(1)
        peer._streams[0].write(NUMBER.pack(2**64 - 1) + b"\0\0\0")
        batches.end()
        async with asyncio.timeout(20):
            assert await task == []


@contextlib.asynccontextmanager
async def real_forwarder(directory: Path) -> AsyncIterator[Store]:
    """Ours, listening where an agent outside a guest looks for it."""

    def open_inbox(origin: object) -> Inbox:
        return Inbox(origin, "kata-agent", directory / "traces", lambda _: None)  # type: ignore[arg-type]

    forwarder = Forwarder(open_inbox)
    source = HybridSource(Template.parse(f"{directory}/host"), Port.FORWARDER, forwarder.accepted, forwarder.sweep)
    ready = asyncio.Event()
    task = asyncio.create_task(source.run(ready.set))
    await ready.wait()
    yield Store(directory / "traces" / directory.name)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await forwarder.close()


async def test_agent_and_forwarder(tmp_path: Path) -> None:
    directory = tmp_path / "agent1"
    directory.mkdir()
    async with agent_client(directory, real=False) as client, real_forwarder(directory) as store:
        tracing = pb.Tracing(
            enabled=True,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            clock=pb.Clock(offset_ns=time.time_ns() - time.monotonic_ns(), bound_ns=1),
            transport=pb.Tracing.FORWARDER,
        )
        await client.create_sandbox(tracing=tracing)
        stream = client.rpc.StreamSpans(pb.StreamSpansRequest())
        assert client.agent
        ending = asyncio.create_task(client.agent.destroyed())
        await client.rpc.DestroySandbox(pb.DestroySandboxRequest())
        async with asyncio.timeout(20):
            assert [batch async for batch in stream] == []
            await ending
        found = span_names(store)
        assert {"create_sandbox", "destroy_sandbox"} <= set(found)


def test_a_note_of_dropped_spans_has_no_span() -> None:
    assert names(otlp.note_of_dropped(3)) == []
