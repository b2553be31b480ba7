"""Processes that a VM can't start without, and when they began to serve."""

import time

from kata_telemetry.span import Span

__all__ = ["HelperStart"]


class HelperStart:
    """The start of a helper as a span: from before its launch until it says on stderr that it serves.

    QEMU connects to it meanwhile and waits, so without this a slow helper would look like a slow QEMU.
    """

    def __init__(self, span: Span, sign: str) -> None:
        """`sign` is what of a line of its stderr tells that it serves."""
        self._span = span
        self._sign = sign
        self.ready_ns = 0  # CLOCK_MONOTONIC; 0 until it serves

    def on_line(self, line: str) -> None:
        """A line of its stderr."""
        if self._sign in line and not self.ready_ns:
            self.ready_ns = time.monotonic_ns()
            self._span.finish(at=self.ready_ns)

    def over(self) -> None:
        """QEMU has got what it wanted of the helper, or it never will: its start is over, whatever it has said."""
        self._span.finish()
