"""Senders to an OTLP collector, one for each protocol."""

import gzip
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from kata_traces.send.settings import CollectorSettings

__all__ = ["Answer", "FailedError", "GrpcSender", "HttpSender", "RefusedError", "Sender", "UnavailableError"]

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# A collector's answer is a few bytes; what it says beyond this is not read.
MAX_ANSWER: Final = 64 * 1024
# However long a collector asks us to wait (s).
LONGEST_RETRY: Final = 60.0


class UnavailableError(Exception):
    """The collector did not take the batch; it may later."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FailedError(UnavailableError):
    """It did not go, and nobody says whether the batch is to blame or the way."""


class RefusedError(Exception):
    """The collector will never take this batch as it is."""


class Answer(NamedTuple):
    """What a collector said of a batch that it took: how many spans it did not want, and why (partial success)."""

    rejected: int = 0
    message: str = ""


class Sender(Protocol):
    """Sends serialized ExportTraceServiceRequests; not for use by several threads at once."""

    def send(self, data: bytes, timeout: float) -> Answer:
        """Deliver `data` within `timeout` seconds. Raises UnavailableError or RefusedError."""
        ...

    def close(self) -> None:
        """Give the connection up."""
        ...


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


def _answer(body: bytes) -> Answer:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return Answer()  # it said yes; how it said so is its own affair
    return Answer(partial.rejected_spans, partial.error_message[:1000])


class GrpcSender:
    """OTLP/gRPC."""

    def __init__(self, settings: CollectorSettings) -> None:
        import grpc

        options = [
            # Not the default's two minutes: a collector that comes back is noticed soon.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        endpoint = settings.endpoint
        if endpoint.startswith("unix:"):
            # HTTP/2 servers in other languages may refuse a path as :authority.
            channel = grpc.insecure_channel(endpoint, [*options, ("grpc.default_authority", "localhost")])
        else:
            parts = urllib.parse.urlsplit(endpoint)
            host = f"{parts.hostname}" if ":" not in str(parts.hostname) else f"[{parts.hostname}]"
            target = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 4317)}"
            if parts.scheme == "https":
                key = settings.client_key or settings.client_certificate  # one file may hold both
                files = (settings.certificate, key, settings.client_certificate)
                channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(*map(_read, files)), options)
            else:
                channel = grpc.insecure_channel(target, options)
        self._channel = channel
        # Without serializers: bytes in, bytes out.
        self._call: Any = channel.unary_unary(EXPORT)
        self._metadata = tuple(settings.headers.items())
        self._compression = grpc.Compression.Gzip if settings.compress else None
        self._errors: type[grpc.RpcError] = grpc.RpcError
        # The only codes that blame the batch; all others may pass (OTLP specification, "Failures").
        self._final = {grpc.StatusCode.INVALID_ARGUMENT}

    def send(self, data: bytes, timeout: float) -> Answer:
        """See Sender."""
        try:
            body = self._call(data, timeout=timeout, metadata=self._metadata, compression=self._compression)
        except self._errors as error:
            code, details = error.code(), error.details()  # a failed RPC is a Call as well
            message = f"{code.name}: {details}"[:1000]
            if code in self._final:
                raise RefusedError(message) from error
            raise UnavailableError(message, _retry_info(tuple(error.trailing_metadata() or ()))) from error
        return _answer(body)

    def close(self) -> None:
        """See Sender."""
        self._channel.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


class HttpSender:
    """OTLP/HTTP with protobuf."""

    def __init__(self, settings: CollectorSettings) -> None:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if settings.endpoint.startswith("https:"):
            import ssl

            context = ssl.create_default_context(cafile=settings.certificate)
            if settings.client_certificate:
                context.load_cert_chain(settings.client_certificate, settings.client_key)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)
        self._url = settings.endpoint
        self._compress = settings.compress
        self._headers = {**settings.headers, "Content-Type": "application/x-protobuf", "User-Agent": "kata-python"}

    def send(self, data: bytes, timeout: float) -> Answer:
        """See Sender."""
        headers = dict(self._headers)
        if self._compress:
            data = gzip.compress(data)
            headers["Content-Encoding"] = "gzip"
        # The scheme was checked by CollectorSettings.
        request = urllib.request.Request(self._url, data, headers, method="POST")  # noqa: S310
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return _answer(response.read(MAX_ANSWER))
        except urllib.error.HTTPError as error:
            with error:
                message = f"HTTP {error.code} {error.reason}"
                # 400 blames the batch, 413 its size; all others may pass (OTLP specification, "Failures").
                if error.code in {400, 413}:
                    raise RefusedError(message) from error
                raise UnavailableError(message, _retry_after(error.headers.get("Retry-After"))) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise UnavailableError(f"{reason}" or type(error).__name__) from error

    def close(self) -> None:
        """See Sender."""
        self._opener.close()


def _retry_after(text: str | None) -> float:
    """Seconds until the time that a Retry-After header names: a number of seconds, or a date (RFC 9110, 10.2.3)."""
    if not text:
        return 0.0
    if text.strip().isdecimal():
        return min(float(text), LONGEST_RETRY)
    from email.utils import parsedate_to_datetime

    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(until - time.time(), 0.0), LONGEST_RETRY)


def _retry_info(metadata: Iterable[Any]) -> float:
    """Seconds that google.rpc.RetryInfo asks for in a status' details (OTLP specification, "OTLP/gRPC Throttling")."""
    details = next((value for key, value in metadata if key == "grpc-status-details-bin"), b"")
    if not isinstance(details, bytes) or not details:
        return 0.0
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    try:
        for detail in Status.FromString(details).details:
            info = RetryInfo()
            if detail.Unpack(info):
                delay = info.retry_delay
                return float(min(max(delay.seconds + delay.nanos / 1e9, 0.0), LONGEST_RETRY))
    except DecodeError:
        pass
    return 0.0
