"""The agent's log lines, which come by the guest's console, on their way into the host's log.

The guest is hostile: whoever writes to its console can imitate its agent. So a line is taken apart, only what is known
of it is kept, as text of the guest's under the name of `kata.agent`, and not more than some lines in a second.
"""

import contextvars
import logging
import re
import time
from collections.abc import Callable
from typing import Final

from kata_telemetry.span import Span

__all__ = ["AgentLog", "parse"]

_log = logging.getLogger("kata.agent")

# Lines at once, and in a second.
BURST: Final = 200
RATE: Final = 50.0
# What of a line is kept, and how much of each; the console cuts lines at 1024 bytes.
_KEPT: Final = ("container", "exec", "method", "error", "traceback")
_MAX_TEXT: Final = 1024
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.ERROR,
}
# Compiled when the first line comes: then the guest is booting and there is time.
_PAIR: Final = r'([A-Za-z_][A-Za-z0-9_.-]*)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?:\s|$)'
_ID: Final = r"[0-9a-f]{16}"
_BEGINNING: Final = "time="


def parse(line: str) -> dict[str, str] | None:
    """The fields of a line that the agent's log may have written (kata_telemetry.logs, logfmt); None for any other."""
    if not line.startswith(_BEGINNING):
        return None
    fields: dict[str, str] = {}
    for key, value in re.findall(_PAIR, line):
        text = value[1:-1].replace('\\"', '"').replace("\\\\", "\\") if value.startswith('"') else value
        fields.setdefault(key, text[:_MAX_TEXT])
    return fields if fields.get("source") == "agent" and "msg" in fields else None


class AgentLog:
    """The log of one sandbox's agent; `root` is the root of the sandbox's trace."""

    def __init__(self, sandbox_id: str, root: Span, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sandbox_id = sandbox_id
        self._root = root
        self._clock = clock
        self._tokens = float(BURST)
        self._since = clock()
        self._dropped = 0

    def line(self, text: str) -> None:
        """A line of the console."""
        # Before it is taken apart, which takes as long as whoever wrote it wants (the square of its length).
        if not text.startswith(_BEGINNING):
            return
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._since) * RATE, BURST)
        self._since = now
        if self._tokens < 1:
            self._dropped += 1
            return
        self._tokens -= 1
        fields = parse(text)
        if fields is None:
            return
        extra: dict[str, object] = {"sandbox": self._sandbox_id, "agent_time": fields.get("time", "")[:40]}
        extra |= {key: fields[key] for key in _KEPT if key in fields}
        extra |= self._ids(fields)
        if self._dropped:
            extra["dropped"], self._dropped = self._dropped, 0
        # Whatever is going on here has nothing to do with it.
        contextvars.Context().run(
            _log.log, _LEVELS.get(fields.get("level", ""), logging.INFO), "%s", fields["msg"], extra=extra
        )

    def _ids(self, fields: dict[str, str]) -> dict[str, str]:
        """Trace and span, where they are of this sandbox's trace."""
        span_id = fields.get("span_id", "")
        if not (self._root.recording and re.fullmatch(_ID, span_id)):
            return {}
        ours = f"{self._root.context.trace_id:032x}"
        return {"trace_id": ours, "span_id": span_id} if fields.get("trace_id") == ours else {}
