"""Moves bytes between a process's stdio streams in the guest and file descriptors here.

A descriptor that is non-blocking is served by the event loop. Any other was given to us as it is (a terminal, a pipe
shared with other processes, a regular file) and must stay so: it gets a thread with blocking reads and writes. Either
way back-pressure comes by itself.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from kata_telemetry.span import Site

__all__ = ["copy_in", "copy_out"]

_CHUNK = 256 << 10
_trace = Site(package="virtcontainers", subsystem="stdio")
_NOTHING: Mapping[str, Any] = {}


async def copy_out(connection: socket.socket, fd: int, name: str, about: Mapping[str, Any] = _NOTHING) -> int:
    """Copy the guest's stream to `fd` until it ends; the number of bytes. Takes `connection` over.

    `about` are attributes of the span.

    When nobody reads `fd` any more, the stream is closed and the process in the guest gets its SIGPIPE.
    """
    if os.get_blocking(fd):
        return await _in_thread(name, about, lambda: _out(connection, fd), connection)
    return await _in_loop(name, about, _async_out(connection, fd), connection)


async def copy_in(fd: int, connection: socket.socket, about: Mapping[str, Any] = _NOTHING) -> int:
    """Copy `fd` to the guest's stream until `fd` ends, then half-close it; the number of bytes. Takes `connection`.

    `about` are attributes of the span.

    Cancelled, it stops feeding the guest; a thread ends with the next byte that comes, or with this process.
    """
    if os.get_blocking(fd):
        return await _in_thread("stdin", about, lambda: _in(fd, connection), connection)
    return await _in_loop("stdin", about, _async_in(fd, connection), connection)


def _out(connection: socket.socket, fd: int) -> int:
    total = 0
    buffer = memoryview(bytearray(_CHUNK))
    while size := connection.recv_into(buffer):
        rest = buffer[:size]
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BrokenPipeError:
                return total
        total += size
    return total


def _in(fd: int, connection: socket.socket) -> int:
    total = 0
    while chunk := os.read(fd, _CHUNK):
        connection.sendall(chunk)
        total += len(chunk)
    connection.shutdown(socket.SHUT_WR)
    # Only now is it known that nothing more is wanted: closing early would reset what the guest has not read yet.
    while connection.recv(_CHUNK):
        pass
    return total


async def _in_thread(name: str, about: Mapping[str, Any], work: Callable[[], int], connection: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[int] = loop.create_future()

    def finish(total: int) -> None:
        if not done.done():
            done.set_result(total)

    def body() -> None:
        total = 0
        try:
            total = work()
        except OSError:
            pass  # the other side is gone, which the end of the process explains better
        finally:
            connection.close()
            with contextlib.suppress(RuntimeError):  # the loop has ended before a blocked read did
                loop.call_soon_threadsafe(finish, total)

    connection.setblocking(True)
    with _trace.span(f"stdio.{name}", lasts=True, **about) as span:
        threading.Thread(target=body, name=f"stdio-{name}", daemon=True).start()
        try:
            total = await done
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            raise
        span.set(bytes=total)
        return total


async def _in_loop(name: str, about: Mapping[str, Any], moved: AsyncIterator[int], connection: socket.socket) -> int:
    connection.setblocking(False)
    total = 0
    with _trace.span(f"stdio.{name}", lasts=True, **about) as span, connection:
        try:
            async for size in moved:
                total += size
                # Both ends may be ready all the time, and others want the loop too.
                await asyncio.sleep(0)
        except OSError as error:
            # As above: the end of the process explains it better, unless the host's end failed (a full disk).
            span.event("broken", why=error.strerror or str(error))
        finally:
            span.set(bytes=total)
    return total


async def _async_out(connection: socket.socket, fd: int) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_CHUNK))
    while size := await loop.sock_recv_into(connection, buffer):
        rest = buffer[:size]
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                await _ready(loop.add_writer, loop.remove_writer, fd)
        yield size


async def _async_in(fd: int, connection: socket.socket) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    while True:
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            await _ready(loop.add_reader, loop.remove_reader, fd)
            continue
        if not chunk:
            break
        await loop.sock_sendall(connection, chunk)
        yield len(chunk)
    connection.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(connection, _CHUNK):  # see _in
        pass


async def _ready(add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], fd: int) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
