"""The guest's boot as spans, from the kernel's own log.

The kernel stamps its log with local_clock(), which is not CLOCK_MONOTONIC (it is never slewed, and starts elsewhere).
So the agent writes a line between two readings of CLOCK_MONOTONIC, finds the line's stamp, and knows the difference.
The log is read as text, by one system call: as records it would be one for each of some 400 lines.
"""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from kata_common import marks
from kata_common.linux import kernel_log

if TYPE_CHECKING:
    from kata_agent.server.tracing import Tracing
    from kata_telemetry.span import Span, SpanContext

__all__ = ["Boot", "Line", "kmsg", "offset_of", "parse_log", "stages"]

# Bytes of the log that are looked at: a boot writes 40 KiB.
MAX_LOG: Final = 512 * 1024
RUN_INIT: Final = "Run /init"
CALIBRATION: Final = "kata: clock "
# The lines that say something here; with CONFIG_PRINTK_CALLER the thread stands after the time.
_LINE: Final = re.compile(rb"^<\d+>\[ *(\d+)\.(\d{6})\](?:\[ *[TC]\d+\])? ((?:Run /init|kata: ).*)$", re.MULTILINE)


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


def parse_log(text: bytes) -> list[Line]:
    """The lines about the boot in the kernel's log, in order."""
    return [
        Line(int(seconds) * 1_000_000_000 + int(micros) * 1000, line.decode("utf-8", "replace"))
        for seconds, micros, line in _LINE.findall(text)
    ]


def offset_of(lines: Iterable[Line], mark: str, before: int, after: int) -> int | None:
    """CLOCK_MONOTONIC minus the log's clock: `mark` was written between the two readings of CLOCK_MONOTONIC."""
    for line in lines:
        if line.text == mark:
            return (before + after) // 2 - line.time
    return None


def stages(lines: Iterable[Line], offset: int) -> list[tuple[str, int, int]]:
    """Kernel and initramfs (name, start, end in CLOCK_MONOTONIC ns), as far as the log tells.

    An initramfs stage runs from one of its lines to the next, named by what follows `marks.INITRAMFS`.
    """
    run_init = agent = 0
    initramfs: list[Line] = []
    for line in lines:
        if line.text.startswith(RUN_INIT) and not run_init:
            run_init = line.time
        elif line.text.startswith(marks.INITRAMFS) and not agent:
            initramfs.append(line)
        elif line.text == marks.AGENT_START and not agent:
            agent = line.time
    found = []
    if run_init:
        found.append(("boot.kernel", 0, run_init + offset))
    if run_init and agent:
        found.append(("boot.initramfs", run_init + offset, agent + offset))
        ends = [mark.time for mark in initramfs[1:]] + [agent]
        for mark, end in zip(initramfs, ends, strict=True):
            name = mark.text.removeprefix(marks.INITRAMFS).strip().replace(" ", "_")[:48]
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
        fd = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return [], None
    try:
        before = time.monotonic_ns()
        mark = f"{CALIBRATION}{before}"
        os.write(fd, f"<7>{mark}\n".encode())
        after = time.monotonic_ns()
        lines = parse_log(kernel_log(MAX_LOG))
    except OSError:
        return [], None
    finally:
        os.close(fd)
    return lines, offset_of(reversed(lines), mark, before, after)
