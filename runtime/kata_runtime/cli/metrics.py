"""`kata-runtime metrics`: what a running sandbox says of itself, or what the trace of one says."""

import argparse
import sys
from collections.abc import Callable

from kata_runtime.cli.control import ask
from kata_runtime.http import OPENMETRICS
from kata_runtime.sandbox.reach import running
from kata_traces.commands import metrics
from kata_traces.read.lookup import LATEST
from kata_traces.store.errors import StoreError

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metrics`."""
    metrics.add_arguments(parser)
    of_traces: Callable[[argparse.Namespace], int] = parser.get_default("run")
    parser.set_defaults(run=lambda options: _run(options, of_traces))


def _run(options: argparse.Namespace, of_traces: Callable[[argparse.Namespace], int]) -> int:
    """A sandbox that runs answers itself, traced or not; else there is only what was traced."""
    alive = running() if not options.everything else []
    if options.trace in alive:
        return _of_running(options.trace, options)
    try:
        return of_traces(options)
    except StoreError:
        if options.trace != LATEST or len(alive) != 1:
            raise
        return _of_running(alive[0], options)


def _of_running(sandbox: str, options: argparse.Namespace) -> int:
    accept = OPENMETRICS if options.format == "openmetrics" else "text/plain"
    sys.stdout.write(ask(sandbox, "GET", "/metrics", headers={"Accept": accept}).decode())
    return 0
