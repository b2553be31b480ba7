"""Events on their way to containerd."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from kata_protos.containerd import events_ttrpc_pb2
from kata_protos.containerd.events_pb2 import TaskExit, TaskStart
from kata_runtime.shim import events
from kata_runtime.shim.events import Publisher
from kata_runtime.shim.ttrpc.errors import InvalidArgument, RpcError, Unavailable
from kata_runtime.shim.ttrpc.server import Server
from kata_runtime.shim.ttrpc.service import Call, bind, current_call
from kata_telemetry.span import Span, Status, Tracer, use

EVENTS = events_ttrpc_pb2.DESCRIPTOR.services_by_name["Events"]


class Containerd:
    """Takes events, or fails with what stands in `failures`."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.calls: list[Call] = []
        self.failures: list[RpcError] = []
        self.arrived = asyncio.Event()
        self.envelopes: list[events_ttrpc_pb2.ForwardRequest] = []

    async def forward(self, request: events_ttrpc_pb2.ForwardRequest) -> Empty:
        call = current_call()
        assert call is not None
        self.calls.append(call)
        if self.failures:
            raise self.failures.pop(0)
        self.envelopes.append(request)
        self.taken.append((request.envelope.topic, request.envelope.event.value))
        self.arrived.set()
        return Empty()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.taken) < count:
                self.arrived.clear()
                await self.arrived.wait()

    @asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        async with Server([bind(EVENTS, self)]) as server:
            await server.listen(listener)
            yield
        path.unlink()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(events, "_LONGEST_PAUSE", 0.005)


def start(pid: int) -> TaskStart:
    return TaskStart(container_id="one", pid=pid)


async def test_events_arrive_in_order(tmp_path: Path) -> None:
    containerd = Containerd()
    async with containerd.serve(tmp_path / "s"), Publisher(str(tmp_path / "s"), "default") as publisher:
        for pid in range(50):
            publisher.publish("/tasks/start", start(pid))
        publisher.publish("/tasks/exit", TaskExit(container_id="one", exit_status=7))
    assert [TaskStart.FromString(value).pid for _, value in containerd.taken[:-1]] == list(range(50))
    assert containerd.taken[-1][0] == "/tasks/exit"
    envelope = containerd.envelopes[-1].envelope
    assert (envelope.namespace, envelope.event.type_url) == ("default", "containerd.events.TaskExit")
    assert envelope.timestamp.seconds > 1_700_000_000
    assert containerd.calls[0].metadata["containerd-namespace-ttrpc"] == ("default",)
    assert containerd.calls[0].timeout == pytest.approx(5)


async def test_events_wait_for_a_containerd_that_restarts(tmp_path: Path) -> None:
    containerd = Containerd()
    async with Publisher(str(tmp_path / "s"), "default") as publisher:
        publisher.publish("/tasks/start", start(1))
        await asyncio.sleep(0.01)  # some attempts find nobody
        async with containerd.serve(tmp_path / "s"):
            await containerd.wait_for(1)
        publisher.publish("/tasks/start", start(2))
        publisher.publish("/tasks/start", start(3))
        async with containerd.serve(tmp_path / "s"):
            containerd.failures.append(Unavailable("not yet"))
            await containerd.wait_for(3)
    assert [TaskStart.FromString(value).pid for _, value in containerd.taken] == [1, 2, 3]
    assert publisher.dropped == 0


async def test_what_containerd_refuses_does_not_hold_up_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    containerd = Containerd()
    containerd.failures.append(InvalidArgument("no such topic"))
    async with containerd.serve(tmp_path / "s"), Publisher(str(tmp_path / "s"), "default") as publisher:
        publisher.publish("/tasks/nonsense", start(1))
        publisher.publish("/tasks/start", start(2))
    assert [topic for topic, _ in containerd.taken] == ["/tasks/start"]
    assert publisher.dropped == 1
    assert "event /tasks/nonsense is lost: containerd refuses it: no such topic" in caplog.text


async def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_QUEUE_SIZE", 3)
    containerd = Containerd()
    async with Publisher(str(tmp_path / "s"), "default") as publisher:
        for pid in range(5):
            publisher.publish("/tasks/start", start(pid))
        async with containerd.serve(tmp_path / "s"):
            await containerd.wait_for(3)
    assert [TaskStart.FromString(value).pid for _, value in containerd.taken] == [2, 3, 4]
    assert publisher.dropped == 2


async def test_the_end_does_not_wait_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Nobody is there: no reason to wait.
    async with asyncio.timeout(5), Publisher(str(tmp_path / "s"), "default", patience=99) as publisher:
        publisher.publish("/tasks/start", start(1))
        publisher.publish("/tasks/delete", start(1))
    assert publisher.dropped == 2
    assert "event /tasks/delete is lost: the shim ends, and no ttrpc server answers" in caplog.text
    publisher.publish("/tasks/start", start(2))


async def test_the_end_waits_a_little_for_a_containerd_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        async with asyncio.timeout(5), Publisher(str(tmp_path / "s"), "default", patience=0.02) as publisher:
            publisher.publish("/tasks/exit", start(1))
    assert publisher.dropped == 1
    assert "event /tasks/exit is lost: the shim ends and containerd did not take it" in caplog.text


async def test_without_an_address_nobody_wants_events() -> None:
    async with Publisher("", "default") as publisher:
        publisher.publish("/tasks/start", start(1))
    assert publisher.dropped == 0


async def test_events_are_spans_from_their_publication_to_their_arrival(tmp_path: Path) -> None:
    ended: list[Span] = []
    tracer = Tracer("kata", ended.append)
    containerd = Containerd()
    containerd.failures.append(Unavailable("not yet"))
    containerd.failures.append(InvalidArgument("never"))
    with use(tracer.start("rootSpan")) as root:
        async with containerd.serve(tmp_path / "s"), Publisher(str(tmp_path / "s"), "default") as publisher:
            with tracer.start("Start", parent=root) as call:
                publisher.publish("/tasks/start", start(1))
                publisher.publish("/tasks/start", start(2))
    lost, arrived = sorted(
        (span for span in ended if span.name == "publishEvent"), key=lambda span: span.status, reverse=True
    )
    assert {span.parent_id for span in (lost, arrived)} == {call.context.span_id}
    assert lost.status == Status.ERROR
    assert arrived.attributes["topic"] == "/tasks/start"
    # The Forward call carries the context of the event's own span.
    parents = [call.parent.span_id for call in containerd.calls if call.parent]
    assert set(parents) == {lost.context.span_id, arrived.context.span_id}
