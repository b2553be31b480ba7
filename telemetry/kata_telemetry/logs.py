"""Structured logs of both sides, on the standard library's logging: one record, one line, in logfmt or JSON.

    configure("logfmt", "info", sys.stderr, source="runtime")
    with log_fields(sandbox="a1b2"):
        logging.getLogger("kata.qemu").info("QEMU runs", extra={"pid": 4711})

    time=2026-08-22T10:00:00.123456Z level=info source=runtime name=kata.qemu msg="QEMU runs" sandbox=a1b2 pid=4711

Sandbox, container, exec, trace and span ids come from the current span, then from `log_fields`. Messages may be
hostile: control characters are escaped and lengths bounded, so that one record stays one line.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TextIO

from kata_common.text import printable
from kata_telemetry.span import Span, current

__all__ = ["FORMATS", "LEVELS", "Flood", "Formatter", "configure", "log_fields", "on_spans", "set_root"]

FORMATS: Final = ("logfmt", "json")
LEVELS: Final = ("trace", "debug", "info", "warning", "error", "critical")
# Longer texts are cut.
MAX_TEXT: Final = 8192
# Below DEBUG; Kata's tools know `trace` as well.
TRACE: Final = 5
# Attribute of a span -> name in the log.
_OF_SPAN: Final = {"sandbox_id": "sandbox", "container_id": "container", "exec_id": "exec"}
# What every LogRecord has (logging's documentation, "LogRecord attributes"); the rest came by `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

# Longer messages are cut where they become events: they go over the network.
MAX_EVENT: Final = 1024

_root: Span | None = None
_fields: ContextVar[Mapping[str, object]] = ContextVar("kata_telemetry_log_fields", default={})  # noqa: B039 - never changed


@contextlib.contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Add `fields` to every record of this context (a task inherits its creator's)."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def set_root(root: Span | None) -> None:
    """Whose ids are in lines that are about nothing in particular: the root of this process's one trace."""
    global _root  # noqa: PLW0603 - as logging itself, the log is the process's
    _root = root


class _SpanHandler(logging.Handler):
    """Records as events of the current span."""

    def __init__(self, levels: frozenset[int]) -> None:
        super().__init__()
        self._levels = levels

    def emit(self, record: logging.LogRecord) -> None:
        span = current()
        if not span.recording or record.levelno not in self._levels:
            return
        level, text = record.levelname.lower(), _message(record)[:MAX_EVENT]
        # Names of OpenTelemetry's data model for logs.
        span.event("log", severity=level, logger=record.name, message=text)


def on_spans(levels: Iterable[str]) -> None:
    """Our own records of these levels are events of the current span, too; no levels end that.

    The log itself is as it was: what it did not show before, it does not show now. Records of libraries stay out, since
    nobody has looked at what they tell.
    """
    ours, root = logging.getLogger("kata"), logging.getLogger()
    for old in [handler for handler in ours.handlers if isinstance(handler, _SpanHandler)]:
        ours.removeHandler(old)
        ours.setLevel(logging.NOTSET)
    numbers = frozenset(logging.getLevelNamesMapping()[level.upper()] for level in levels)
    if not numbers:
        return
    if min(numbers) < root.level:
        for handler in root.handlers:
            handler.setLevel(max(handler.level, root.level))
        ours.setLevel(min(numbers))
    ours.addHandler(_SpanHandler(numbers))


class Flood(logging.Filter):
    """Lets each place in the code say so many records at once, and so many in a second, whoever makes it talk.

    The next record of that place says how many are missing (`dropped`). `clock` in s.
    """

    def __init__(self, burst: int = 100, rate: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst = burst
        self._rate = rate
        self._clock = clock
        # Of a place: what it may still say, when that was so, how much is missing. There are as many as lines of code.
        self._places: dict[tuple[str, int], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), self._clock()
        left, since, dropped = self._places.get(place, (float(self._burst), now, 0))
        left = min(left + (now - since) * self._rate, self._burst)
        if left < 1:
            self._places[place] = (left, now, dropped + 1)
            return False
        if dropped:
            record.__dict__["dropped"] = dropped
        self._places[place] = (left - 1, now, 0)
        return True


class Formatter(logging.Formatter):
    """Records as lines; `style` is "logfmt" or "json"."""

    def __init__(self, style: str, source: str) -> None:
        super().__init__()
        self._line = _json if style == "json" else _logfmt
        self._source = source

    def format(self, record: logging.LogRecord) -> str:
        return self._line(self._collect(record))

    def _collect(self, record: logging.LogRecord) -> dict[str, Any]:
        seconds, fraction = divmod(record.created, 1)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        fields: dict[str, Any] = {
            "time": f"{stamp}.{int(fraction * 1e6):06d}Z",
            "level": record.levelname.lower(),
            "source": self._source,
            "name": record.name,
            "msg": _message(record),
        }
        span = current()
        if not span.recording and _root is not None and _root.recording:
            span = _root
        if span.recording:
            about = span.attributes
            for attribute, name in _OF_SPAN.items():
                if attribute in about:
                    fields[name] = about[attribute]
            fields["trace_id"] = f"{span.context.trace_id:032x}"
            fields["span_id"] = f"{span.context.span_id:016x}"
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        # A record that somebody else made, as the agent, has ids of its own.
        fields.update((name, extra[name]) for name in ("sandbox", "trace_id", "span_id") if name in extra)
        for name, value in (*_fields.get().items(), *extra.items()):
            fields.setdefault(name, value)
        if record.exc_info and record.exc_info[0]:
            fields["error"] = f"{record.exc_info[0].__name__}: {record.exc_info[1]}"
            # As one line: readers of structured logs split at newlines.
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


def configure(style: str, level: str, target: TextIO | Path, *, source: str) -> logging.Handler:
    """Send all records from `level` up to `target`, a stream or a file to append to; `source` is runtime or agent.

    What an earlier call set up is replaced. Raises ValueError for a style or level that isn't there (FORMATS, LEVELS)
    and OSError where the file can't be opened.
    """
    if style not in FORMATS:
        raise ValueError(f"log format {style!r} is none of {', '.join(FORMATS)}")
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    logging.addLevelName(TRACE, "TRACE")
    # A log that can't be written (disk full, reader gone) must not print tracebacks over the user's terminal.
    logging.raiseExceptions = False
    handler: logging.Handler
    if isinstance(target, Path):
        handler = logging.FileHandler(target, encoding="utf-8", errors="backslashreplace")
    else:
        handler = logging.StreamHandler(target)
    handler.setFormatter(Formatter(style, source))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, Formatter)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(TRACE if level == "trace" else level.upper())
    logging.captureWarnings(True)
    return handler


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong format string must not lose the record
        return f"{record.msg} {record.args!r} ({error})"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


def _logfmt(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{_key(key)}={_quote(value)}" for key, value in fields.items())


def _key(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_.-" else "_" for c in key[:64]) or "_"


def _quote(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = _cut(str(value))
    if text and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped, len(escaped))}"'


def _json(fields: Mapping[str, Any]) -> str:
    # ASCII: control characters, line separators and surrogates all become \\u escapes.
    return json.dumps({_key(key): _plain(value) for key, value in fields.items()})


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _cut(str(value))
