"""Collectors that misbehave in the ways that real ones do, over both protocols."""

import contextlib
import gzip
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kata_telemetry import otlp

GRPC_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Collected:
    """What a fake received. `script` are answers to give before behaving well: "hang", "busy", "bad", "partial",
    and "late", which is taken and answered when the test sets `released`."""

    endpoint: str = ""
    script: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    released: threading.Event = field(default_factory=threading.Event)

    def take(self, data: bytes, headers: dict[str, str]) -> str:
        with self.changed:
            answer = self.script.pop(0) if self.script else "ok"
            self.headers.append(headers)
            if answer in {"ok", "partial", "late"}:
                self.requests.append(data)
            self.changed.notify_all()
        if answer in {"hang", "late"}:
            self.released.wait(60)
        return answer

    def wait(self, condition: Callable[["Collected"], bool], timeout: float = 20) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: condition(self), timeout)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self._spans()]

    @property
    def span_ids(self) -> "Counter[str]":
        """How often each span arrived; ids in hex."""
        return Counter(span.span_id.hex() for span in self._spans())

    def _spans(self) -> Iterator[Any]:
        for data in self.requests:
            for resource in otlp.parse(data).resource_spans:
                for scope in resource.scope_spans:
                    yield from scope.spans


def _response(answer: str) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    response = ExportTraceServiceResponse()
    if answer == "partial":
        response.partial_success.rejected_spans = 1
        response.partial_success.error_message = "one too many"
    return response.SerializeToString()


@contextlib.contextmanager
def http_collector(*script: str, port: int = 0, tls: Path | None = None) -> Iterator[Collected]:
    """OTLP/HTTP; `tls` is a directory with ca.pem, server.pem and server.key, and then clients show a certificate."""
    collected = Collected(script=list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {key.lower(): value for key, value in self.headers.items()}
            if headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            answer = collected.take(data, {**headers, ":path": self.path})
            if self.path != "/v1/traces":
                answer = "lost"
            status = {"busy": 503, "bad": 400, "ok": 200, "partial": 200, "hang": 200, "late": 200, "lost": 404}[answer]
            body = _response(answer)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that are turned away
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    collected.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collected
    finally:
        collected.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _come_back_in(seconds: int, nanos: int) -> bytes:
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    info, status = RetryInfo(), Status(code=8)
    info.retry_delay.seconds, info.retry_delay.nanos = seconds, nanos
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())


@contextlib.contextmanager
def grpc_collector(*script: str, port: int = 0, tls: Path | None = None) -> Iterator[Collected]:
    """OTLP/gRPC; `tls` as above."""
    import grpc

    collected = Collected(script=list(script))

    def export(data: bytes, context: Any) -> bytes:
        answer = collected.take(data, dict(context.invocation_metadata()))
        if answer == "busy":
            context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")
        if answer == "later":
            context.set_trailing_metadata((("grpc-status-details-bin", _come_back_in(7, 500_000_000)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "come back later")
        if answer == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not like this")
        return _response(answer)

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    if tls:
        ca, certificate, key = ((tls / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key"))
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    else:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    collected.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    server.start()
    try:
        yield collected
    finally:
        collected.released.set()
        server.stop(None).wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
