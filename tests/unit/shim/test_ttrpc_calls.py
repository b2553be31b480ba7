"""Client and server against each other: calls, streams, errors, deadlines, context."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from kata_common.contract import snake_case
from kata_runtime.shim.ttrpc import errors
from kata_runtime.shim.ttrpc.client import Client
from kata_runtime.shim.ttrpc.errors import Code, RpcError
from kata_runtime.shim.ttrpc.frames import MAX_DATA
from kata_runtime.shim.ttrpc.server import Server
from kata_runtime.shim.ttrpc.service import Call, bind, current_call
from kata_telemetry.span import Span, Tracer, use
from support.ttrpc_echo import DESCRIPTOR, Echo
from support.ttrpc_pair import client_to, failure_of, serving

ECHO = "kata.test.Echo"


async def ask(client: Client, value: str, *, timeout: float | None = 5) -> str:
    return (await client.call(ECHO, "Unary", StringValue(value=value), StringValue, timeout=timeout)).value


async def test_unary() -> None:
    async with serving() as server, client_to(server) as client:
        assert await ask(client, "hello") == "hello"
        assert await ask(client, "") == ""


async def test_calls_on_one_connection_do_not_wait_for_each_other() -> None:
    turns = {"first": asyncio.Event(), "second": asyncio.Event()}

    class Crossed(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            if request.value == "first":
                await turns["second"].wait()
            turns[request.value].set()
            return request

    async with serving(Crossed()) as server, client_to(server) as client, asyncio.TaskGroup() as group:
        first = group.create_task(ask(client, "first"))
        await asyncio.sleep(0)
        assert await ask(client, "second") == "second"
        assert await first == "first"


@pytest.mark.parametrize("kind", RpcError.__subclasses__())
async def test_errors_arrive_as_themselves(kind: type[RpcError]) -> None:
    class Failing(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            raise kind(f"no {request.value}")

    async with serving(Failing()) as server, client_to(server) as client:
        with pytest.raises(kind, match=r"^no luck$") as caught:
            await ask(client, "luck")
        assert type(caught.value) is kind


def test_every_code_has_its_exception() -> None:
    assert {kind.code for kind in RpcError.__subclasses__()} == set(Code) - {Code.OK}
    assert type(RpcError.of(5, "x")) is errors.NotFound
    assert str(RpcError.of(77, "x")) == "x (status code 77)"


async def test_foreign_exceptions_become_unknown_and_harm_no_other_call(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            if request.value == "bad":
                raise FileNotFoundError("nothing containerd may take for a missing task")
            return request

    async with serving(Broken()) as server, client_to(server) as client:
        with pytest.raises(errors.Unknown, match="FileNotFoundError: nothing"):
            await ask(client, "bad")
        assert await ask(client, "good") == "good"
    assert "kata.test.Echo/Unary failed" in caplog.text


async def test_a_wrong_answer_type_is_our_error(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            return None  # type: ignore[return-value]

    async with serving(Wrong()) as server, client_to(server) as client:
        with pytest.raises(errors.Unknown, match="Unary answered NoneType, not StringValue"):
            await ask(client, "")


@pytest.mark.parametrize(
    ("service", "method", "said"),
    [("kata.test.Nothing", "Unary", "service kata.test.Nothing"), (ECHO, "Nothing", "no method Nothing")],
)
async def test_unknown_methods(service: str, method: str, said: str) -> None:
    async with serving() as server, client_to(server) as client:
        with pytest.raises(errors.Unimplemented, match=said):
            await client.call(service, method, StringValue(), StringValue)
        assert await ask(client, "still here") == "still here"


async def test_all_kinds_of_streams() -> None:
    async with serving() as server, client_to(server) as client:
        async with client.stream(ECHO, "Count", StringValue, request=StringValue(value="4")) as counting:
            assert [number.value async for number in counting] == ["0", "1", "2", "3"]
        async with client.stream(ECHO, "Collect", StringValue) as collecting:
            for word in ("a", "", "c"):
                await collecting.send(StringValue(value=word))
            collecting.close_send()
            assert (await collecting.single()).value == "a++c"
        async with client.stream(ECHO, "Chat", StringValue) as chat:
            for word in ("one", "two"):
                await chat.send(StringValue(value=word))
                answer = await chat.receive()
                assert answer is not None
                assert answer.value == word.upper()
            chat.close_send()
            assert await chat.receive() is None
            with pytest.raises(ValueError, match="closed"):
                await chat.send(StringValue())


async def test_a_stream_can_fail_in_the_middle() -> None:
    class Failing(Echo):
        async def count(self, request: StringValue) -> AsyncIterator[StringValue]:
            yield StringValue(value="0")
            raise errors.DataLoss("the rest is gone")

    async with (
        serving(Failing()) as server,
        client_to(server) as client,
        client.stream(ECHO, "Count", StringValue, request=StringValue(value="4")) as counting,
    ):
        assert await counting.receive() == StringValue(value="0")
        with pytest.raises(errors.DataLoss, match="the rest is gone"):
            await counting.receive()


class Slow(Echo):
    """Never answers; `cancelled` says that it was told to stop."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def unary(self, request: StringValue) -> StringValue:
        if request.value == "quick":
            return request
        self.running.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled.set()
        raise AssertionError


async def test_the_server_keeps_the_callers_deadline() -> None:
    slow = Slow()
    async with serving(slow) as server, client_to(server) as client:
        # The client itself would wait for ever.
        stream = client._start(ECHO, "Unary", b"", 0, StringValue, 0.02, None)
        stream._deadline = None
        async with stream:
            with pytest.raises(errors.DeadlineExceeded, match=r"Unary took longer than 0.02 s"):
                await stream.single()
        assert slow.cancelled.is_set()
        assert await ask(client, "quick") == "quick"


async def test_the_client_keeps_its_deadline_whatever_the_server_does() -> None:
    class Deaf(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            while True:
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    if released.is_set():
                        raise

    released = asyncio.Event()
    async with serving(Deaf()) as server, client_to(server) as client:
        with pytest.raises(errors.DeadlineExceeded, match=r"no answer within 0.02 s"):
            await ask(client, "", timeout=0.02)
        released.set()
        await server.close(grace=0)


async def test_a_deadline_that_has_passed_already() -> None:
    slow = Slow()
    async with serving(slow) as server, client_to(server) as client:
        stream = client._start(ECHO, "Unary", b"", 0, StringValue, -1.0, None)
        stream._deadline = None
        with pytest.raises(errors.DeadlineExceeded, match="took longer than"):
            await stream.single()


async def test_a_client_that_vanishes_cancels_its_calls_only() -> None:
    slow = Slow()
    async with serving(slow) as server, client_to(server) as other:
        async with client_to(server) as client, asyncio.TaskGroup() as group:
            doomed = group.create_task(failure_of(ask(client, "slow", timeout=None)))
            await slow.running.wait()
            await client.close()
            assert isinstance(await doomed, errors.ConnectionLost)
        async with asyncio.timeout(5):
            await slow.cancelled.wait()
        assert await ask(other, "quick") == "quick"


async def test_graceful_shutdown_lets_calls_finish() -> None:
    go = asyncio.Event()
    running = asyncio.Event()

    class Waiting(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            running.set()
            await go.wait()
            return request

    async with serving(Waiting()) as server, client_to(server) as client, asyncio.TaskGroup() as group:
        call = group.create_task(ask(client, "last words"))
        await running.wait()
        closing = group.create_task(server.close(grace=5))
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable, match="shutting down"):
            await ask(client, "too late")
        go.set()
        assert await call == "last words"
        await closing
        assert not client.open


async def test_shutdown_cancels_what_does_not_finish() -> None:
    slow = Slow()
    async with serving(slow) as server, client_to(server) as client, asyncio.TaskGroup() as group:
        call = group.create_task(failure_of(ask(client, "slow")))
        await slow.running.wait()
        await server.close(grace=0.01)
        error = await call
        assert (error.code, str(error)) == (Code.UNAVAILABLE, "the server is shutting down")


async def test_oversized_answers_fail_their_call_only() -> None:
    class Huge(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            return StringValue(value="x" * int(request.value))

    async with serving(Huge()) as server, client_to(server) as client:
        with pytest.raises(errors.ResourceExhausted, match="Unary's answer of"):
            await ask(client, str(MAX_DATA))
        assert len(await ask(client, str(MAX_DATA - 100))) == MAX_DATA - 100
        with pytest.raises(errors.ResourceExhausted, match="exceeds ttrpc's limit"):
            await ask(client, "x" * MAX_DATA)
        assert await ask(client, "2") == "xx"


async def test_metadata_and_trace_context_pass() -> None:
    seen: list[Call] = []

    class Looking(Echo):
        async def unary(self, request: StringValue) -> StringValue:
            call = current_call()
            assert call is not None
            seen.append(call)
            return request

    ended: list[Span] = []
    tracer = Tracer("kata", ended.append)
    async with serving(Looking()) as server, client_to(server) as client:
        with tracer.start("caller") as span:
            await client.call(ECHO, "Unary", StringValue(), StringValue, metadata={"Some-Key": "ä"}, timeout=9)
        await client.call(ECHO, "Unary", StringValue(), StringValue, metadata={"traceparent": "nonsense"})
    assert seen[0].metadata["some-key"] == ("ä",)
    assert seen[0].parent == span.context
    assert seen[0].timeout == 9
    assert seen[1].parent is None
    assert current_call() is None


async def test_the_funnel_surrounds_every_call() -> None:
    told: list[str] = []

    @contextmanager
    def funnel(call: Call) -> Iterator[None]:
        told.append(f"{call.method} {call.request}".strip())
        try:
            yield
        except Exception as error:
            told.append(type(error).__name__)
            raise
        told.append("done")

    async with serving(funnel=funnel) as server, client_to(server) as client:
        await ask(client, "a")
        with pytest.raises(errors.Unknown):
            await client.call(ECHO, "Count", StringValue(value="x"), StringValue)
    assert told == ['Unary value: "a"', "done", 'Count value: "x"', "ValueError"]


async def test_calls_are_spans_under_the_span_in_which_the_server_was_made() -> None:
    ended: list[Span] = []
    tracer = Tracer("kata", ended.append)
    root = tracer.start("rootSpan")
    with use(root):
        context = serving()
        server = await context.__aenter__()
    async with client_to(server) as client:
        await ask(client, "")
    await context.__aexit__(None, None, None)
    (span,) = ended
    assert (span.name, span.parent_id, span.kind) == ("Unary", root.context.span_id, 2)
    assert span.attributes["rpc_service"] == ECHO


async def test_listening_socket(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s")
    listener.bind(path)
    listener.listen()
    async with serving() as server:
        await server.listen(listener)
        for address in (path, f"unix://{path}"):
            async with await Client.connect(address) as client:
                assert await ask(client, "x") == "x"
    with pytest.raises(errors.ConnectionLost, match="no ttrpc server answers at"):
        await Client.connect(path)


def test_binding_wants_every_method() -> None:
    with pytest.raises(TypeError, match=r"object has no unary\(\) for kata.test.Echo.Unary"):
        bind(DESCRIPTOR, object())


@pytest.mark.parametrize(("name", "snake"), [("State", "state"), ("CloseIO", "close_io"), ("ResizePty", "resize_pty")])
def test_snake_case(name: str, snake: str) -> None:
    assert snake_case(name) == snake


async def test_the_same_service_twice() -> None:
    with pytest.raises(ValueError, match=r"kata.test.Echo is there twice"):
        async with serving(None, bind(DESCRIPTOR, Echo())):
            pass


async def test_clients_may_leave_by_themselves() -> None:
    """An answer that the end of the connection follows at once may be lost on containerd's client."""
    async with Server([bind(DESCRIPTOR, Echo())], farewell=30) as server, client_to(server) as client:
        assert await ask(client, "last") == "last"
        (connection,) = server.connections
        closing = asyncio.create_task(server.close())
        assert (await failure_of(ask(client, "too late"))).code == Code.UNAVAILABLE
        assert not connection.lost.is_set()
        await client.close()
        await closing


async def test_clients_that_do_not_leave_are_left() -> None:
    async with Server([bind(DESCRIPTOR, Echo())], farewell=0.01) as server, client_to(server):
        await server.close()
        assert server.connections == set()
