"""The error that a sandbox ends with, as its trace tells it: the text that the command line prints, and its hint."""

import logging
from collections.abc import Mapping
from pathlib import Path

from kata_runtime.errors import KataError
from kata_telemetry.conventions import FAILURE_HINT
from kata_telemetry.span import Span

__all__ = ["fail", "warn_of_loss"]

_log = logging.getLogger("kata.tracing")


def fail(span: Span, error: BaseException | None) -> None:
    """Set the status of `span`, unless there is no error or it has ended."""
    if error is None or span.end:
        return
    span.fail(error)
    if isinstance(error, KataError) and error.hint:
        span.set(**{FAILURE_HINT: error.hint})


def warn_of_loss(lost: Mapping[str, int], store: Path, *, in_time: bool) -> None:
    """Say that a trace is not whole; `lost` counts spans by reason, without `in_time` it is still being written."""
    if not in_time:
        _log.warning("the trace could not be written in time")
    if lost:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items())
        _log.warning("the trace is not whole: %s (%s)", reasons, store)
