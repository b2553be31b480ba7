"""`kata-runtime trace show`: one trace in one of many forms, to the terminal, a pipe or a file."""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from kata_common.files import write_atomically
from kata_traces.commands.durations import parse_duration, parse_positive
from kata_traces.read.lookup import LATEST, find, load_kept, trace_dir
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store

if TYPE_CHECKING:
    from kata_traces.read.trace import Trace

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `show`, and `run` as the parser's default."""
    parser.add_argument("sandbox", nargs="?", default=LATEST, help="sandbox id, a unique beginning of it, or its name")
    parser.add_argument(
        "--format",
        choices=["text", *_FORMATS],
        default="text",
        help="text for the terminal (default); html: a page to look at; mermaid: a chart for an issue; "
        "perfetto: for ui.perfetto.dev; jaeger: for Jaeger's upload; otlp: OpenTelemetry's files; json: our model",
    )
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="write to a file instead")
    parser.add_argument("--events", action="store_true", help="show the events of each span")
    parser.add_argument("--min-duration", type=parse_duration, default=0, metavar="TIME", help="leave out less: 5ms")
    parser.add_argument("--depth", type=parse_positive, default=0, metavar="N", help="levels of the tree to show")
    parser.add_argument("--all", action="store_true", dest="unfold", help="do not fold runs of short spans")
    parser.add_argument(
        "--width", type=parse_positive, default=0, metavar="N", help="columns (default: the terminal's)"
    )
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    store = find(trace_dir(options), options.sandbox)
    if options.format != "text":
        content = _FORMATS[options.format](store).encode("utf-8", "backslashreplace")
        if options.output:
            _write(options.output, content)
            return 0
        return _to_stdout(lambda stream: stream.buffer.write(content))
    trace = load_kept(store)
    if options.output:
        import io

        stream = io.StringIO()
        _show_text(trace, options, stream)
        _write(options.output, stream.getvalue().encode("utf-8", "backslashreplace"))
        return 0
    return _to_stdout(lambda stream: _show_text(trace, options, stream))


def _to_stdout(write: Callable[[TextIO], object]) -> int:
    # Whoever reads may stop reading: `trace show | head` is no error.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        write(sys.stdout)
        sys.stdout.flush()
        return 0
    # What is still buffered must not be tried again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _write(path: Path, content: bytes) -> None:
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # /dev/stdout, a named pipe
        else:
            write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    print(f"{path}: {len(content):,} bytes", file=sys.stderr)


def _dump(content: Any, **layout: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps(content, **layout) + "\n"


def _json(store: Store) -> str:
    from kata_traces.views.model import to_model

    return _dump(to_model(load_kept(store)), indent=1)


def _otlp(store: Store) -> str:
    from kata_traces.views.model import otlp_lines

    return "".join(line + "\n" for line in otlp_lines(store))


def _html(store: Store) -> str:
    from kata_traces.views.html import render

    return render(load_kept(store))


def _mermaid(store: Store) -> str:
    from kata_traces.views.mermaid import render

    return render(load_kept(store))


def _perfetto(store: Store) -> str:
    from kata_traces.views.perfetto import to_events

    return _dump(to_events(load_kept(store)), allow_nan=False)


def _jaeger(store: Store) -> str:
    from kata_traces.views.jaeger import to_jaeger

    return _dump(to_jaeger(load_kept(store)), allow_nan=False)


_FORMATS: Final[dict[str, Callable[[Store], str]]] = {
    "json": _json,
    "otlp": _otlp,
    "html": _html,
    "mermaid": _mermaid,
    "perfetto": _perfetto,
    "jaeger": _jaeger,
}


def _show_text(trace: "Trace", options: argparse.Namespace, stream: TextIO) -> None:
    from kata_traces.views import text

    terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
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
            ascii=not (options.output or _takes_unicode(stream)),
        ),
    )
    if colour:
        text.coloured(lines, stream, max(width, text.MIN_WIDTH))
    else:
        text.plain(lines, stream)


def _takes_unicode(stream: TextIO) -> bool:
    try:
        "█├…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
