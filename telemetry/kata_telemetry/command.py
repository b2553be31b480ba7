"""`kata-runtime trace list|show|push`, for the command line to plug in:

    command.add_arguments(subparsers)          # of argparse
    options = parser.parse_args()
    return options.run(options)                # exit status

Errors come as StoreError and SettingsError (both say what to do) for the command line's one place that prints them.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from kata_telemetry.store import DEFAULT_TRACE_DIR, Store, StoreError, stores

if TYPE_CHECKING:
    from kata_telemetry.trace import Trace

__all__ = ["add_arguments", "find", "parse_duration"]

# ns in one of each unit that --min-duration takes.
UNITS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
LATEST: Final = "latest"


def add_arguments(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `trace` command; the chosen one is `run` of the parsed options: `run(options) -> exit status`."""
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

    show = commands.add_parser("show", parents=[common], help="show one trace, also of a running sandbox")
    show.add_argument("sandbox", nargs="?", default=LATEST, help="sandbox id, a unique beginning of it, or its name")
    show.add_argument("--format", choices=["text", "json", "otlp"], default="text")
    show.add_argument("--events", action="store_true", help="show the events of each span")
    show.add_argument("--min-duration", type=parse_duration, default=0, metavar="TIME", help="leave out less, e.g. 5ms")
    show.add_argument("--depth", type=_positive, default=0, metavar="N", help="levels of the tree to show")
    show.add_argument("--all", action="store_true", dest="unfold", help="do not fold runs of short spans")
    show.add_argument("--width", type=_positive, default=0, metavar="N", help="columns (default: the terminal's)")
    show.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    show.set_defaults(run=_show)

    push = commands.add_parser("push", parents=[common], help="send what a collector does not have yet")
    push.add_argument("sandbox", nargs="?", default=LATEST, help="sandbox id, a unique beginning of it, or its name")
    push.add_argument("--all", action="store_true", dest="everything", help="all traces that are kept")
    push.add_argument("--endpoint", default="", metavar="URL", help="default: OTEL_EXPORTER_OTLP_ENDPOINT")
    push.add_argument("--protocol", choices=["grpc", "http/protobuf"], default="")
    push.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for each trace (default 60)")
    push.set_defaults(run=_push, headers="")


def find(trace_dir: Path, wanted: str) -> Store:
    """The trace of a sandbox by id, unique beginning of an id, name, or "latest". Raises StoreError."""
    kept = stores(trace_dir)
    if wanted == LATEST and kept:
        return kept[0]
    ids = [store for store in kept if store.directory.name == wanted]
    begins = [store for store in kept if store.directory.name.startswith(wanted)]
    # The newest of a name: that is what a person means who runs the same thing again.
    named = [store for store in kept if wanted and store.meta().name == wanted][:1]
    for found in (ids, begins, named):
        if len(found) == 1 and wanted:
            return found[0]
    if len(begins) > 1 and wanted and not named:
        some = ", ".join(store.directory.name for store in begins[:5]) + (", …" if len(begins) > 5 else "")
        raise StoreError(f"{wanted!r} is the beginning of {len(begins)} sandboxes with a trace: {some}")
    what = "no trace" if wanted == LATEST else f"no trace of {wanted!r}"
    raise StoreError(
        f"{what}; traces are kept in {trace_dir} ({len(kept)} there): "
        "is enable_tracing on in the configuration, or was the sandbox run with --trace?"
    )


def parse_duration(text: str) -> int:
    """`5ms`, `0.2s`, `800us`, or a number of ms, as ns. Raises argparse.ArgumentTypeError."""
    number = text.strip().rstrip("nuµms ").strip()
    unit = text.strip()[len(number) :].strip() or "ms"
    try:
        value = float(number) * UNITS[unit]
        if not 0 <= value < 1e18:
            raise ValueError
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 5ms, 0.2s or 800us") from None
    return int(value)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)


def _trace_dir(options: argparse.Namespace) -> Path:
    # The command line may have set what the configuration says.
    return Path(options.trace_dir or DEFAULT_TRACE_DIR)


def _load(store: Store) -> "Trace":
    from kata_telemetry.trace import load_store

    trace = load_store(store)
    if trace is None:
        raise StoreError(f"the trace in {store.directory} has no span yet")
    return trace


def _list(options: argparse.Namespace) -> int:
    from kata_telemetry.views.units import duration

    entries = []
    for store in stores(_trace_dir(options)):
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
        print(f"no traces in {_trace_dir(options)}", file=sys.stderr)
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


def _show(options: argparse.Namespace) -> int:
    store = find(_trace_dir(options), options.sandbox)
    # Whoever reads may stop reading: `trace show | head` is no error.
    with contextlib.suppress(BrokenPipeError):
        if options.format == "otlp":
            from kata_telemetry.views.model import otlp_lines

            for line in otlp_lines(store):
                print(line)
        elif options.format == "json":
            from kata_telemetry.views.model import to_model

            print(json.dumps(to_model(_load(store)), indent=1))
        else:
            _show_text(_load(store), options, sys.stdout)
        sys.stdout.flush()
        return 0
    # What is still buffered must not be tried again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show_text(trace: "Trace", options: argparse.Namespace, stream: TextIO) -> None:
    from kata_telemetry.views import text

    terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    colour = options.color == "always" or (options.color == "auto" and terminal and not os.environ.get("NO_COLOR"))
    width = options.width or shutil.get_terminal_size((100, 24)).columns
    try:
        "█├…".encode(stream.encoding or "ascii")
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    lines = text.render(
        trace,
        text.Options(
            width=width,
            events=options.events,
            min_duration=options.min_duration,
            depth=options.depth,
            fold=not options.unfold,
            ascii=ascii_only,
        ),
    )
    if colour:
        text.coloured(lines, stream, max(width, text.MIN_WIDTH))
    else:
        text.plain(lines, stream)


def _push(options: argparse.Namespace) -> int:
    from kata_telemetry.collector import CollectorSettings, SettingsError
    from kata_telemetry.export import push

    settings = CollectorSettings.resolve(
        os.environ, endpoint=options.endpoint, protocol=options.protocol, headers=options.headers
    )
    if settings is None:
        raise SettingsError(
            "no collector to push to: give --endpoint http://HOST:4317 or set OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    trace_dir = _trace_dir(options)
    chosen = stores(trace_dir) if options.everything else [find(trace_dir, options.sandbox)]
    # grpc's core would log every failed attempt.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    complete = True
    for store in chosen:
        try:
            result = push(store, settings, timeout=options.timeout)
        except StoreError as error:
            if not options.everything:
                raise
            print(f"{store.directory.name}: {error}", file=sys.stderr)
            complete = False
            continue
        complete &= result.complete
        note = f"{store.directory.name}: {result.spans} spans sent to {settings.target}"
        if result.rejected:
            note += f", {result.rejected} not wanted"
        if not result.complete:
            note += f"; {result.left} bytes and {result.refused} refused batches are left: {result.error}"
        print(note)
    return 0 if complete else 1
