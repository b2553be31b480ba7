"""Span records to OTLP and back: the only importer of OpenTelemetry's SDK and encoder, and only inside functions.

Records become `ReadableSpan`s, the official encoder makes `ExportTraceServiceRequest`s of them. On disk a request is
one line of OTLP/JSON (the file format of https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/).
"""

import binascii
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_telemetry import __version__
from kata_telemetry.span import Span, Value

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = [
    "Encoded",
    "MalformedOtlpError",
    "count",
    "encode",
    "from_line",
    "note_of_dropped",
    "parse",
    "preload",
    "resource",
    "to_line",
    "to_request",
]

SCOPE = "kata_telemetry"
# Longer texts are cut, so that one span can't become a batch.
MAX_TEXT = 4096
# Resource attribute of a request from the agent: how many spans it had to drop.
DROPPED = "kata.dropped_spans"
INT64 = range(-(2**63), 2**63)
# OTLP/JSON writes these in hex where protobuf's JSON has base64 (OTLP specification, "JSON Protobuf Encoding").
ID_FIELDS = ("traceId", "spanId", "parentSpanId")


class MalformedOtlpError(ValueError):
    """Bytes or a line that is no ExportTraceServiceRequest."""


class Encoded(NamedTuple):
    """A serialized request, the spans in it, and how many could not be encoded."""

    data: bytes
    spans: int
    failed: int


def preload() -> None:
    """Import all that `encode` and `to_line` need: about 70 ms on a host, ten times that in an emulated guest."""
    _sdk()
    _json_format()


def resource(service: str, sandbox_id: str) -> dict[str, Value]:
    """Resource attributes of one side of one sandbox."""
    attributes: dict[str, Value] = {"service.name": service, "service.version": __version__}
    if sandbox_id:
        # service.instance.id tells apart what runs the same service (semantic conventions); the other is Kata's name.
        attributes |= {"service.instance.id": sandbox_id, "sandbox_id": sandbox_id}
    return attributes


def encode(spans: Iterable[Span], sandbox_id: str = "") -> Encoded:
    """One request with `spans` in host time. Never raises for what a span contains; an open span has no end time."""
    readable, failed = [], 0
    convert = _sdk().convert
    for span in spans:
        try:
            readable.append(convert(span, sandbox_id))
        except Exception:
            failed += 1
    try:
        data = _sdk().encode(readable).SerializeToString()
    except Exception:
        good = [span for span in readable if _encodable(span)]
        failed += len(readable) - len(good)
        readable = good
        data = _sdk().encode(readable).SerializeToString()
    return Encoded(data, len(readable), failed)


def parse(data: bytes) -> "ExportTraceServiceRequest":
    """The message in `data`; raises MalformedOtlpError."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        return ExportTraceServiceRequest.FromString(data)
    except (DecodeError, ValueError) as error:
        raise MalformedOtlpError(f"{len(data)} bytes are no ExportTraceServiceRequest: {error}") from error


def count(request: "ExportTraceServiceRequest") -> int:
    """Spans in a request."""
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)


def note_of_dropped(count: int) -> bytes:
    """A request without spans that says how many its sender had to drop."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    pair = request.resource_spans.add().resource.attributes.add()
    pair.key, pair.value.int_value = DROPPED, count
    return request.SerializeToString()


def to_line(request: "bytes | ExportTraceServiceRequest") -> str:
    """OTLP/JSON of a request, without the newline. Raises MalformedOtlpError."""
    message = parse(request) if isinstance(request, bytes) else request
    content = _json_format().MessageToDict(message, use_integers_for_enums=True)
    _convert_ids(content, _base64_to_hex)
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def to_request(line: str | bytes) -> "ExportTraceServiceRequest":
    """The message in a line of OTLP/JSON; raises MalformedOtlpError."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    json_format = _json_format()
    try:
        content = json.loads(line)
        _convert_ids(content, _hex_to_base64)
        request = ExportTraceServiceRequest()
        json_format.ParseDict(content, request, ignore_unknown_fields=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise MalformedOtlpError(f"not a line of OTLP/JSON: {error}") from error
    return request


def from_line(line: str | bytes) -> bytes:
    """Serialized request in a line of OTLP/JSON; raises MalformedOtlpError."""
    return to_request(line).SerializeToString()


def clean(text: str) -> str:
    """`text`, cut and without what UTF-8 can't carry (file names may hold lone surrogates)."""
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _attributes(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {key: _value(value) for key, value in attributes.items()}


def _value(value: Value) -> Value:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if value in INT64 else str(value)
    return clean(str(value))  # type: ignore[unreachable] # callers are not all type checked


class _Sdk(NamedTuple):
    convert: "Callable[[Span, str], ReadableSpan]"
    encode: "Callable[[Sequence[ReadableSpan]], ExportTraceServiceRequest]"


@functools.cache
def _sdk() -> _Sdk:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
    from opentelemetry.trace.status import Status, StatusCode

    class Record(ReadableSpan):
        """The SDK counts dropped events in its own list type; ours are counted by the span."""

        dropped = 0

        @property
        def dropped_events(self) -> int:
            return self.dropped

    scope = InstrumentationScope(SCOPE, __version__)
    kinds = {1: SpanKind.INTERNAL, 2: SpanKind.SERVER, 3: SpanKind.CLIENT}

    @functools.lru_cache(maxsize=64)
    def resource_of(service: str, sandbox_id: str) -> Resource:
        return Resource(resource(service, sandbox_id))

    @functools.lru_cache(maxsize=64)
    def state(text: str) -> TraceState:
        return TraceState.from_header([text]) if text else TraceState()

    def convert(span: Span, sandbox_id: str) -> ReadableSpan:
        trace_id, span_id, flags, text = span.context
        to_host = span.tracer.clock.to_host
        start = to_host(span.start)
        # A server's parent, and only its, lives in another process.
        remote = span.kind == 2
        parent = SpanContext(trace_id, span.parent_id, remote, TraceFlags(flags)) if span.parent_id else None
        record = Record(
            name=clean(span.name),
            context=SpanContext(trace_id, span_id, False, TraceFlags(flags), state(text)),
            parent=parent,
            resource=resource_of(span.tracer.service, sandbox_id),
            # Copies: the owner of a span that is still open may change it meanwhile.
            attributes=_attributes(dict(span.attributes)),
            events=[Event(clean(e.name), _attributes(e.attributes), to_host(e.time)) for e in tuple(span.events)],
            links=[Link(SpanContext(c.trace_id, c.span_id, True, TraceFlags(c.flags))) for c in tuple(span.links)],
            kind=kinds[span.kind],
            status=Status(StatusCode(int(span.status)), clean(span.message) if span.status == 2 else None),
            start_time=start,
            # A clock that was set anew in between must not turn a span around.
            end_time=max(to_host(span.end), start) if span.end else None,
            instrumentation_scope=scope,
        )
        record.dropped = span.events_dropped
        return record

    return _Sdk(convert, encode_spans)


def _encodable(span: "ReadableSpan") -> bool:
    try:
        _sdk().encode([span])
    except Exception:
        return False
    return True


@functools.cache
def _json_format() -> Any:  # noqa: ANN401 - protobuf's module
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: F401 - load its descriptors as well

    return json_format


def _convert_ids(request: dict[str, Any], convert: Callable[[str], str]) -> None:
    for resource_spans in request.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                for record in (span, *span.get("links", ())):
                    for field in ID_FIELDS:
                        if field in record:
                            record[field] = convert(record[field])


def _base64_to_hex(text: str) -> str:
    return binascii.a2b_base64(text).hex()


def _hex_to_base64(text: str) -> str:
    return binascii.b2a_base64(bytes.fromhex(text), newline=False).decode("ascii")
