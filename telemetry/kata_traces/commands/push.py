"""`kata-runtime trace push`: what a collector does not have yet, or all of it again."""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

from kata_common.text import told
from kata_traces.read.cells import crop, printable
from kata_traces.read.lookup import LATEST, WHICH, Source, source, trace_dir
from kata_traces.send.settings import EXPORTERS, CollectorSettings, Given, SettingsError, Target, targets
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store, stores

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `push`, and `run` as the parser's default."""
    parser.add_argument("trace", nargs="?", default=LATEST, help=WHICH)
    parser.add_argument("--all", action="store_true", dest="everything", help="all traces that are kept")
    parser.add_argument("--again", action="store_true", help="send also what the collector has taken already")
    parser.add_argument("--endpoint", default="", metavar="URL", help="default: OTEL_EXPORTER_OTLP_ENDPOINT")
    parser.add_argument("--protocol", choices=["grpc", "http/protobuf"], default="", help="(default: by the port)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for each trace (default 60)")
    # What only the configuration says.
    parser.set_defaults(run=_run, given=None)


def _run(options: argparse.Namespace) -> int:
    to = _targets(options)
    where = trace_dir(options)
    chosen = [Source(store) for store in stores(where)] if options.everything else [source(where, options.trace)]
    # grpc's core would log every failed attempt.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    complete = True
    for number, found in enumerate(chosen, 1):
        progress = f"[{number}/{len(chosen)}] " if options.everything else ""
        for target in to:
            try:
                whole, note = _push(found, target, options)
            except StoreError as error:
                if not options.everything:
                    raise
                print(told(f"{found.label}: {error}"), file=sys.stderr)
                complete = False
                continue
            complete &= whole
            print(f"{progress}{found.label}: {note}")
    return 0 if complete else 1


def _targets(options: argparse.Namespace) -> list[Target]:
    """Those of the runtime, unless the command line names another: then its headers and certificates are not for it."""
    environment = dict(os.environ)
    given = options.given or Given()
    if options.endpoint:
        given = Given(endpoint=options.endpoint, protocol=options.protocol)
        environment.pop(EXPORTERS, None)
    elif options.protocol:
        given = dataclasses.replace(given, protocol=options.protocol)
    found = targets(environment, given)
    if not found:
        raise SettingsError(
            "no collector to push to: give --endpoint http://HOST:4317 or set OTEL_EXPORTER_OTLP_ENDPOINT"
            + (f" ({EXPORTERS} is none)" if environment.get(EXPORTERS) else "")
        )
    return found


def _push(found: Source, settings: Target, options: argparse.Namespace) -> tuple[bool, str]:
    """Whether the collector has all of it, and that in words."""
    if found.store is not None:
        return _push_store(found.store, settings, options)
    # A file has no notes about who has it: it is sent whole.
    with tempfile.TemporaryDirectory(prefix="kata-push-") as directory:
        store = Store(Path(directory))
        lines = (line if isinstance(line, str) else line.decode() for line in found.lines())
        store.spans.write_text("".join(f"{line.rstrip()}\n" for line in lines))
        store.meta_path.write_text(json.dumps({"outcome": "file"}))
        return _push_store(store, settings, options)


def _push_store(store: Store, settings: Target, options: argparse.Namespace) -> tuple[bool, str]:
    from kata_traces.send.delivery import forget, push, taken

    if options.again:
        forget(store, settings)
    already = taken(store, settings)
    result = push(store, settings, timeout=options.timeout)
    note = f"{result.spans} spans sent to {settings.target}"
    if already:
        note += f", already delivered: {already}"
        if result.complete and not result.spans:
            note += " (--again sends them again)"
    if result.rejected:
        note += f", {result.rejected} not wanted"
    if not result.complete:
        note += f"; {result.left} bytes and {result.refused} refused batches are left: {_plain(result.error, settings)}"
    return result.complete, note


def _plain(error: str, settings: Target) -> str:
    """What a protocol that meets another one says, in words."""
    error = crop(printable(error), 500)
    if not isinstance(settings, CollectorSettings):
        return error
    low = error.lower()
    if settings.protocol == "grpc" and ("http1" in low or "http/1" in low or "failed parsing http/2" in low):
        return (
            f"{settings.endpoint} speaks HTTP, not gRPC: use --protocol http/protobuf, or gRPC's port (usually 4317) "
            f"[{error}]"
        )
    if settings.protocol != "grpc" and any(
        sign in low for sign in ("badstatusline", "\\x00\\x00", "without response", "status line", "goaway", "http/2")
    ):
        return (
            f"{settings.endpoint} does not answer HTTP/1; it may speak gRPC: use --protocol grpc, or HTTP's port "
            f"(usually 4318) [{error}]"
        )
    return error
