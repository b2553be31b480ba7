"""A pair of sockets carried to another: order, ends of file, resets, back-pressure, cancellation."""

import asyncio
import os
import socket
import struct
from contextlib import suppress

import pytest

from kata_common.relay import join

Ends = tuple[socket.socket, socket.socket, "asyncio.Task[None]"]


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


def joined() -> Ends:
    """Two ends of TCP (which can be reset) and what joins them."""
    (left, outer), (right, inner) = tcp(), tcp()
    for each in (left, outer, right, inner):
        each.setblocking(False)
    return left, right, asyncio.create_task(join(outer, inner))


async def read_all(stream: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    found = bytearray()
    while chunk := await loop.sock_recv(stream, 1 << 16):
        found += chunk
    return bytes(found)


async def test_both_ways_and_each_end_by_itself() -> None:
    left, right, task = joined()
    loop = asyncio.get_running_loop()
    with left, right:
        data = os.urandom(8 << 20)  # more than all buffers hold
        sending = asyncio.create_task(loop.sock_sendall(left, data))
        assert not task.done()
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(right, 1 << 20)
        await sending
        assert received == data
        left.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(right, 1) == b""
        await loop.sock_sendall(right, b"late answer")
        right.shutdown(socket.SHUT_WR)
        assert await read_all(left) == b"late answer"
        async with asyncio.timeout(5):
            await task


@pytest.mark.parametrize("first", [0, 1])
async def test_a_reset_ends_both(first: int) -> None:
    *ends, task = joined()
    broken, other = ends[first], ends[1 - first]
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broken.close()
    with other:
        async with asyncio.timeout(5):
            await task
            with suppress(ConnectionResetError):
                assert await read_all(other) == b""


async def test_cancelled_it_cuts() -> None:
    left, right, task = joined()
    with left, right:
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await read_all(left) == b""
        assert await read_all(right) == b""


async def test_an_end_that_reads_no_more_leaves_the_other_direction() -> None:
    left, right, task = joined()
    loop = asyncio.get_running_loop()
    with left, right:
        right.shutdown(socket.SHUT_RD)
        await loop.sock_sendall(right, b"still said")
        right.shutdown(socket.SHUT_WR)
        assert await read_all(left) == b"still said"
        left.close()
        async with asyncio.timeout(5):
            await task
