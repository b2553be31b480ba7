"""The daemon's log goes into the fifo that containerd reads and copies to its own log."""

import logging
import os

from kata_telemetry.logs import Formatter

__all__ = ["FifoHandler", "set_up"]


class FifoHandler(logging.Handler):
    """Writes lines to a descriptor that must never make us wait: what does not fit is dropped and counted.

    The next line that fits says how many are missing (`dropped`).
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(Formatter("logfmt", "runtime"))
        self._descriptor = descriptor
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self.dropped:
                line += f" dropped={self.dropped}"
            # One write: a fifo keeps lines of up to PIPE_BUF bytes whole, whoever else writes.
            os.write(self._descriptor, line.encode(errors="backslashreplace") + b"\n")
            self.dropped = 0
        except OSError:
            self.dropped += 1
        except Exception:
            self.handleError(record)


def set_up(descriptor: int, *, debug: bool) -> None:
    """Send all that is logged to `descriptor`, which is made non-blocking."""
    os.set_blocking(descriptor, False)
    root = logging.getLogger()
    root.handlers[:] = [FifoHandler(descriptor)]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for library in ("asyncio", "grpc"):  # their debugging is about themselves
        logging.getLogger(library).setLevel(logging.INFO)
    logging.captureWarnings(True)
