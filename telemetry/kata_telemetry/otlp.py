"""Span records to OTLP and back: the only importer of OpenTelemetry's messages, and only inside functions.

Records become `ExportTraceServiceRequest`s, the very bytes that OpenTelemetry's SDK and its encoder make of the same
spans (tests compare the two); the SDK itself is not imported, docs/decisions/0001 says why. On disk a request is one
line of OTLP/JSON (the file format of https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/).
"""

import binascii
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_common.documents import parse_json
from kata_telemetry import __version__
from kata_telemetry.span import Span
from kata_telemetry.values import Value

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

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
# Texts of at most this length are encoded once for many spans: names, ids.
_SHORT = 64
INT64 = range(-(2**63), 2**63)
# OTLP/JSON writes these in hex where protobuf's JSON has base64 (OTLP specification, "JSON Protobuf Encoding").
_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
ID_FIELDS = ("traceId", "spanId", "parentSpanId")


class MalformedOtlpError(ValueError):
    """Bytes or a line that is no ExportTraceServiceRequest."""


class Encoded(NamedTuple):
    """A serialized request, the spans in it, and how many could not be encoded."""

    data: bytes
    spans: int
    failed: int


def preload() -> None:
    """Import all that `encode` and `to_line` need: about 15 ms on a host."""
    _messages()
    _json_format()


def resource(service: str, sandbox_id: str) -> dict[str, Value]:
    """Resource attributes of one side of one sandbox."""
    attributes: dict[str, Value] = {"service.name": service, "service.version": __version__}
    # By it Jaeger knows that both services share a clock, and does not warn of its skew where a span outlives its
    # parent (jaegertracing/jaeger, adjuster/clockskew.go: hostKey).
    attributes["ip"] = "127.0.0.1"
    if sandbox_id:
        # service.instance.id tells apart what runs the same service (semantic conventions); the other is Kata's name.
        attributes |= {"service.instance.id": sandbox_id, "sandbox_id": sandbox_id}
    return attributes


def encode(spans: Iterable[Span], sandbox_id: str = "") -> Encoded:
    """One request with `spans` in host time. Never raises for what a span contains; an open span has no end time."""
    messages = _messages()
    request = messages.request()
    scopes: dict[str, Any] = {}
    encoded = failed = 0
    for span in spans:
        service = span.tracer.service
        scope = scopes.get(service)
        if scope is None:
            resource_spans = request.resource_spans.add()
            resource_spans.resource.attributes.extend(_attributes(resource(service, sandbox_id)))
            scope = scopes[service] = resource_spans.scope_spans.add()
            scope.scope.name, scope.scope.version = SCOPE, __version__
        number = len(scope.spans)
        try:
            _add(span, scope.spans)
            encoded += 1
        except Exception:
            del scope.spans[number:]
            failed += 1
    return Encoded(request.SerializeToString(), encoded, failed)


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
        content = parse_json(line)
        if _SURROGATE.search(line if isinstance(line, str) else line.decode("utf-8", "replace")):
            # Where one is in a name, protobuf 7.35 raises SystemError.
            json.dumps(content, ensure_ascii=False).encode()
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


class _Messages(NamedTuple):
    """OpenTelemetry's message classes."""

    request: "type[ExportTraceServiceRequest]"
    span: "type[OtlpSpan]"
    pair: "type[KeyValue]"


@functools.cache
def _messages() -> _Messages:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

    return _Messages(ExportTraceServiceRequest, OtlpSpan, KeyValue)


# SpanFlags of trace.proto: whether the parent's being remote is known, and whether it is.
_KNOWS_REMOTE, _IS_REMOTE = 0x100, 0x200


def _add(span: Span, spans: Any) -> None:  # noqa: ANN401 - protobuf's container
    """Add the message of a record; raises whatever its content brings about, perhaps with a part of it there."""
    trace_id, span_id, _, state = span.context
    to_host = span.tracer.clock.to_host
    start = to_host(span.start)
    # A server's parent, and only its, lives in another process.
    remote = _IS_REMOTE if span.kind == 2 and span.parent_id else 0
    message = spans.add(
        trace_id=trace_id.to_bytes(16, "big"),
        span_id=span_id.to_bytes(8, "big"),
        parent_span_id=span.parent_id.to_bytes(8, "big") if span.parent_id else b"",
        trace_state=state,
        name=clean(span.name),
        kind=int(span.kind),
        start_time_unix_nano=start,
        # A clock that was set anew in between must not turn a span around.
        end_time_unix_nano=max(to_host(span.end), start) if span.end else 0,
        dropped_events_count=span.events_dropped,
        flags=_KNOWS_REMOTE | remote,
    )
    _add_attributes(message, span.attributes)
    for event in tuple(span.events):
        message.events.add(
            name=clean(event.name), time_unix_nano=to_host(event.time), attributes=_attributes(event.attributes)
        )
    for context in tuple(span.links):
        message.links.add(
            trace_id=context.trace_id.to_bytes(16, "big"),
            span_id=context.span_id.to_bytes(8, "big"),
            flags=_KNOWS_REMOTE | _IS_REMOTE,
        )
    message.status.code = int(span.status)
    if span.status == 2:
        message.status.message = clean(span.message)


def _add_attributes(message: "OtlpSpan", attributes: Mapping[str, Value]) -> None:
    """Add them by their bytes, most of which are known from other spans: with objects this was two thirds of encoding.

    Serialized fields one after the other are read as one message (protobuf's encoding guide, "Last One Wins").
    """
    parts = []
    for key, value in attributes.items():
        known = isinstance(value, str) and len(value) <= _SHORT
        parts.append((_short_text if known else _serialized)(key, value))
    message.MergeFromString(b"".join(parts))


def _serialized(key: str, value: Value) -> bytes:
    """The field `attributes` of a span with this one."""
    return _messages().span(attributes=_attributes({key: value})).SerializeToString()


_short_text = functools.lru_cache(512)(_serialized)


def _attributes(attributes: Mapping[str, Value]) -> "list[KeyValue]":
    pair = _messages().pair
    fields: dict[str, Any] = {clean(key): _value(value) for key, value in attributes.items()}
    return [pair(key=key, value=value) for key, value in fields.items()]


def _value(value: Value) -> dict[str, Value]:
    """The one field of an AnyValue."""
    if isinstance(value, str):
        return {"string_value": clean(value)}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int):
        # A range looks for an enumeration's member one by one.
        number = int(value)
        return {"int_value": number} if number in INT64 else {"string_value": str(number)}
    if isinstance(value, float):
        return {"double_value": value}
    return {"string_value": clean(str(value))}  # type: ignore[unreachable] # callers are not all type checked


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
