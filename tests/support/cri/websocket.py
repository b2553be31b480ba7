"""A WebSocket client as Kubernetes' streams need it: binary messages whose first byte is a channel (RFC 6455).

Channels of `v4.channel.k8s.io` in exec and attach: 0 stdin, 1 stdout, 2 stderr, 3 the end, as a JSON status, 4 the
terminal's size. In port-forward the n-th port has 2n for data and 2n + 1 for errors; the first message of each is the
port's number, two bytes, little-endian (k8s.io/kubelet, pkg/cri/streaming).
"""

import base64
import json
import os
import socket
import struct
from collections import defaultdict
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["STDERR", "STDIN", "STDOUT", "ChannelSocket"]

STDIN, STDOUT, STDERR, END, RESIZE = range(5)
_PROTOCOL = "v4.channel.k8s.io"
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


class ChannelSocket:
    """Takes over `stream`, which is connected to the server of `url`. A context manager."""

    def __init__(self, stream: socket.socket, url: str) -> None:
        self._stream = stream
        self._buffer = b""
        self._read: defaultdict[int, bytes] = defaultdict(bytes)
        self._open = True
        self._upgrade(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _upgrade(self, url: str) -> None:
        parts = urlsplit(url)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (f"GET {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket",
                 "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13",
                 f"Sec-WebSocket-Protocol: {_PROTOCOL}", "", "")  # fmt: skip
        self._stream.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head

    def _more(self) -> None:
        data = self._stream.recv(1 << 16)
        if not data:
            raise EOFError("the server has closed the stream")
        self._buffer += data

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes on a channel."""
        self._frame(_BINARY, bytes([channel]) + data)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's size."""
        self.send(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    def _frame(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        head = bytes([0x80 | kind])
        head += bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size) if size < 1 << 16 else b""
        assert len(head) > 1, "no test sends that much at once"
        mask = os.urandom(4)
        self._stream.sendall(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))

    def _receive(self) -> bool:
        """Take one message in; False where the server has closed."""
        if not self._open:
            return False
        try:
            first, second = self._take(2)
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._take(2 if size == 126 else 8))
            payload = self._take(size)
        except (EOFError, ConnectionResetError):
            self._open = False
            return False
        kind = first & 0x0F
        if kind == _PING:
            self._frame(_PONG, payload)
        elif kind == _CLOSE:
            self._open = False
        elif payload:
            self._read[payload[0]] += payload[1:]
        return self._open

    def until(self, channel: int, wanted: bytes) -> bytes:
        """Read until a channel's bytes hold `wanted`; all of them, which are used up."""
        while wanted not in self._read[channel]:
            assert self._receive(), f"the stream ended before {wanted!r}: {dict(self._read)}"
        return self._read.pop(channel)

    def to_end(self, channel: int) -> bytes:
        """Read a channel until the server closes."""
        while self._receive():
            pass
        return self._read.pop(channel, b"")

    def status(self) -> dict[str, Any]:
        """Read until exec's or attach's end; what it said of it (Kubernetes' `Status`)."""
        while not self._read[END]:
            if not self._receive():
                break
        said = json.loads(self._read[END] or b"{}")
        assert isinstance(said, dict)
        return said
