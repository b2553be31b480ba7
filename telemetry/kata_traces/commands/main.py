"""`kata-runtime trace …`, for the command line to plug in:

    command.add_arguments(subparsers)          # of argparse
    options = parser.parse_args()
    return options.run(options)                # exit status

Errors come as StoreError and SettingsError (both say what to do) for the command line's one place that prints them.
"""

import argparse
from pathlib import Path

from kata_traces.commands import judge as command_judge
from kata_traces.commands import listing as command_listing
from kata_traces.commands import push as command_push
from kata_traces.commands import serve as command_serve
from kata_traces.commands import show as command_show
from kata_traces.commands import terminal as command_terminal
from kata_traces.commands.durations import parse_duration
from kata_traces.read.lookup import find
from kata_traces.store.store import DEFAULT_TRACE_DIR

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
    command_listing.add_arguments(listing)

    command_show.add_arguments(
        commands.add_parser("show", parents=[common], help="show one trace, also of a running sandbox")
    )
    for name, add, text in (
        ("diff", command_judge.add_diff, "compare runs: which stage got slower"),
        ("check", command_judge.add_check, "hold a trace to rules; exit status 1 if it breaks one"),
        ("explain", command_judge.add_explain, "what dominated a start, or why it failed, in plain words"),
        ("top", command_terminal.add_top, "look around in a trace, also while its sandbox runs"),
        ("blame", command_terminal.add_blame, "what the trace waited for, the longest first"),
        ("critical-chain", command_terminal.add_chain, "what the trace waited for, as a tree"),
        ("serve", command_serve.add_arguments, "all traces in a browser, on 127.0.0.1"),
        ("plot", command_terminal.add_plot, "a picture of the trace, as SVG"),
    ):
        add(commands.add_parser(name, parents=[common], help=text))

    command_push.add_arguments(
        commands.add_parser("push", parents=[common], help="send what a collector does not have yet")
    )
    return commands
