"""`kata-runtime trace diff|check|explain`: what traces say, for people in a hurry and for CI."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kata_traces.commands.durations import parse_count, parse_duration, parse_percent
from kata_traces.read.lookup import LATEST, WHICH, load_any, load_kept, trace_dir
from kata_traces.store.errors import StoreError
from kata_traces.store.store import stores

if TYPE_CHECKING:
    from kata_traces.read.explain import Start
    from kata_traces.store.store import Store

__all__ = ["add_check", "add_diff", "add_explain"]


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Arguments of `diff`, and `run` as the parser's default."""
    parser.add_argument("traces", nargs="*", metavar="TRACE", help=f"two traces, the older first: {WHICH}")
    parser.add_argument("--baseline", nargs="+", default=[], metavar="TRACE", help="many runs before…")
    parser.add_argument("--candidate", nargs="+", default=[], metavar="TRACE", help="…against many runs after")
    parser.add_argument("--format", choices=["text", "json"], default="text", help="(default: text)")
    parser.set_defaults(run=_diff)


def add_check(parser: argparse.ArgumentParser) -> None:
    """Arguments of `check`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    for name, default, text in (
        ("--min-spans", 2, "that must be there"),
        ("--max-orphans", 0, "spans without their parent"),
        ("--max-negative", 0, "spans that end before they start"),
        ("--max-lost", 0, "spans that were dropped, and lines that can't be read"),
    ):
        parser.add_argument(name, type=parse_count, default=default, metavar="N", help=f"{text}; default {default}")
    parser.add_argument(
        "--max-unaccounted", type=parse_percent, default=10.0, metavar="PERCENT", help="of the whole; default 10"
    )
    parser.add_argument(
        "--max-misfit",
        type=parse_duration,
        default=1_000_000,
        metavar="TIME",
        help="how far a span may start before its parent, and a call end after its caller; default 1ms",
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        action="append",
        default=[],
        metavar="NAME=TIME",
        help="the longest that spans of that name may take, or a stage: StartVM=3s, stage:kernel=2s",
    )
    parser.add_argument("--require-service", action="append", default=[], metavar="NAME", help="e.g. kata-agent")
    parser.add_argument("--no-errors", action="store_true", help="no span may have failed")
    parser.set_defaults(run=_check)


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Arguments of `explain`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.set_defaults(run=_explain)


def _budget(text: str) -> tuple[str, int]:
    from kata_traces.read.check import STAGE_PREFIX
    from kata_traces.read.stages import Stage

    name, equals, limit = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is no budget: write NAME=TIME, e.g. StartVM=3s")
    stage = name.removeprefix(STAGE_PREFIX)
    if stage != name and stage not in set(Stage):
        raise argparse.ArgumentTypeError(f"{stage!r} is no stage; stages are {', '.join(Stage)}")
    return name, parse_duration(limit, default="")


def _diff(options: argparse.Namespace) -> int:
    from kata_traces.read.compare import compare, run_of
    from kata_traces.views import comparison

    many = options.baseline or options.candidate
    if many and (options.traces or not (options.baseline and options.candidate)):
        raise StoreError("nothing to compare: --baseline and --candidate belong together, and stand instead of A B")
    if not many and len(options.traces) != 2:
        raise StoreError(
            f"{len(options.traces)} traces given: `trace diff` compares two, or --baseline and --candidate"
        )
    before, after = (options.baseline, options.candidate) if many else (options.traces[:1], options.traces[1:])
    where = trace_dir(options)
    result = compare(*([run_of(load_any(where, wanted)) for wanted in side] for side in (before, after)))
    if options.format == "json":
        print(json.dumps(comparison.to_json(result), indent=1))
        return 0
    _print(comparison.text(result, shutil.get_terminal_size((100, 24)).columns))
    return 0


def _check(options: argparse.Namespace) -> int:
    from kata_traces.read.check import Rules, check, summary

    trace = load_any(trace_dir(options), options.trace)
    rules = Rules(
        min_spans=options.min_spans,
        orphans=options.max_orphans,
        negative=options.max_negative,
        lost=options.max_lost,
        unaccounted=options.max_unaccounted,
        misfit=options.max_misfit,
        errors=not options.no_errors,
        services=tuple(options.require_service),
        budgets=dict(options.budget),
    )
    broken = check(trace, rules)
    _print(broken or [f"ok: {summary(trace)}"])
    return 1 if broken else 0


def _explain(options: argparse.Namespace) -> int:
    from kata_traces.read.explain import explain

    where = trace_dir(options)
    trace = load_any(where, options.trace)
    _print(explain(trace, _earlier(stores(where), trace.trace_id, trace.root.start)))
    return 0


def _earlier(kept: "list[Store]", trace_id: str, before: int) -> "list[Start]":
    """Starts that went well, of the newest traces that are older than `before` (host time, ns)."""
    from kata_traces.read.explain import MAX_EARLIER, start_of

    found: list[Start] = []
    for store in kept:
        meta = store.meta()
        if len(found) >= MAX_EARLIER:
            break
        if meta.trace_id == trace_id or meta.start >= before:
            continue
        try:
            start = start_of(load_kept(store))
        except StoreError:
            continue
        if start.reached:
            found.append(start)
    return found


def _print(lines: Iterable[str]) -> None:
    encoding = sys.stdout.encoding or "ascii"
    for line in lines:
        print(line.encode(encoding, "replace").decode(encoding))
