"""One call of the agent's service without gRPC, on a connection of its own (kata_common.contract, Port.CALLS).

To go away is to cancel it: the agent undoes what it has begun.
"""

import asyncio
import socket
from collections.abc import Sequence

from kata_common.contract import CALL_REPLY, CALL_REQUEST, MAX_CALL
from kata_runtime.errors import AgentError

__all__ = ["make_call", "request_of"]


def request_of(name: str, metadata: Sequence[tuple[str, str]], message: bytes) -> bytes:
    """The bytes of a request."""
    words = "".join(f"{key}\0{value}\0" for key, value in metadata).encode()
    return CALL_REQUEST.pack(len(message), len(name), len(words)) + name.encode() + words + message


async def make_call(
    stream: socket.socket, name: str, metadata: Sequence[tuple[str, str]], message: bytes
) -> tuple[int, bytes]:
    """Make a call on a fresh connection, which stays the caller's: gRPC's status, and what came with it.

    Raises:
        AgentError: the connection broke, or what came is no answer.
    """
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(stream, request_of(name, metadata, message))
        header = await _exactly(loop, stream, CALL_REPLY.size)
        size, code = CALL_REPLY.unpack(header)
        if size > MAX_CALL:
            raise AgentError(name, "INTERNAL", f"an answer of {size} bytes")
        return code, await _exactly(loop, stream, size)
    except OSError as error:
        raise AgentError(name, "UNAVAILABLE", str(error)) from error


async def _exactly(loop: asyncio.AbstractEventLoop, stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await loop.sock_recv(stream, min(size - len(data), 65536))
        if not chunk:
            raise ConnectionResetError("the agent closed the connection")
        data += chunk
    return bytes(data)
