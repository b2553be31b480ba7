import asyncio
import contextlib
import os
import socket
import threading

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


async def test_non_blocking_descriptors_need_no_thread() -> None:
    threads = threading.active_count()
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    os.set_blocking(write, False)
    copying = asyncio.create_task(copy_out(ours, write, "stdout"))
    loop = asyncio.get_running_loop()
    guest.setblocking(False)
    with guest:
        sending = asyncio.create_task(loop.sock_sendall(guest, DATA))
        # The pipe is full long before, and nobody has read a byte: the loop must still be free.
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        got = bytearray()
        with os.fdopen(read, "rb") as reader:
            while len(got) < len(DATA):
                got += await asyncio.to_thread(os.read, reader.fileno(), 1 << 20)
            await sending
    assert got == DATA
    assert await copying == len(DATA)
    os.close(write)


async def test_output_that_nobody_reads_can_be_given_up() -> None:
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    os.set_blocking(write, False)
    copying = asyncio.create_task(copy_out(ours, write, "stdout"))
    with guest:
        guest.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                guest.send(DATA)
                await asyncio.sleep(0)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
    for descriptor in (read, write):
        os.close(descriptor)


async def test_non_blocking_input_ends_with_a_half_close() -> None:
    ours, guest = socket.socketpair()
    read, write = os.pipe()
    os.set_blocking(read, False)
    copying = asyncio.create_task(copy_in(read, ours))
    loop = asyncio.get_running_loop()
    guest.setblocking(False)
    os.write(write, b"first")
    assert await loop.sock_recv(guest, 100) == b"first"
    os.write(write, b"last")
    os.close(write)
    assert await loop.sock_recv(guest, 100) == b"last"
    assert await loop.sock_recv(guest, 100) == b""
    assert not copying.done()
    guest.close()
    assert await copying == 9
    os.close(read)
