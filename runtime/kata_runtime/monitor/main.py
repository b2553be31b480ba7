"""`kata-monitor`: options, start and end."""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

from kata_common import descriptors
from kata_common.ids import is_id
from kata_common.places import RUN_DIR
from kata_common.text import told
from kata_runtime.errors import HostError, KataError
from kata_runtime.http import JSON, MAX_HEAD, Answer, Refusal, Request, Routes, Server, metrics_answer
from kata_runtime.monitor.pods import pods
from kata_runtime.monitor.scrape import Scraper, ask
from kata_runtime.sandbox.reach import running
from kata_telemetry import logs

__all__ = ["main", "parser", "routes"]

_log = logging.getLogger("kata.monitor")
# Kata's.
ADDRESS = "127.0.0.1:8090"
ENDPOINT = "/run/containerd/containerd.sock"
# systemd's sd_listen_fds(3).
_FIRST_LISTEN_FD = 3
_INDEX = """kata-monitor
/metrics      all sandboxes, for Prometheus; ?sandbox=ID, ?filter_family=NAME,NAME
/sandboxes    their ids; ?format=json
/agent-url    ?sandbox=ID: where its agent can be reached
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="kata-monitor", description="Serves the metrics of all sandboxes of this host to Prometheus."
    )
    made.add_argument("--listen-address", metavar="ADDRESS", default=ADDRESS, help="HOST:PORT (default: %(default)s)")
    made.add_argument(
        "--runtime-endpoint",
        metavar="PATH",
        default=ENDPOINT,
        help="CRI's socket, for pods' names (default: %(default)s)",
    )
    made.add_argument("--log-level", choices=logs.LEVELS, default="info", help="(default: info)")
    made.add_argument("--log-format", choices=logs.FORMATS, default="logfmt", help="(default: logfmt)")
    made.add_argument("--run-dir", type=Path, default=Path(RUN_DIR), metavar="DIR", help="(default: %(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 0 after SIGTERM or SIGINT, 125 where it can't serve."""
    descriptors.fill()
    options = parser().parse_args(arguments)
    logs.configure(options.log_format, options.log_level, sys.stderr, source="monitor").addFilter(logs.Flood())
    try:
        if os.geteuid() != 0:
            raise HostError("only root can ask sandboxes", hint="sudo kata-monitor")
        asyncio.run(_serve(_listener(options.listen_address), options))
    except KataError as error:
        print(told(f"kata-monitor: {error}; {error.hint}"), file=sys.stderr)
        return error.exit_code
    return 0


def _listener(address: str) -> socket.socket:
    """systemd's socket, where it has given us one, else our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_FIRST_LISTEN_FD)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise HostError(f"--listen-address {address}: is not HOST:PORT", hint=f"as {ADDRESS}")
    host = host.strip("[]")
    try:
        [(family, kind, _, _, where), *_] = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        raise HostError(f"--listen-address {address}: {error.strerror or error}", hint="another one?") from error
    return listener


async def _serve(listener: socket.socket, options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(routes(options.run_dir, options.runtime_endpoint.removeprefix("unix://")))
    listening = await asyncio.start_server(server.connected, sock=listener, limit=MAX_HEAD)
    _log.info("ready", extra={"address": ":".join(map(str, listener.getsockname()[:2]))})
    await stop.wait()
    listening.close()
    await server.close()


def routes(run_dir: Path, endpoint: str) -> Routes:
    """What is served; the paths are Kata's."""
    scraper = Scraper(run_dir)

    def chosen(request: Request) -> str:
        sandbox = request.asked("sandbox")
        if not is_id(sandbox) or sandbox not in running(run_dir):
            raise Refusal(HTTPStatus.NOT_FOUND, "no such sandbox runs", "/sandboxes lists those that do")
        return sandbox

    async def index(_request: Request) -> Answer:
        return Answer("text/plain; charset=utf-8", _INDEX.encode())

    async def metrics(request: Request) -> Answer:
        sandboxes = [chosen(request)] if request.asked("sandbox") else running(run_dir)
        wanted = set(filter(None, request.asked("filter_family").split(",")))
        names = await pods(endpoint) if sandboxes else {}
        text = await scraper.scrape(sandboxes, names, wanted, openmetrics=request.openmetrics)
        return metrics_answer(text, openmetrics=request.openmetrics)

    async def sandboxes(request: Request) -> Answer:
        found = running(run_dir)
        if request.asked("format") == "json":
            return Answer(JSON, json.dumps(found).encode() + b"\n")
        return Answer("text/plain; charset=utf-8", "".join(f"{sandbox}\n" for sandbox in found).encode())

    async def agent_url(request: Request) -> Answer:
        url = await ask(run_dir, chosen(request), "/agent-url")
        return Answer("text/plain; charset=utf-8", url.encode())

    async def pprof(_request: Request) -> NoReturn:
        raise Refusal(
            HTTPStatus.NOT_IMPLEMENTED,
            "pprof is of programs in Go",
            "kata-runtime trace shows where the time of a sandbox goes",
        )

    return {
        "/": {"GET": index},
        "/metrics": {"GET": metrics},
        "/sandboxes": {"GET": sandboxes},
        "/agent-url": {"GET": agent_url},
        "/debug/pprof": {"GET": pprof},
        "/debug/pprof/": {"GET": pprof},
    }


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
