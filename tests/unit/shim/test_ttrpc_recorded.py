"""Against frames that containerd 1.6.20 and its runc shim exchanged (tests/support/record_ttrpc.py)."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kata_common.contract import snake_case
from kata_protos.containerd import events_ttrpc_pb2, task_pb2, task_v3_pb2
from kata_protos.containerd.ttrpc_pb2 import Request, Response
from kata_runtime.shim.ttrpc.errors import RpcError
from kata_runtime.shim.ttrpc.frames import REQUEST, Frame, encode
from kata_runtime.shim.ttrpc.service import bind
from support.ttrpc_pair import Wire, recorded, serving, wire_to

TASK = task_pb2.DESCRIPTOR.services_by_name["Task"]
EVENTS = events_ttrpc_pb2.DESCRIPTOR.services_by_name["Events"]
SERVICES = {service.full_name: service for service in (TASK, EVENTS)}
SESSIONS = ["run", "exec", "terminal", "events"]


def calls(name: str) -> list[tuple[int, Request, Response]]:
    """Request and response of each call of a recorded session."""
    requests, found = {}, []
    for sender, frame in recorded(name):
        if sender == "client":
            assert (frame.kind, frame.flags) == (REQUEST, 0)
            requests[frame.stream] = Request.FromString(frame.data)
        else:
            found.append((frame.stream, requests[frame.stream], Response.FromString(frame.data)))
    assert len(requests) == len(found)
    return found


def test_every_method_has_been_recorded() -> None:
    seen = {request.method for name in SESSIONS for _, request, _ in calls(name)}
    assert seen == {method.name for service in SERVICES.values() for method in service.methods}


@pytest.mark.parametrize("name", SESSIONS)
def test_frames_come_out_as_they_went_in(name: str) -> None:
    for sender, frame in recorded(name):
        kind: type[Message] = Request if sender == "client" else Response
        assert encode(Frame(frame.stream, frame.kind, 0, kind.FromString(frame.data).SerializeToString())) == encode(
            frame
        )


@pytest.mark.parametrize("name", SESSIONS)
def test_payloads_hold_nothing_unknown(name: str) -> None:
    for _, request, response in calls(name):
        method = SERVICES[request.service].methods_by_name[request.method]
        for descriptor, payload in ((method.input_type, request.payload), (method.output_type, response.payload)):
            message = GetMessageClass(descriptor).FromString(payload)
            message.DiscardUnknownFields()
            assert message.SerializeToString() == payload


class Replay:
    """Answers as the recorded shim did."""

    def __init__(self, session: list[tuple[int, Request, Response]]) -> None:
        self._answers: defaultdict[tuple[str, bytes], list[Response]] = defaultdict(list)
        for _, request, response in session:
            self._answers[request.method, request.payload].append(response)

    def __getattr__(self, name: str) -> Callable[[Message], Any]:
        for method in (*TASK.methods, *EVENTS.methods):
            if snake_case(method.name) == name:
                return lambda request: self._answer(method.name, GetMessageClass(method.output_type), request)
        raise AttributeError(name)

    async def _answer(self, method: str, kind: type[Message], request: Message) -> Message:
        response = self._answers[method, request.SerializeToString()].pop(0)
        if response.HasField("status"):
            raise RpcError.of(response.status.code, response.status.message)
        return kind.FromString(response.payload)


@pytest.mark.parametrize("name", SESSIONS)
async def test_our_server_answers_byte_for_byte(name: str) -> None:
    session = calls(name)
    replay = Replay(session)
    frames = recorded(name)
    async with serving(None, bind(TASK, replay), bind(EVENTS, replay)) as server, await wire_to(server) as wire:
        # One after the other: requests that look the same had different answers at different times.
        for sender, frame in frames:
            if sender == "client":
                wire.send(frame)
                assert (await frame_of(wire, frame.stream)) == next(
                    answer for who, answer in frames if who == "server" and answer.stream == frame.stream
                )


async def frame_of(wire: Wire, stream: int) -> Frame:
    async with asyncio.timeout(5):
        frame = await wire.frame()
    assert frame.stream == stream
    return frame


def test_version_3_is_version_2_under_another_name() -> None:
    version_3 = task_v3_pb2.DESCRIPTOR.services_by_name["Task"]
    assert version_3.full_name == "containerd.task.v3.Task"
    assert [(m.name, m.input_type, m.output_type) for m in version_3.methods] == [
        (m.name, m.input_type, m.output_type) for m in TASK.methods
    ]
    assert len(TASK.methods) == 17
