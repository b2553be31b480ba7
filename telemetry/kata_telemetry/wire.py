"""What the agent and the trace forwarder say to each other on one stream.

Agent to forwarder: frames, each a length (u64, big-endian) and that many bytes. The frame is Kata's
(src/agent/vsock-exporter); what is in it is ours: a serialized ExportTraceServiceRequest of OTLP, at most MAX_FRAME
bytes, where Kata has JSON of a Rust structure. A frame without spans may carry a note of spans that the agent dropped
(`otlp.note_of_dropped`).

Forwarder to agent: after each frame that is stored or refused for good, how many that were on this stream (u64,
big-endian). Numbers may be left out, a later one counts for those before. What was not counted when a stream broke is
sent again on the next one, and the forwarder knows spans that it has.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

__all__ = ["MAX_FRAME", "NUMBER", "FrameError", "Frames", "frame"]

NUMBER: Final = Struct(">Q")
# A parsed message may take some 90 times the memory of its bytes: empty spans take two bytes each.
MAX_FRAME: Final = 256 * 1024


class FrameError(ValueError):
    """The stream is not, or no longer, one of frames."""


def frame(payload: bytes) -> bytes:
    """`payload` as it goes over the stream."""
    return NUMBER.pack(len(payload)) + payload


class Frames:
    """Takes a stream apart. Holds at most one incomplete frame, and knows its length before it holds any of it."""

    def __init__(self, longest: int = MAX_FRAME) -> None:
        self._longest = longest
        self._rest = bytearray()

    @property
    def held(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that `data` completes, one by one; what the caller does not take comes with the next call.

        Raises FrameError for a frame that is too long; nothing follows.
        """
        rest = self._rest
        rest += data
        while len(rest) >= NUMBER.size:
            length = NUMBER.unpack_from(rest)[0]
            if length > self._longest:
                raise FrameError(f"a frame of {length} bytes; at most {self._longest} are taken")
            end = NUMBER.size + length
            if len(rest) < end:
                return
            payload = bytes(memoryview(rest)[NUMBER.size : end])
            del rest[:end]
            yield payload
