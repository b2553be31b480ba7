"""What surrounds a call."""

import logging

import pytest

from kata_protos.containerd.task_pb2 import CreateTaskRequest, StateRequest
from kata_runtime.shim.funnel import CallFunnel
from kata_runtime.shim.log import FifoHandler
from kata_runtime.shim.ttrpc.errors import NotFound
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.logs import Formatter
from kata_telemetry.span import NO_SPAN, Level, Site, Span, SpanContext, Status, Tracer, current

TASK = "containerd.task.v2.Task"
CALLER = SpanContext(0x11, 0x22)


@pytest.fixture
def ended() -> list[Span]:
    return []


@pytest.fixture
def root(ended: list[Span]) -> Span:
    return Tracer("kata", ended.append).start("rootSpan", attributes={"sandbox_id": "pod"})


def call(method: str, parent: SpanContext | None = None, exec_id: str = "") -> Call:
    metadata = {"traceparent": (parent.to_traceparent(),)} if parent else {}
    return Call(TASK, method, metadata, request=StateRequest(id="one", exec_id=exec_id))


def test_a_call_is_a_span_under_the_root(ended: list[Span], root: Span) -> None:
    funnel = CallFunnel(lambda call: root)
    with funnel(Call(TASK, "Create", request=CreateTaskRequest(id="one"))):
        assert current().name == "create"
    with funnel(call("Start", CALLER, exec_id="e1")):
        pass
    create, start = ended
    assert {create.parent_id, start.parent_id} == {root.context.span_id}
    assert (create.attributes["container_id"], create.attributes["sandbox_id"]) == ("one", "pod")
    assert (create.attributes["package"], create.attributes["subsystem"]) == ("containerdshim", "task")
    assert start.attributes["exec_id"] == "e1"
    assert (list(create.links), start.links) == ([], [CALLER])


def test_without_a_trace_nothing_is_recorded(ended: list[Span]) -> None:
    with CallFunnel(lambda call: NO_SPAN)(call("Start", CALLER)):
        assert not current().recording
    assert ended == []


def test_the_root_may_depend_on_the_caller(ended: list[Span]) -> None:
    tracer = Tracer("kata", ended.append)
    funnel = CallFunnel(lambda call: tracer.start("rootSpan", parent=call.parent))
    with funnel(call("Create", CALLER)):
        assert current().context.trace_id == CALLER.trace_id


@pytest.mark.parametrize(("level", "recorded"), [(Level.NORMAL, 0), (Level.DETAILED, 32)])
def test_what_is_asked_again_and_again_does_not_fill_the_trace(
    ended: list[Span], root: Span, level: Level, recorded: int
) -> None:
    root.tracer.level = level
    funnel = CallFunnel(lambda call: root)
    inside = Site(package="virtcontainers", subsystem="agent")
    for number in range(100):
        with funnel(call("State")), inside.span("AgentService.Something"):
            assert current().recording == (number < recorded)
    # With what happens in it: a call to the agent would be a span, and the agent's own another one.
    assert len(ended) == 2 * recorded
    ended.clear()
    for _ in range(3):
        with pytest.raises(NotFound), funnel(call("State")):
            raise NotFound("no container one")
    assert [(span.name, span.status) for span in ended] == [("State", Status.ERROR)] * 3
    assert {span.parent_id for span in ended} == {root.context.span_id}
    for _ in range(100):
        with funnel(call("Kill")):
            pass
    assert len(ended) == 103


def test_log_lines_say_which_call_they_are_about(caplog: pytest.LogCaptureFixture) -> None:
    with CallFunnel(lambda call: NO_SPAN)(call("Start", exec_id="e1")):
        line = Formatter("logfmt", "runtime").format(logging.makeLogRecord({"msg": "hello", "name": "kata.x"}))
    assert line.endswith("msg=hello method=Start container=one exec=e1")


def test_a_full_log_drops_lines_and_says_so() -> None:
    import os

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        handler = FifoHandler(writing)
        record = logging.makeLogRecord({"msg": "x" * 4000, "levelname": "INFO"})
        for _ in range(100):
            handler.emit(record)
        dropped = handler.dropped
        assert dropped > 50
        os.read(reading, 1 << 20)
        handler.emit(record)
        assert f" dropped={dropped}\n".encode() in os.read(reading, 1 << 20)
        assert handler.dropped == 0
    finally:
        os.close(reading)
        os.close(writing)
