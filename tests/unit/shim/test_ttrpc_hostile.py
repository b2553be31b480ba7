"""What no client of ours would send: an error for that call, or for that connection, and for nobody else."""

import asyncio
import socket

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_protos.containerd.ttrpc_pb2 import Response
from kata_runtime.shim.ttrpc import connection, errors
from kata_runtime.shim.ttrpc.client import Client
from kata_runtime.shim.ttrpc.errors import Code
from kata_runtime.shim.ttrpc.frames import (
    DATA,
    MAX_DATA,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Frame,
    encode,
)
from support.ttrpc_echo import Echo
from support.ttrpc_pair import Wire, client_to, failure_of, serving, wire_to

HELLO = StringValue(value="hello").SerializeToString()


async def works(wire: Wire, stream: int) -> None:
    """Whether the connection still answers calls."""
    wire.call(stream, "Unary", HELLO)
    assert await wire.response() == (stream, Response(payload=HELLO))


@pytest.mark.parametrize(
    ("frame", "code", "said"),
    [
        (Frame(1, REQUEST, 0, b"\xff\xff"), Code.INVALID_ARGUMENT, "2 bytes are not a ttrpc.Request"),
        (Frame(2, REQUEST, 0, b""), Code.INVALID_ARGUMENT, "odd numbers"),
        (Frame(0, DATA, 0, b""), Code.INVALID_ARGUMENT, "not open for data"),
        (Frame(1, DATA, REMOTE_CLOSED, b"x"), Code.INVALID_ARGUMENT, "not open for data"),
        (Frame(1, REQUEST, 0, b""), Code.UNIMPLEMENTED, "service  is not served"),
    ],
)
async def test_a_bad_frame_is_answered_and_the_connection_lives(frame: Frame, code: Code, said: str) -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.send(frame)
        stream, response = await wire.response()
        assert (stream, response.status.code) == (frame.stream, code)
        assert said in response.status.message
        await works(wire, 3)


async def test_unknown_types_and_stray_responses_are_ignored() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.send(Frame(1, RESPONSE, 0, b"\xff"), Frame(1, 0, 0, b""), Frame(7, 200, 255, b"???"))
        await works(wire, 1)


async def test_stream_numbers_only_grow() -> None:
    async with serving() as server, await wire_to(server) as wire:
        await works(wire, 9)
        for number in (9, 7):
            wire.call(number, "Unary", HELLO)
            stream, response = await wire.response()
            assert (stream, response.status.code) == (number, Code.INVALID_ARGUMENT)
            assert "numbers must grow, the last one was 9" in response.status.message
        await works(wire, 11)


async def test_a_payload_that_is_no_message() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.call(1, "Unary", b"\x0a\xff")
        _, response = await wire.response()
        assert response.status.code == Code.INVALID_ARGUMENT
        assert "google.protobuf.StringValue" in response.status.message
        await works(wire, 3)


async def test_an_oversized_request_fails_alone() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.send(bytes.fromhex("00500000 00000001 01 00"))
        stream, response = await wire.response()
        assert (stream, response.status.code) == (1, Code.RESOURCE_EXHAUSTED)
        assert f"{0x500000} bytes exceeds ttrpc's limit of {MAX_DATA}" in response.status.message
        wire.send(bytes(0x500000))
        await works(wire, 3)


async def test_an_oversized_message_fails_its_stream() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.call(1, "Collect", flags=REMOTE_OPEN)
        wire.send(bytes.fromhex("00400001 00000001 03 00") + bytes(MAX_DATA + 1))
        stream, response = await wire.response()
        assert (stream, response.status.code) == (1, Code.RESOURCE_EXHAUSTED)
        await works(wire, 3)


async def test_streams_may_interleave() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.call(1, "Collect", flags=REMOTE_OPEN)
        wire.call(3, "Collect", flags=REMOTE_OPEN)
        for word in (b"a", b"b"):
            for number in (3, 1):
                wire.send(Frame(number, DATA, 0, StringValue(value=f"{number}{word.decode()}").SerializeToString()))
        last = StringValue(value="end").SerializeToString()
        wire.send(Frame(1, DATA, REMOTE_CLOSED, last), Frame(3, DATA, REMOTE_CLOSED | NO_DATA, b""))
        answers = dict([await wire.response(), await wire.response()])
        assert answers[1].payload == StringValue(value="1a+1b+end").SerializeToString()
        assert answers[3].payload == StringValue(value="3a+3b").SerializeToString()


async def test_a_first_message_may_come_with_the_request() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.call(1, "Collect", HELLO, flags=REMOTE_CLOSED)
        assert await wire.response() == (1, Response(payload=HELLO))


async def test_bad_data_in_a_stream_fails_it() -> None:
    async with serving() as server, await wire_to(server) as wire:
        wire.call(1, "Chat", flags=REMOTE_OPEN)
        wire.send(Frame(1, DATA, 0, b"\x0a\xff"))
        stream, response = await wire.response()
        assert (stream, response.status.code) == (1, Code.INVALID_ARGUMENT)
        wire.send(Frame(1, DATA, 0, b""))
        assert (await wire.response())[1].status.code == Code.INVALID_ARGUMENT
        await works(wire, 3)


async def test_half_a_frame_then_gone(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, client_to(server) as other:
        wire = await wire_to(server)
        wire.send(encode(Frame(1, REQUEST, 0, HELLO))[:-1])
        async with wire:
            await wire.writer.drain()
        await wire.peer.lost.wait()
        answer = await other.call("kata.test.Echo", "Unary", StringValue(value="x"), StringValue)
        assert answer.value == "x"
    assert "in the middle of a frame" in caplog.text


async def test_a_stream_that_nobody_reads_fails_and_the_connection_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_LIMIT", 0.02)
    begin = asyncio.Event()

    class Lazy(Echo):
        async def collect(self, requests: object) -> StringValue:
            await begin.wait()
            return await super().collect(requests)  # type: ignore[arg-type]

    async with serving(Lazy()) as server, await wire_to(server) as wire:
        wire.call(1, "Collect", flags=REMOTE_OPEN)
        for _ in range(64):
            wire.send(Frame(1, DATA, 0, StringValue(value="x" * (1 << 16)).SerializeToString()))
        # Stands behind four MiB of which one fits: reading stops, and goes on when the stream has failed.
        await works(wire, 3)
        begin.set()
        stream, response = await wire.response()
        assert (stream, response.status.code) == (1, Code.RESOURCE_EXHAUSTED)
        assert "not read for" in response.status.message


async def test_a_slow_reader_slows_the_sender_and_loses_nothing() -> None:
    async with (
        serving() as server,
        client_to(server) as client,
        client.stream("kata.test.Echo", "Chat", StringValue) as chat,
        asyncio.TaskGroup() as group,
    ):
        block = StringValue(value="y" * (1 << 16))

        async def send() -> None:
            for _ in range(100):
                await chat.send(block)
            chat.close_send()

        group.create_task(send())
        assert [len(answer.value) async for answer in chat] == [1 << 16] * 100


async def test_nonsense_from_a_server_fails_the_clients_call() -> None:

    ours, theirs = socket.socketpair()
    async with await Client.connect(ours) as client, asyncio.TaskGroup() as group:
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        for answer, kind in (
            (Frame(1, RESPONSE, 0, b"\xff\xff"), errors.Internal),
            (Frame(3, RESPONSE, 0, Response(payload=b"\x0a\xff").SerializeToString()), errors.Internal),
            (Frame(5, DATA, REMOTE_CLOSED | NO_DATA, b""), errors.Internal),
            (Frame(7, DATA, REMOTE_CLOSED, HELLO), errors.Internal),
            (bytes.fromhex("00500000 00000009 02 00"), errors.ResourceExhausted),
        ):
            call = group.create_task(failure_of(client.call("s", "m", StringValue(), StringValue, timeout=5)))
            await reader.read(1 << 16)
            writer.write(as_bytes(answer))
            assert type(await call) is kind
        writer.close()
        await writer.wait_closed()


def as_bytes(frame: Frame | bytes) -> bytes:
    return encode(frame) if isinstance(frame, Frame) else frame


chunks = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda stream, kind, flags, data: encode(Frame(stream, kind, flags, data)),
            st.integers(0, 9),
            st.integers(0, 4),
            st.integers(0, 7),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    [
                        b"\x0a\x0ekata.test.Echo\x12\x05Unary",
                        b"\x0a\x0ekata.test.Echo\x12\x07Collect",
                        b"\x0a\x0ekata.test.Echo\x12\x04Chat",
                        b"\x0a\x0ekata.test.Echo\x12\x05Count\x1a\x03\x0a\x013",
                        HELLO,
                    ]
                ),
            ),
        ),
    ),
    max_size=12,
)


@given(chunks)
@settings(max_examples=100, deadline=None)
def test_whatever_one_client_sends_others_are_served(data: list[bytes]) -> None:
    async def scenario() -> None:
        async with serving() as server, client_to(server) as other:
            async with await wire_to(server) as wire:
                for part in data:
                    wire.send(part)
                    await asyncio.sleep(0)
                answer = await other.call("kata.test.Echo", "Unary", StringValue(value="x"), StringValue, timeout=5)
                assert answer.value == "x"
            await wire.peer.lost.wait()

    asyncio.run(scenario())
