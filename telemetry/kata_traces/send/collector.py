"""The way to an OTLP collector: settings, and a sender for each protocol.

Settings follow OpenTelemetry's environment variables (https://opentelemetry.io/docs/specs/otel/protocol/exporter/);
those for traces win over the general ones, and what the caller says wins over both.
"""

import gzip
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

__all__ = ["Answer", "CollectorSettings", "RefusedError", "Sender", "SettingsError", "UnavailableError", "connect"]

PROTOCOLS: Final = ("grpc", "http/protobuf")
EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TIMEOUT: Final = 10.0
# A collector's answer is a few bytes; what it says beyond this is not read.
MAX_ANSWER: Final = 64 * 1024
# However long a collector asks us to wait (s).
LONGEST_RETRY: Final = 60.0


class SettingsError(ValueError):
    """Settings for export that can't work; says which one and what it should be."""


class UnavailableError(Exception):
    """The collector did not take the batch; it may later."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """Where and how to send. `timeout` in seconds; `headers` may hold secrets and are not shown."""

    endpoint: str
    protocol: str
    timeout: float = TIMEOUT
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    compress: bool = False

    @classmethod
    def resolve(
        cls,
        environment: Mapping[str, str],
        *,
        endpoint: str = "",
        protocol: str = "",
        headers: str = "",
        timeout: float = 0.0,
        certificate: str = "",
        client_certificate: str = "",
        client_key: str = "",
    ) -> Self | None:
        """Settings from arguments and environment, or None where neither names an endpoint. Raises SettingsError."""

        def variable(name: str) -> str:
            for prefix in ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"):
                value = environment.get(prefix + name, "").strip()
                if value:
                    return value
            return ""

        def file(name: str, given: str) -> Path | None:
            return Path(given or variable(name)) if given or variable(name) else None

        exact = not endpoint and bool(environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip())
        from_environment = not endpoint
        endpoint = endpoint or variable("ENDPOINT")
        if not endpoint:
            return None
        protocol = protocol or variable("PROTOCOL") or _protocol_of(endpoint)
        if protocol not in PROTOCOLS:
            raise SettingsError(f"OTLP protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
        if from_environment and protocol == "grpc" and "://" not in endpoint and not endpoint.startswith("unix:"):
            # HOST:PORT is gRPC's own form, and OTEL_EXPORTER_OTLP_INSECURE is about nothing else.
            endpoint = f"{'http' if variable('INSECURE').lower() == 'true' else 'https'}://{endpoint}"
        compression = variable("COMPRESSION") or "none"
        if compression not in {"none", "gzip"}:
            raise SettingsError(f"OTLP compression {compression!r} is none of none, gzip")
        return cls(
            endpoint=_endpoint(endpoint, protocol, exact=exact),
            protocol=protocol,
            timeout=timeout or _seconds(variable("TIMEOUT")),
            headers=_headers(headers or variable("HEADERS")),
            certificate=file("CERTIFICATE", certificate),
            client_certificate=file("CLIENT_CERTIFICATE", client_certificate),
            client_key=file("CLIENT_KEY", client_key),
            compress=compression == "gzip",
        )

    @property
    def target(self) -> str:
        """Names the collector in notes and messages; without headers, user or password."""
        parts = urllib.parse.urlsplit(self.endpoint)
        if "@" in parts.netloc:
            parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        return f"{self.protocol} {parts.geturl()}"

    def environment(self) -> dict[str, str]:
        """The same settings as variables, for another process: headers on a command line could be read by anyone."""
        variables = {
            "ENDPOINT": self.endpoint,
            "PROTOCOL": self.protocol,
            "TIMEOUT": str(self.timeout),
            "HEADERS": ",".join(f"{key}={urllib.parse.quote(value)}" for key, value in self.headers.items()),
            "CERTIFICATE": str(self.certificate or ""),
            "CLIENT_CERTIFICATE": str(self.client_certificate or ""),
            "CLIENT_KEY": str(self.client_key or ""),
            "COMPRESSION": "gzip" if self.compress else "none",
        }
        return {f"OTEL_EXPORTER_OTLP_TRACES_{name}": value for name, value in variables.items()}


def connect(settings: CollectorSettings) -> Sender:
    """A sender; it dials when it has something to send. Raises SettingsError where a certificate can't be read."""
    try:
        return _GrpcSender(settings) if settings.protocol == "grpc" else _HttpSender(settings)
    except OSError as error:
        raise SettingsError(f"certificate for {settings.target}: {error}") from error


def _protocol_of(endpoint: str) -> str:
    # 4318 is OTLP/HTTP's port, 4317 OTLP/gRPC's.
    return "http/protobuf" if urllib.parse.urlsplit(endpoint).netloc.endswith(":4318") else "grpc"


def _endpoint(endpoint: str, protocol: str, *, exact: bool) -> str:
    try:
        parts = urllib.parse.urlsplit(endpoint)
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid and not (protocol == "grpc" and endpoint.startswith("unix:")):
        raise SettingsError(
            f"OTLP endpoint {endpoint!r} is no URL: write http://HOST:PORT, https://… or (grpc) unix:PATH"
        )
    if protocol == "http/protobuf" and not exact and not parts.path.rstrip("/").endswith("/v1/traces"):
        endpoint = parts._replace(path=parts.path.rstrip("/") + "/v1/traces").geturl()
    return endpoint


def _seconds(text: str) -> float:
    """OTEL_EXPORTER_OTLP_TIMEOUT: milliseconds by the specification, seconds by OpenTelemetry Python's exporters."""
    if not text:
        return TIMEOUT
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise SettingsError(f"OTLP timeout {text!r} is no number of seconds")
    return value if value < 600 else value / 1000


def _headers(text: str) -> dict[str, str]:
    """`key=value,key=value`, values percent-encoded as in W3C Baggage."""
    headers = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        key, value = key.strip().lower(), urllib.parse.unquote(value.strip())
        if not equals or not key or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in key):
            raise SettingsError("OTLP headers are no list of name=value pairs separated by commas")
        if not (value.isascii() and value.isprintable()):
            raise SettingsError(f"OTLP header {key!r} has characters that a header can't carry")
        headers[key] = value
    return headers


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


class _GrpcSender:
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
                files = (settings.certificate, settings.client_key, settings.client_certificate)
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
        self._channel.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


class _HttpSender:
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
