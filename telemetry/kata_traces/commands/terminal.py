"""`kata-runtime trace top|blame|critical-chain|plot`: a trace in the terminal, and as a picture."""

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from kata_traces.commands.durations import parse_count
from kata_traces.commands.output import to_stdout, write_file
from kata_traces.commands.pager import paged
from kata_traces.read.lookup import LATEST, WHICH, load_any, source, trace_dir
from kata_traces.store.errors import StoreError

__all__ = ["add_blame", "add_chain", "add_plot", "add_top"]


def add_blame(parser: argparse.ArgumentParser) -> None:
    """Arguments of `blame`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.add_argument("--limit", type=parse_count, default=0, metavar="N", help="only the N longest")
    parser.add_argument("--no-pager", action="store_true", help="write on, however long it is")
    parser.set_defaults(run=_blame)


def add_chain(parser: argparse.ArgumentParser) -> None:
    """Arguments of `critical-chain`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.add_argument("--all", action="store_true", dest="everything", help="also what is less than a hundredth")
    parser.add_argument("--no-pager", action="store_true", help="write on, however long it is")
    parser.set_defaults(run=_chain)


def add_plot(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plot`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="write to a file instead of stdout")
    parser.set_defaults(run=_plot)


def add_top(parser: argparse.ArgumentParser) -> None:
    """Arguments of `top`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.set_defaults(run=_top)


def _width() -> int:
    return max(shutil.get_terminal_size((100, 24)).columns, 60)


def _print(lines: Iterable[str], *, pager: bool) -> int:
    kept = list(lines)

    def write(stream: IO[str]) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        for line in kept:
            stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")

    return paged(write, lines=len(kept), pager=pager)


def _blame(options: argparse.Namespace) -> int:
    from kata_traces.views.chain import blame_lines

    trace = load_any(trace_dir(options), options.trace)
    return _print(blame_lines(trace, _width(), limit=options.limit), pager=not options.no_pager)


def _chain(options: argparse.Namespace) -> int:
    from kata_traces.views.chain import chain_lines

    trace = load_any(trace_dir(options), options.trace)
    plain = (sys.stdout.encoding or "ascii").lower().replace("-", "") not in ("utf8", "utf8sig")
    lines = chain_lines(trace, _width(), everything=options.everything, plain=plain)
    return _print(lines, pager=not options.no_pager)


def _plot(options: argparse.Namespace) -> int:
    from kata_traces.views.svg import render

    content = render(load_any(trace_dir(options), options.trace)).encode("utf-8", "backslashreplace")
    if options.output:
        write_file(options.output, content)
        return 0
    return to_stdout(lambda stream: stream.buffer.write(content))


def _top(options: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StoreError("trace top needs a terminal; `trace show` writes into pipes and files")
    found = source(trace_dir(options), options.trace)
    found.load()  # what is wrong is told before the screen is taken
    from kata_traces.views.top.app import Top

    Top(found).run()
    return 0
