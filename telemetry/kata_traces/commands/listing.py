"""`kata-runtime trace list`: the traces that are kept, from what their stores say without reading a span."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from kata_telemetry.conventions import CONTAINER_NAME, IMAGE_NAME, POD_NAME, POD_NAMESPACE
from kata_traces.commands.durations import parse_count, parse_duration
from kata_traces.commands.pager import paged
from kata_traces.read.cells import columns, crop, crop_left, printable
from kata_traces.read.lookup import trace_dir
from kata_traces.read.units import duration
from kata_traces.store.abandoned import KILLED, last_sign
from kata_traces.store.store import Meta, Store, stores

__all__ = ["add_arguments", "state_of"]

# Characters of an id that are shown; more where two begin alike.
SHORT: Final = 12
RUNNING: Final = "running"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `list`, and `run` as the parser's default."""
    parser.add_argument("--failed", action="store_true", help="only what failed or was killed")
    parser.add_argument("--running", action="store_true", help="only what runs")
    parser.add_argument("--since", type=_moment, default=0, metavar="WHEN", help="2h (ago), 2026-11-27 or …T17:30")
    parser.add_argument("--until", type=_moment, default=0, metavar="WHEN", help="as --since")
    parser.add_argument("--slower-than", type=parse_duration, default=0, metavar="TIME", help="that lasted longer: 5s")
    parser.add_argument("--image", default="", metavar="TEXT", help="whose image's name contains this")
    parser.add_argument("--pod", default="", metavar="TEXT", help="whose pod, as NAMESPACE/NAME, contains this")
    parser.add_argument("--limit", type=parse_count, default=0, metavar="N", help="at most so many, the newest")
    parser.add_argument("--full-ids", action="store_true", help="whole ids")
    parser.add_argument("--format", choices=["text", "json"], default="text", help="(default: text)")
    parser.add_argument("--no-pager", action="store_true", help="write on, however long it is")
    parser.set_defaults(run=_run)


def _moment(text: str) -> int:
    """`2h` ago, or a date with or without a time, in the local zone; ns since the epoch."""
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 1e9)
    except ValueError:
        pass
    try:
        return time.time_ns() - parse_duration(text, default="")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write 2h or 3d (ago), 2026-11-27, or 2026-11-27T17:30"
        ) from None


def state_of(meta: Meta, *, live: bool) -> str:
    """In a word or two: what a list says of how it stands."""
    return RUNNING if live else meta.outcome or KILLED


def _failed(entry: dict[str, Any]) -> bool:
    return bool(entry["failure"]) or entry["status"] in ("error", "failed", KILLED)


def _entry(store: Store) -> dict[str, Any]:
    meta, live = store.meta(), store.live
    end = time.time_ns() if live else meta.end or last_sign(store)
    pod = "/".join(filter(None, (meta.labels.get(POD_NAMESPACE, ""), meta.labels.get(POD_NAME, ""))))
    return {
        "sandbox": store.directory.name,
        "name": meta.name if meta.name != store.directory.name else meta.labels.get(CONTAINER_NAME, ""),
        "pod": pod,
        "image": meta.labels.get(IMAGE_NAME, ""),
        "command": meta.command,
        "start_ns": meta.start,
        "duration_ns": max(end - meta.start, 0) if meta.start and end else None,
        "spans": meta.spans or None,
        "status": state_of(meta, live=live),
        "failure": meta.failure,
        "live": live,
        "trace_id": meta.trace_id,
    }


def _wanted(entry: dict[str, Any], options: argparse.Namespace) -> bool:
    return (
        not (options.failed and not _failed(entry))
        and not (options.running and not entry["live"])
        and entry["start_ns"] >= options.since
        and (not options.until or entry["start_ns"] <= options.until)
        and (entry["duration_ns"] or 0) >= options.slower_than
        and options.image in entry["image"]
        and options.pod in entry["pod"]
    )


def _run(options: argparse.Namespace) -> int:
    entries = [entry for store in stores(trace_dir(options)) if _wanted(entry := _entry(store), options)]
    if options.limit:
        entries = entries[: options.limit]
    if options.format == "json":
        print(json.dumps(entries, indent=1))
        return 0
    if not entries:
        print(f"no traces in {trace_dir(options)} that are asked for", file=sys.stderr)
        return 0
    width = shutil.get_terminal_size((200, 24)).columns
    lines = list(_table(entries, width, full=options.full_ids))

    def write(stream: IO[str]) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        for line in lines:
            stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")

    return paged(write, lines=len(lines), pager=not options.no_pager)


def _short(ids: Sequence[str]) -> dict[str, str]:
    """Beginnings of ids that are unique among them."""
    shown: dict[str, str] = {}
    taken: dict[str, list[str]] = {}
    for whole in ids:
        taken.setdefault(whole[:SHORT], []).append(whole)
    for begin, those in taken.items():
        for whole in those:
            shown[whole] = begin if len(those) == 1 else whole
    return shown


def _table(entries: Sequence[dict[str, Any]], width: int, *, full: bool) -> Iterator[str]:
    ids = [str(entry["sandbox"]) for entry in entries]
    short = {whole: whole for whole in ids} if full else _short(ids)
    rows = [["SANDBOX", "NAME", "POD", "IMAGE", "COMMAND", "START", "DURATION", "SPANS", "STATUS"]]
    for entry in entries:
        start = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(entry["start_ns"]) / 1e9))
        lasted = entry["duration_ns"]
        status = entry["status"] + (f": {entry['failure']}" if entry["failure"] else "")
        rows.append(
            [
                printable(short[entry["sandbox"]]),
                crop(printable(entry["name"]), 24),
                crop_left(printable(entry["pod"]), 36),
                crop_left(printable(entry["image"]), 36),
                # What groups containers: it says nothing that the pod's column does not.
                crop(printable(entry["command"]), 20) if entry["command"] not in ("single", "sandbox") else "",
                start,
                duration(lasted) if lasted is not None else "-",
                str(entry["spans"] or "-"),
                printable(status),
            ]
        )
    # A column in which nothing stands says nothing.
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    widths = {column: max(columns(row[column]) for row in rows) for column in used}
    for row in rows:
        cells = [row[column] + " " * (widths[column] - columns(row[column])) for column in used]
        yield crop("  ".join(cells).rstrip(), max(width, 80))
