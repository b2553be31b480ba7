"""`kata-runtime trace serve`: the traces of this machine in a browser."""

import argparse
import contextlib
import signal
import sys
import threading

from kata_traces.read.lookup import trace_dir
from kata_traces.store.errors import StoreError

__all__ = ["add_arguments"]


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: write 0 (a free one) to 65535")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `serve`, and `run` as the parser's default."""
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="of 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--otlp", action="store_true", help="take OTLP as a Jaeger does: gRPC on 4317 and HTTP on 4318 of 127.0.0.1"
    )
    parser.add_argument("--otlp-grpc-port", type=_port, default=4317, metavar="N", help="with --otlp (default 4317)")
    parser.add_argument("--otlp-http-port", type=_port, default=4318, metavar="N", help="with --otlp (default 4318)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kata_traces.views.serve.index import Index
    from kata_traces.views.serve.server import Server, serving

    index = Index(trace_dir(options))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        server = Server(index, options.port)
    except OSError as error:
        raise StoreError(f"cannot serve on port {options.port} of 127.0.0.1: {error.strerror or error}") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(server))
        if options.otlp:
            from kata_traces.views.serve.receiver import receiving

            try:
                grpc, http = stack.enter_context(receiving(index, options.otlp_grpc_port, options.otlp_http_port))
            except OSError as error:
                raise StoreError(f"cannot take OTLP: {error.strerror or error}") from error
            print(f"takes OTLP: grpc http://127.0.0.1:{grpc}, http/protobuf http://127.0.0.1:{http}", file=sys.stderr)
        # Of the token, in the address, whoever sees this terminal knows; nobody else.
        print(server.url, flush=True)
        ended.wait()
    return 0
