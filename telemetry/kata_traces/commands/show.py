"""`kata-runtime trace show`: one trace in one of many forms, to the terminal, a pipe or a file."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

from kata_traces.commands.durations import parse_duration, parse_positive
from kata_traces.commands.output import format_of, to_stdout, write_file
from kata_traces.commands.pager import paged
from kata_traces.read.lookup import LATEST, WHICH, Source, source, trace_dir

if TYPE_CHECKING:
    from kata_traces.read.trace import Trace

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `show`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.add_argument(
        "--format",
        choices=["text", *_FORMATS],
        default="",
        help="text for the terminal; html: a page to look at; mermaid: a chart for an issue; perfetto: for "
        "ui.perfetto.dev; jaeger: for Jaeger's upload; otlp: OpenTelemetry's files; json: our model "
        "(default: as --output ends, else text)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="FILE",
        help="write to a file; .html, .json, .jsonl (OTLP), .mmd, .jaeger.json, .perfetto.json and .txt say its format",
    )
    parser.add_argument("--events", action="store_true", help="show the events of each span")
    parser.add_argument("--min-duration", type=parse_duration, default=0, metavar="TIME", help="leave out less: 5ms")
    parser.add_argument("--depth", type=parse_positive, default=0, metavar="N", help="levels of the tree to show")
    parser.add_argument("--all", action="store_true", dest="unfold", help="do not fold runs of short spans")
    parser.add_argument(
        "--width", type=parse_positive, default=0, metavar="N", help="columns (default: the terminal's)"
    )
    parser.add_argument("--no-pager", action="store_true", help="write on, however long it is")
    parser.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="(default: auto, on a terminal)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = source(trace_dir(options), options.trace)
    kind = options.format or format_of(options.output)
    if kind != "text":
        content = _FORMATS[kind](found).encode("utf-8", "backslashreplace")
        if options.output:
            write_file(options.output, content)
            return 0
        return to_stdout(lambda stream: stream.buffer.write(content))
    trace = found.load()
    if options.output:
        import io

        stream = io.StringIO()
        _text(trace, options)(stream)
        write_file(options.output, stream.getvalue().encode("utf-8", "backslashreplace"))
        return 0
    text = _text(trace, options)
    return paged(text, lines=text.lines, pager=not options.no_pager)


def _dump(content: Any, **layout: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps(content, **layout) + "\n"


def _json(found: Source) -> str:
    from kata_traces.views.model import to_model

    return _dump(to_model(found.load()), indent=1)


def _otlp(found: Source) -> str:
    from kata_traces.views.model import otlp_lines

    return "".join(line + "\n" for line in otlp_lines(found.lines()))


def _html(found: Source) -> str:
    from kata_traces.views.html import render

    return render(found.load())


def _mermaid(found: Source) -> str:
    from kata_traces.views.mermaid import render

    return render(found.load())


def _perfetto(found: Source) -> str:
    from kata_traces.views.perfetto import to_events

    return _dump(to_events(found.load()), allow_nan=False)


def _jaeger(found: Source) -> str:
    from kata_traces.views.jaeger import to_jaeger

    return _dump(to_jaeger(found.load()), allow_nan=False)


_FORMATS: Final[dict[str, Callable[[Source], str]]] = {
    "json": _json,
    "otlp": _otlp,
    "html": _html,
    "mermaid": _mermaid,
    "perfetto": _perfetto,
    "jaeger": _jaeger,
}


@dataclass(frozen=True)
class _Text:
    """A text that was laid out for this terminal, and how many lines it has; a pager may be between the two."""

    write: Callable[[IO[str]], None]
    lines: int

    def __call__(self, stream: IO[str]) -> None:
        self.write(stream)


def _text(trace: "Trace", options: argparse.Namespace) -> _Text:
    from kata_traces.views import text

    terminal = not options.output and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    colour = options.color == "always" or (options.color == "auto" and terminal and not os.environ.get("NO_COLOR"))
    width = options.width or shutil.get_terminal_size((100, 24)).columns
    lines = text.render(
        trace,
        text.Options(
            width=width,
            events=options.events,
            min_duration=options.min_duration,
            depth=options.depth,
            fold=not options.unfold,
            ascii=not (options.output or _takes_unicode(sys.stdout)),
        ),
    )

    def write(stream: IO[str]) -> None:
        if colour:
            text.coloured(lines, stream, max(width, text.MIN_WIDTH))
        else:
            text.plain(lines, stream)

    return _Text(write, len(lines))


def _takes_unicode(stream: TextIO) -> bool:
    try:
        "█├…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
