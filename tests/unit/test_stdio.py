import asyncio
import os
import socket

import pytest

from kata_runtime.guest.stdio import copy_in, copy_out

DATA = os.urandom(3 << 20)


async def test_output_arrives_whole() -> None:
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    copying = asyncio.create_task(copy_out(ours, write, "stdout"))

    def send() -> None:
        with guest:
            guest.sendall(DATA)

    sender = asyncio.create_task(asyncio.to_thread(send))
    with os.fdopen(read, "rb") as reader:
        got = await asyncio.to_thread(reader.read, len(DATA))
        assert got == DATA
        assert await copying == len(DATA)
    await sender
    os.close(write)


async def test_a_reader_that_went_away_closes_the_stream() -> None:
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    os.close(read)
    with guest:
        guest.sendall(b"x")
        await copy_out(ours, write, "stdout")
        assert guest.recv(1) == b""
    os.close(write)


async def test_input_arrives_whole_and_ends_with_a_half_close() -> None:
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    copying = asyncio.create_task(copy_in(read, ours))

    def feed() -> None:
        with os.fdopen(write, "wb") as writer:
            writer.write(DATA)

    def drain() -> bytes:
        got = b""
        while chunk := guest.recv(1 << 20):
            got += chunk
        return got

    fed = asyncio.create_task(asyncio.to_thread(feed))
    assert await asyncio.to_thread(drain) == DATA
    assert not copying.done()  # the guest may still want to say something
    guest.close()
    assert await copying == len(DATA)
    await fed
    os.close(read)


async def test_cancelled_input_closes_the_stream() -> None:
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    copying = asyncio.create_task(copy_in(read, ours))
    os.write(write, b"first")
    assert await asyncio.to_thread(guest.recv, 5) == b"first"
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert await asyncio.to_thread(guest.recv, 5) == b""
    os.close(write)  # the thread's read ends
    os.close(read)
    guest.close()
