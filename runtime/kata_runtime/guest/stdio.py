"""Moves bytes between a process's stdio streams in the guest and file descriptors here.

Each direction is a thread with blocking reads and writes: the descriptors are given to us (a terminal, a pipe shared
with other processes, a regular file), so they can't be made non-blocking, and back-pressure comes by itself.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable

from kata_telemetry.span import Site

__all__ = ["STDIO_PORT", "copy_in", "copy_out"]

STDIO_PORT = 1027
_CHUNK = 256 << 10
_trace = Site(package="virtcontainers", subsystem="stdio")


async def copy_out(connection: socket.socket, fd: int, name: str) -> int:
    """Copy the guest's stream to `fd` until it ends; the number of bytes. Takes `connection` over.

    When nobody reads `fd` any more, the stream is closed and the process in the guest gets its SIGPIPE.
    """
    return await _in_thread(name, lambda: _out(connection, fd), connection)


async def copy_in(fd: int, connection: socket.socket, name: str = "stdin") -> int:
    """Copy `fd` to the guest's stream until `fd` ends, then half-close it; the number of bytes. Takes `connection`.

    Cancelled, it stops feeding the guest; the thread ends with the next byte that comes, or with this process.
    """
    return await _in_thread(name, lambda: _in(fd, connection), connection)


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


async def _in_thread(name: str, work: Callable[[], int], connection: socket.socket) -> int:
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
    with _trace.span(f"stdio.{name}") as span:
        threading.Thread(target=body, name=f"stdio-{name}", daemon=True).start()
        try:
            total = await done
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            raise
        span.set(bytes=total)
        return total
