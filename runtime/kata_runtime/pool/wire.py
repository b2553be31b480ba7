"""What is said between those who start, the server and its members: one JSON object a message, on SOCK_SEQPACKET.

    server → client   {"taken": 0}                       nobody is there: start by yourself
    member → client   {"here": pid}                      the server has passed the connection on
    client → member   what it wants, with its files
    member → client   {"taken": pid}                     from here on it is the client's (0: not)
    client → member   {"signal": number}
    member → client   {"status": number}                 the end

Between server and member there is a pair of sockets: the member says {"ready": true}, the server passes one connection
on. The end of it is the end of a member that nobody has taken. Only what a start needs is imported here.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kata_common.documents import parse_json

__all__ = ["MAX_MESSAGE", "receive", "receive_with_files", "send"]

# Below what Linux lets a process send at once (net.core.wmem_default); a longer request is no request.
MAX_MESSAGE: Final = 128 << 10
_MAX_FILES: Final = 8


def send(stream: socket.socket, message: Mapping[str, object], files: Sequence[int] = ()) -> bool:
    """Send a message; False where it is too long, or nobody is there."""
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE:
        return False
    try:
        if files:
            socket.send_fds(stream, [data], list(files))
        else:
            stream.send(data)
    except OSError:
        return False
    return True


def receive(stream: socket.socket) -> dict[str, Any] | None:
    """The next message; None at the end, or where it is none."""
    try:
        return _parse(stream.recv(MAX_MESSAGE))
    except OSError:
        return None


def receive_with_files(stream: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its files, which are the caller's to close; BlockingIOError where there is none yet."""
    data, files, flags, _ = socket.recv_fds(stream, MAX_MESSAGE, _MAX_FILES, socket.MSG_CMSG_CLOEXEC)
    message = None if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else _parse(data)
    if message is None:
        for fd in files:
            os.close(fd)
        return None, []
    return message, files


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        message = parse_json(data) if data else None
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
