"""The daemon's log: lines in the form of containerd's own, into the fifo that containerd reads.

time="2026-01-02T03:04:05.678Z" level=info msg="…" container_id=one method=Start
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

__all__ = ["FifoHandler", "bind", "set_up"]

_fields: ContextVar[Mapping[str, str]] = ContextVar("kata_shim_log_fields", default=MappingProxyType({}))
_BARE = re.compile(r"[A-Za-z0-9_.:/@^+-]+")
_LEVELS = {"CRITICAL": "fatal"}


@contextmanager
def bind(**fields: str) -> Iterator[None]:
    """Give all that is logged in the block, and in the tasks started there, these fields."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        seconds, fraction = divmod(record.created, 1)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(fraction * 1000):03d}Z"
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        parts = [f'time="{stamp}"', f"level={level}", f"msg={json.dumps(message, ensure_ascii=False)}"]
        for name, value in {**_fields.get(), "logger": record.name}.items():
            parts.append(f"{name}={value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)}")
        return " ".join(parts)


class FifoHandler(logging.Handler):
    """Writes to a descriptor that must never make us wait: what does not fit is dropped and counted.

    The next line that fits says how many are missing.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(_Lines())
        self._descriptor = descriptor
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self.dropped:
                line += f" dropped={self.dropped}"
            # One write: a fifo keeps lines of up to PIPE_BUF bytes whole, whoever else writes.
            os.write(self._descriptor, line.encode() + b"\n")
            self.dropped = 0
        except OSError:
            self.dropped += 1
        except Exception:
            self.handleError(record)


def set_up(descriptor: int, *, debug: bool, **fields: str) -> None:
    """Log to `descriptor`, with these fields on every line."""
    os.set_blocking(descriptor, False)
    root = logging.getLogger()
    root.handlers[:] = [FifoHandler(descriptor)]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    _fields.set({**_fields.get(), **fields})
