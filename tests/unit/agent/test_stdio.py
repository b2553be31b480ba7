"""Pumps, streams and the relay, over pipes and socket pairs."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kata_agent.errors import NotFoundError, ResourceError
from kata_agent.process.pump import MAX_WAITING, Inlet, Outlet, PumpThread
from kata_agent.process.streams import StreamRoom
from kata_agent.server.relay import Relay


@pytest.fixture
async def pumps() -> AsyncIterator[PumpThread]:
    thread = PumpThread()
    yield thread
    thread.close()


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def read_all(stream: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while part := await loop.sock_recv(stream, 65536):
        data += part
    return data


async def test_outlet_waits_for_the_host_and_loses_nothing(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    with pair() as (host, guest):
        outlet = Outlet(pumps, reading, guest, linger=60)
        outlet.start()
        data = os.urandom(3 << 20)

        def write() -> None:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(data)

        writer = asyncio.create_task(asyncio.to_thread(write))
        assert await read_all(host) == data
        await writer
        await outlet.done.wait()
        assert outlet.moved == len(data)
        assert outlet.head == data[:512]


async def test_outlet_of_an_ended_process_delivers_what_was_written(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    with pair() as (host, guest):
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        os.write(writing, b"x" * 60_000)
        outlet = Outlet(pumps, reading, guest, linger=0)
        outlet.start()
        outlet.process_ended()
        # An orphan still has the pipe open: no end of file will come.
        assert await read_all(host) == b"x" * 60_000
        await outlet.done.wait()
    os.close(writing)


async def test_outlet_closes_the_pipe_when_the_host_is_gone(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    with pair() as (host, guest):
        outlet = Outlet(pumps, reading, guest)
        outlet.start()
        host.close()
        os.write(writing, b"x")
        await outlet.done.wait()
        with pytest.raises(BrokenPipeError):
            os.write(writing, b"x")
    os.close(writing)


async def test_outlet_of_a_terminal_goes_on_unheard(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    with pair() as (host, guest):
        outlet = Outlet(pumps, reading, guest, keep_reading=True)
        outlet.start()
        host.close()
        for _ in range(3):
            os.write(writing, b"x" * 10)
            await asyncio.sleep(0)
        os.close(writing)
        await outlet.done.wait()
        assert outlet.moved == 30


async def test_inlet_half_close_and_back_pressure(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    loop = asyncio.get_running_loop()
    with pair() as (host, guest):
        inlet = Inlet(pumps, guest, writing)
        inlet.start()
        data = os.urandom(1 << 20)
        sender = asyncio.create_task(loop.sock_sendall(host, data))

        def read() -> bytes:
            with os.fdopen(reading, "rb") as pipe:
                return pipe.read()

        reader = asyncio.create_task(asyncio.to_thread(read))
        await sender
        host.shutdown(socket.SHUT_WR)
        assert await reader == data
        await inlet.done.wait()
        assert await loop.sock_recv(host, 1) == b""


async def test_inlet_ends_when_the_process_reads_no_more(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    with pair() as (host, guest):
        inlet = Inlet(pumps, guest, writing)
        inlet.start()
        host.send(b"x")
        assert await asyncio.to_thread(os.read, reading, 1) == b"x"
        # Nothing more has to come for the host to learn it.
        os.close(reading)
        await inlet.done.wait()
        assert await asyncio.get_running_loop().sock_recv(host, 1) == b""


async def test_inlet_end_takes_what_has_arrived(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    with pair() as (host, guest):
        inlet = Inlet(pumps, guest, writing)
        inlet.start()
        host.send(b"abc")
        inlet.end()
        await inlet.done.wait()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"abc"


async def test_inlet_end_waits_for_room_in_the_pipe(pumps: PumpThread) -> None:
    reading, writing = os.pipe()
    data = os.urandom(150_000)  # more than the pipe holds
    with pair() as (host, guest):
        assert host.send(data) == len(data)
        inlet = Inlet(pumps, guest, writing)
        inlet.start()
        inlet.end()

        def read() -> bytes:
            with os.fdopen(reading, "rb") as pipe:
                return pipe.read()

        assert await asyncio.to_thread(read) == data
        await inlet.done.wait()
        assert inlet.moved == len(data)


async def test_hosts_that_do_not_read_hold_up_nobody_else(pumps: PumpThread) -> None:
    """More of them than may have big buffers; what they left waits for them."""
    data = os.urandom(60_000)  # a pipe holds it
    with ExitStack() as stack:
        stuck = []
        for _ in range(MAX_WAITING + 4):
            host, guest = stack.enter_context(pair())
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            reading, writing = os.pipe()
            os.write(writing, data)
            outlet = Outlet(pumps, reading, guest)
            outlet.start()
            os.close(writing)
            stuck.append((host, outlet))
        host, guest = stack.enter_context(pair())
        reading, writing = os.pipe()
        outlet = Outlet(pumps, reading, guest)
        outlet.start()
        os.write(writing, data)
        os.close(writing)
        assert await read_all(host) == data
        assert not any(each.done.is_set() for _, each in stuck)
        for host, each in stuck:
            assert await read_all(host) == data
            await each.done.wait()


async def test_a_pump_that_fails_is_told_of_and_ends_alone(pumps: PumpThread, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    reading, writing = os.pipe()
    with pair() as (host, guest), pair() as (well, ours):
        outlet = Outlet(pumps, reading, guest)
        monkeypatch.setattr(outlet, "_send", lambda: 1 / 0)
        outlet.start()
        os.write(writing, b"x")
        assert await read_all(host) == b""
        await outlet.done.wait()
        assert isinstance(told[0]["exception"], ZeroDivisionError)
        other, end = os.pipe()
        Outlet(pumps, other, ours).start()
        os.write(end, b"on")
        os.close(end)
        assert await read_all(well) == b"on"
    os.close(writing)


async def test_the_end_of_the_thread_is_the_end_of_its_pumps() -> None:
    threads = threading.active_count()
    pumps = PumpThread()
    assert threading.active_count() == threads  # not before the first pump
    reading, writing = os.pipe()
    with pair() as (host, guest):
        outlet = Outlet(pumps, reading, guest)
        outlet.start()
        pumps.close()
        assert threading.active_count() == threads
        assert await read_all(host) == b""
        await outlet.done.wait()
    outlet.abandon()  # does nothing any more
    os.close(writing)


async def test_streams_are_claimed_before_and_after_they_arrive() -> None:
    room = StreamRoom()
    first, second = socket.socketpair()
    room.add(first, 7)
    assert await room.claim(7) is first
    claim = asyncio.create_task(room.claim(8))
    await asyncio.sleep(0)
    with pytest.raises(ResourceError):
        await room.claim(8)
    room.add(second, 8)
    assert await claim is second
    first.close()
    second.close()


async def test_streams_that_nobody_claims_are_closed() -> None:
    room = StreamRoom(claim_within=0, max_waiting=2)
    pairs = [socket.socketpair() for _ in range(3)]
    for port, (guest, host) in enumerate(pairs):
        host.setblocking(False)
        room.add(guest, port)
    loop = asyncio.get_running_loop()
    for _, host in pairs:
        assert await loop.sock_recv(host, 1) == b""
        host.close()
    assert len(room) == 0
    with pytest.raises(NotFoundError, match="port 1"):
        await room.claim(1, within=0)


async def test_a_port_is_waiting_once() -> None:
    room = StreamRoom()
    pairs = [socket.socketpair() for _ in range(2)]
    for guest, _ in pairs:
        room.add(guest, 1)
    pairs[1][1].setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(pairs[1][1], 1) == b""
    room.close()
    for guest, host in pairs:
        guest.close()
        host.close()


async def served(tmp_path: Path) -> tuple[Relay, socket.socket, socket.socket]:
    """A relay, the host's end of a connection through it, and the server's end."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        relay = Relay(str(path))
        outer, host = socket.socketpair()
        for stream in (outer, host):
            stream.setblocking(False)
        relay.accepted(outer, 1)
        server, _ = listener.accept()
        server.setblocking(False)
    return relay, host, server


async def test_relay_both_ways_with_half_closes(tmp_path: Path) -> None:
    relay, host, server = await served(tmp_path)
    loop = asyncio.get_running_loop()
    question, answer = os.urandom(1 << 20), os.urandom(1 << 20)
    with host, server:
        asking = asyncio.create_task(loop.sock_sendall(host, question))
        asking.add_done_callback(lambda _: host.shutdown(socket.SHUT_WR))
        assert await read_all(server) == question
        sending = asyncio.create_task(loop.sock_sendall(server, answer))
        sending.add_done_callback(lambda _: server.shutdown(socket.SHUT_WR))
        assert await read_all(host) == answer
        await relay.drained()


async def test_relay_delivers_the_last_answer_of_a_server_that_reads_no_more(tmp_path: Path) -> None:
    relay, host, server = await served(tmp_path)
    with host:
        host.send(b"unread")
        server.send(b"the last answer")
        server.close()
        host.send(b"more that nobody reads")
        assert await read_all(host) == b"the last answer"
        await relay.drained()


async def test_relay_without_a_server(tmp_path: Path) -> None:
    relay = Relay(str(tmp_path / "nobody"))
    outer, host = socket.socketpair()
    host.setblocking(False)
    relay.accepted(outer, 1)
    with host:
        assert await asyncio.get_running_loop().sock_recv(host, 1) == b""
