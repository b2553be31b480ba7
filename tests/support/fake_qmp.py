"""A monitor like QEMU's on one end of a socketpair, as far as a client can tell."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["fake_qmp"]

# QEMU's docs/interop/qmp-spec.rst
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


@asynccontextmanager
async def fake_qmp(answers: Mapping[str, Any], *, greet: bool = True) -> AsyncIterator[socket.socket]:
    """Our end of a monitor that answers each command with its message in `answers`.

    None hangs up instead; a command that is not there is never answered.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=theirs)
    serving = asyncio.create_task(_serve(reader, writer, {"qmp_capabilities": {"return": {}}, **answers}, greet))
    try:
        yield ours
    finally:
        serving.cancel()
        writer.close()


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Mapping[str, Any], greet: bool
) -> None:
    if greet:
        writer.write(json.dumps(GREETING).encode() + b"\r\n")
    decoder, received = json.JSONDecoder(), ""
    # qemu.qmp ends its messages without a newline.
    while chunk := await reader.read(4096):
        received += chunk.decode()
        while received.strip():
            try:
                message, end = decoder.raw_decode(received.lstrip())
            except ValueError:
                break
            received = received.lstrip()[end:]
            if message["execute"] not in answers:
                continue
            answer = answers[message["execute"]]
            if answer is None:
                writer.close()
                return
            writer.write(json.dumps({**answer, "id": message.get("id")}).encode() + b"\r\n")
