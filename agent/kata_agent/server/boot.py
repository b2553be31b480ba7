"""The guest's boot as spans, from the kernel's own log.

The kernel stamps its log with local_clock(), which is not CLOCK_MONOTONIC (it is never slewed, and starts elsewhere).
So the agent writes a line between two readings of CLOCK_MONOTONIC, finds the line's stamp, and knows the difference.
Record format: kernel documentation, ABI/testing/dev-kmsg.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kata_agent.server.tracing import Tracing
    from kata_telemetry.span import Span, SpanContext

__all__ = ["Boot", "Line", "kmsg", "offset_of", "parse_record", "stages"]

# Lines looked at, and their length: the buffer is the kernel's and of any size.
MAX_LINES: Final = 4096
MAX_RECORD: Final = 8192
RUN_INIT: Final = "Run /init"
INITRAMFS: Final = "kata: initramfs"
AGENT_START: Final = "kata: agent start"
CALIBRATION: Final = "kata: clock "


class Line(NamedTuple):
    """One line of the kernel's log; `time` in ns of the log's clock."""

    time: int
    text: str


def kmsg(text: str) -> None:
    """Write a line to the kernel's log, if there is one. `<6>` is KERN_INFO."""
    with suppress(OSError):
        fd = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"<6>{text}\n".encode())
        finally:
            os.close(fd)


def parse_record(record: bytes) -> Line | None:
    """A record as a read of /dev/kmsg gives it: `6,339,5140900,-;text`, then lines of a dictionary."""
    head, separator, rest = record.decode("utf-8", "replace").partition(";")
    fields = head.split(",")
    if not separator or len(fields) < 3 or not fields[2].isdigit():
        return None
    return Line(int(fields[2]) * 1000, rest.split("\n", 1)[0])


def offset_of(lines: Iterable[Line], mark: str, before: int, after: int) -> int | None:
    """CLOCK_MONOTONIC minus the log's clock: `mark` was written between the two readings of CLOCK_MONOTONIC."""
    for line in lines:
        if line.text == mark:
            return (before + after) // 2 - line.time
    return None


def stages(lines: Iterable[Line], offset: int) -> list[tuple[str, int, int]]:
    """Kernel and initramfs (name, start, end in CLOCK_MONOTONIC ns), as far as the log tells.

    An initramfs stage runs from one of its lines to the next, named by what follows `kata: initramfs `.
    """
    run_init = agent = 0
    marks: list[Line] = []
    for line in lines:
        if line.text.startswith(RUN_INIT) and not run_init:
            run_init = line.time
        elif line.text.startswith(INITRAMFS) and not agent:
            marks.append(line)
        elif line.text == AGENT_START and not agent:
            agent = line.time
    found = []
    if run_init:
        found.append(("boot.kernel", 0, run_init + offset))
    if run_init and agent:
        found.append(("boot.initramfs", run_init + offset, agent + offset))
        ends = [mark.time for mark in marks[1:]] + [agent]
        for mark, end in zip(marks, ends, strict=True):
            name = mark.text.removeprefix(INITRAMFS).strip().replace(" ", "_")[:48]
            found.append((f"boot.initramfs.{name or 'start'}", mark.time + offset, end + offset))
    return found


class Boot:
    """What the agent notes while it starts; later `record` makes spans of it."""

    def __init__(self, started: int) -> None:
        """`started` is the CLOCK_MONOTONIC reading (ns) of the agent's first line."""
        self.started = started
        self.ready = 0
        self.marks: list[tuple[str, int]] = [("start", started)]
        self._within: list[tuple[str, str, int]] = []

    def mark(self, stage: str) -> None:
        """The stage `stage` ends now."""
        self.marks.append((stage, time.monotonic_ns()))

    def mark_within(self, stage: str, step: str) -> None:
        """A step of `stage`, which has not ended, ends now."""
        self._within.append((stage, step, time.monotonic_ns()))

    def record(self, tracing: "Tracing", parent: "Span | SpanContext") -> None:
        """Record the boot's spans under `parent`. Without a kernel log only the agent's part."""
        lines, offset = _read_log()
        spans: dict[str, Span] = {}
        if offset is not None:
            for name, start, end in stages(lines, offset):
                above = spans.get("boot.initramfs", parent) if name.startswith("boot.initramfs.") else parent
                spans[name] = tracing.record(name, start, end, above)
        agent = tracing.record("boot.agent", self.started, self.marks[-1][1], parent)
        for (_, start), (stage, end) in zip(self.marks, self.marks[1:], strict=False):
            above = tracing.record(f"boot.agent.{stage}", start, end, agent)
            for within, step, ended in self._within:
                if within == stage:
                    tracing.record(f"boot.agent.{stage}.{step}", start, ended, above)
                    start = ended  # noqa: PLW2901 - the next step begins here


def _read_log() -> tuple[list[Line], int | None]:
    try:
        fd = os.open("/dev/kmsg", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return [], None
    lines: list[Line] = []
    try:
        before = time.monotonic_ns()
        mark = f"{CALIBRATION}{before}"
        os.write(fd, f"<7>{mark}\n".encode())
        after = time.monotonic_ns()
        while len(lines) < MAX_LINES:
            try:
                record = os.read(fd, MAX_RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # overwritten while we read: the next one follows
            if line := parse_record(record):
                lines.append(line)
    except OSError:
        return [], None
    finally:
        os.close(fd)
    return lines, offset_of(reversed(lines), mark, before, after)
