"""`kata-runtime trace list|show|diff|check|explain|push`, for the command line to plug in:

    command.add_arguments(subparsers)          # of argparse
    options = parser.parse_args()
    return options.run(options)                # exit status

Errors come as StoreError and SettingsError (both say what to do) for the command line's one place that prints them.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from kata_traces.commands import judge as command_judge
from kata_traces.commands import push as command_push
from kata_traces.commands import show as command_show
from kata_traces.commands.durations import parse_duration
from kata_traces.read.lookup import find, trace_dir
from kata_traces.store.store import DEFAULT_TRACE_DIR, stores

__all__ = ["add_arguments", "find", "parse_duration"]


def add_arguments(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    """Add the `trace` command; the chosen one is `run` of the parsed options: `run(options) -> exit status`.

    Returns what further commands below `trace` are added to.
    """
    trace = subparsers.add_parser("trace", help="show where the time of a sandbox went")
    commands = trace.add_subparsers(dest="trace_command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--trace-dir",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"where traces are kept (default {DEFAULT_TRACE_DIR})",
    )

    listing = commands.add_parser("list", parents=[common], help="list the traces that are kept, the newest first")
    listing.add_argument("--format", choices=["text", "json"], default="text")
    listing.set_defaults(run=_list)

    command_show.add_arguments(
        commands.add_parser("show", parents=[common], help="show one trace, also of a running sandbox")
    )
    for name, add, text in (
        ("diff", command_judge.add_diff, "compare runs: which stage got slower"),
        ("check", command_judge.add_check, "hold a trace to rules; exit status 1 if it breaks one"),
        ("explain", command_judge.add_explain, "what dominated a start, or why it failed, in plain words"),
    ):
        add(commands.add_parser(name, parents=[common], help=text))

    command_push.add_arguments(
        commands.add_parser("push", parents=[common], help="send what a collector does not have yet")
    )
    return commands


def _list(options: argparse.Namespace) -> int:
    from kata_traces.read.units import duration

    entries = []
    for store in stores(trace_dir(options)):
        meta, live = store.meta(), store.live
        took = (time.time_ns() if live else meta.end) - meta.start if meta.start and (live or meta.end) else None
        entries.append(
            {
                "sandbox": store.directory.name,
                "name": meta.name,
                "command": meta.command,
                "start_ns": meta.start,
                "duration_ns": took,
                "spans": meta.spans or None,
                "status": "running" if live else meta.outcome or "killed",
                "live": live,
                "trace_id": meta.trace_id,
            }
        )
    if options.format == "json":
        print(json.dumps(entries, indent=1))
        return 0
    if not entries:
        print(f"no traces in {trace_dir(options)}", file=sys.stderr)
        return 0
    table = [["SANDBOX", "NAME", "COMMAND", "START", "DURATION", "SPANS", "STATUS"]]
    for entry in entries:
        lasted = entry["duration_ns"]
        start = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(str(entry["start_ns"])) / 1e9))
        shown = [start, duration(lasted) if isinstance(lasted, int) else "-", entry["spans"] or "-", entry["status"]]
        table.append([_cell(entry[key]) for key in ("sandbox", "name", "command")] + [_cell(value) for value in shown])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _cell(value: object) -> str:
    text = str(value)
    return "".join(c if c.isprintable() else "?" for c in text[:40])
