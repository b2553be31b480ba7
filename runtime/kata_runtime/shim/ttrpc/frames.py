"""ttrpc's frames: bytes to frames and back, without I/O.

Header, types, flags and the limit are from containerd/ttrpc, PROTOCOL.md and channel.go: ten bytes, big-endian (length
of the data, stream, type, flags), then the data, at most 4 MiB.
"""

import struct
from typing import Final, NamedTuple

__all__ = [
    "DATA",
    "HEADER_SIZE",
    "MAX_DATA",
    "NO_DATA",
    "REMOTE_CLOSED",
    "REMOTE_OPEN",
    "REQUEST",
    "RESPONSE",
    "Decoder",
    "Frame",
    "Oversized",
    "encode",
]

_HEADER = struct.Struct(">IIBB")
HEADER_SIZE: Final = _HEADER.size
MAX_DATA: Final = 4 << 20

# Types. A frame of any other type is to be ignored.
REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

# Flags, from the receiver's point of view: the sender has said all (REQUEST, DATA), will say more (REQUEST), says
# nothing with this frame (DATA; an empty frame without this flag is an empty message).
REMOTE_CLOSED: Final = 1
REMOTE_OPEN: Final = 2
NO_DATA: Final = 4


class Frame(NamedTuple):
    """One frame. `kind` and `flags` are as received, known or not."""

    stream: int
    kind: int
    flags: int
    data: bytes


class Oversized(NamedTuple):
    """A frame whose header announced more than `MAX_DATA`; its data is skipped, the connection stays usable."""

    stream: int
    kind: int
    flags: int
    length: int


def encode(frame: Frame) -> bytes:
    """The bytes of a frame.

    Raises:
        ValueError: more than `MAX_DATA` bytes of data; nothing of it may be sent.
    """
    if len(frame.data) > MAX_DATA:
        raise ValueError(f"a message of {len(frame.data)} bytes exceeds ttrpc's limit of {MAX_DATA}")
    return _HEADER.pack(len(frame.data), frame.stream, frame.kind, frame.flags) + frame.data


class Decoder:
    """Finds the frames in a stream of bytes, wherever it is cut. It never holds more than one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    @property
    def partial(self) -> bool:
        """Whether the stream, if it ended now, would end inside a frame."""
        return bool(self._buffer or self._skip)

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """The frames that `data` completes. An oversized one is reported when its header is in."""
        found: list[Frame | Oversized] = []
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEADER_SIZE:
            length, stream, kind, flags = _HEADER.unpack_from(buffer, at)
            body = at + HEADER_SIZE
            if length > MAX_DATA:
                found.append(Oversized(stream, kind, flags, length))
                at = min(body + length, len(buffer))
                self._skip = length - (at - body)
                continue
            if len(buffer) - body < length:
                break
            at = body + length
            found.append(Frame(stream, kind, flags, bytes(buffer[body:at])))
        del buffer[:at]
        return found
