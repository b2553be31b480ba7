"""`kata-runtime metrics`: durations of operations, from spans, in Prometheus' formats."""

import argparse
import sys
from pathlib import Path

from kata_traces.read.lookup import LATEST, WHICH, load_any, trace_dir
from kata_traces.read.metrics import expose
from kata_traces.read.trace import load_store
from kata_traces.store.store import DEFAULT_TRACE_DIR, Store, stores

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `metrics`; `run` of the parsed options does it."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.add_argument("--all", action="store_true", dest="everything", help="all sandboxes that have a trace")
    parser.add_argument(
        "--format",
        choices=["openmetrics", "prometheus"],
        default="openmetrics",
        help="OpenMetrics with a span as an example of each bucket (default), or Prometheus' older text format",
    )
    parser.add_argument(
        "--trace-dir", type=Path, metavar="DIR", help=f"where traces are kept (default {DEFAULT_TRACE_DIR})"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    where = trace_dir(options)
    if options.everything:
        traces = [trace for store in _newest(stores(where)) if (trace := load_store(store)) is not None]
    else:
        traces = [load_any(where, options.trace)]
    sys.stdout.write(expose(traces, openmetrics=options.format == "openmetrics"))
    return 0


def _newest(found: list[Store]) -> list[Store]:
    """One store for each sandbox id, because two would have the same series; `found` has the newest first."""
    by_id: dict[str, Store] = {}
    for store in found:
        by_id.setdefault(store.meta().sandbox_id, store)
    return list(by_id.values())
