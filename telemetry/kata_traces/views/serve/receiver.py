"""Takes OTLP where a Jaeger stood: gRPC on 4317 and HTTP on 4318 of 127.0.0.1; what comes is kept in memory."""

import contextlib
import gzip
import io
import json
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from kata_common.documents import parse_json
from kata_common.text import is_number
from kata_telemetry import otlp
from kata_traces.store.errors import StoreError
from kata_traces.views.serve.index import Index

__all__ = ["receiving"]

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MAX_BATCH: Final = 16 * 1024 * 1024


def _take(index: Index, line: str) -> None:
    """A request as a line of OTLP/JSON: each trace of it to its own. Raises StoreError."""
    content = parse_json(line)
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for resource in content.get("resourceSpans", []):
        for scope in resource.get("scopeSpans", []):
            for span in scope.get("spans", []):
                part = {"resource": resource.get("resource", {}), "scopeSpans": [{"spans": [span]}]}
                by_trace.setdefault(str(span.get("traceId", "")), []).append(part)
    for trace_id, parts in by_trace.items():
        index.add(f"otlp-{trace_id[:32]}", [json.dumps({"resourceSpans": parts})])


@contextlib.contextmanager
def receiving(index: Index, grpc_port: int, http_port: int) -> Iterator[tuple[int, int]]:
    """Receive for the block; the two ports (0 asks for free ones). Raises OSError where one is taken."""
    with _http(index, http_port) as http, _grpc(index, grpc_port) as grpc:
        yield grpc, http


@contextlib.contextmanager
def _http(index: Index, port: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/v1/traces" or not is_number(length) or int(length) > MAX_BATCH:
                self._answer(HTTPStatus.BAD_REQUEST)
                return
            kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
            try:
                data = self.rfile.read(int(length))
                if self.headers.get("Content-Encoding", "") == "gzip":
                    data = _unpacked(data)
                _take(index, data.decode() if kind == "application/json" else otlp.to_line(data))
            except (ValueError, zlib.error, OSError, EOFError, otlp.MalformedOtlpError, AttributeError, TypeError):
                self._answer(HTTPStatus.BAD_REQUEST)
            except StoreError:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                self._answer(HTTPStatus.OK, kind)

        def _answer(self, status: HTTPStatus, kind: str = "application/x-protobuf") -> None:
            body = b"{}" if kind == "application/json" else b""
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _unpacked(data: bytes) -> bytes:
    """What gzip packed, but no more of it than a batch may be."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(MAX_BATCH + 1)
    if len(content) > MAX_BATCH:
        raise ValueError("too large")
    return content


@contextlib.contextmanager
def _grpc(index: Index, port: int) -> Iterator[int]:
    # Its own words on a port that is taken would stand before ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    def export(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            _take(index, otlp.to_line(request))
        except (ValueError, otlp.MalformedOtlpError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no ExportTraceServiceRequest")
        except StoreError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return b""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
            return grpc.unary_unary_rpc_method_handler(export) if details.method == EXPORT else None

    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_BATCH)]
    server = grpc.server(ThreadPoolExecutor(max_workers=4), handlers=[Handlers()], options=options)
    try:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError as error:
        raise OSError(f"port {port} of 127.0.0.1 is taken") from error
    server.start()
    try:
        yield bound
    finally:
        server.stop(grace=0).wait()
