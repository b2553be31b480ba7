"""Spans that happened elsewhere or earlier, as OpenTelemetry's SDK knows spans."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from kata_telemetry import __version__, otlp
from kata_telemetry.span import INHERITED
from kata_telemetry.span import Span as Record
from kata_telemetry.span import SpanContext as OurContext
from kata_telemetry.w3c import KNOWN_FLAGS

__all__ = [
    "SCOPE_NAME",
    "SCOPE_VERSION",
    "ToldSpan",
    "of_message",
    "of_record",
    "our_context",
    "pairs",
    "readable",
    "told_context",
]

SCOPE = InstrumentationScope(otlp.SCOPE, __version__)
# Attributes of a record that say who made it, and are no attributes of its span.
SCOPE_NAME, SCOPE_VERSION = "otel.scope.name", "otel.scope.version"
# SpanFlags of trace.proto: the parent lives in another process.
_REMOTE = 0x200
# Cut last where OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT cuts: the SDK keeps what was set last, and by these a span is found.
_IDENTITY = {*INHERITED, "package", "subsystem"}


class ToldSpan(Span):
    """The SDK makes spans only by its tracers, which draw ids and read the clock; these have both."""

    def __init__(self, *parts: Any, state: StatusCode, message: str | None, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._status = Status(state, message)

    def dropped_before(self, attributes: int, events: int) -> None:
        """What was left out before is still left out."""
        self._bounded(self._attributes).dropped += attributes
        self._bounded(self._events).dropped += events

    def complete(self, told: "ToldSpan", kept: Mapping[str, Any], start: int) -> None:
        """Be what `told` is, which was made later of the same span; `kept` are attributes that processors set."""
        self._name, self._status, self._links, self._kind = told._name, told._status, told._links, told._kind
        self._attributes, self._events = told._attributes, told._events
        self._bounded(self._attributes)._set_items(kept)
        self._parent, self._context, self._start_time = told._parent, told._context, start

    @staticmethod
    def _bounded(part: object) -> Any:
        """A BoundedAttributes or BoundedList, which the SDK's annotations hide."""
        return part


def of_record(record: Record, resource: Resource, **parts: Any) -> ToldSpan:
    """A span of this process. Raises whatever its content brings about."""
    to_host = record.tracer.clock.to_host
    trace_id, span_id, flags, state = record.context
    trace_id.to_bytes(16, "big")  # an id that is none is found here, not in the middle of a batch
    span_id.to_bytes(8, "big")
    parent = record.parent_id
    attributes = record.attributes
    scope, version = str(attributes.pop(SCOPE_NAME, "")), str(attributes.pop(SCOPE_VERSION, ""))
    attributes = {key: attributes[key] for key in sorted(attributes, key=_IDENTITY.__contains__)}
    told = ToldSpan(
        otlp.clean(record.name),
        SpanContext(trace_id, span_id, False, TraceFlags(flags), _state(state)),
        SpanContext(trace_id, parent, record.kind == 2, TraceFlags(flags)) if parent else None,
        resource=resource,
        attributes=_fit_all(attributes),
        events=[Event(otlp.clean(e.name), _fit_all(e.attributes), to_host(e.time)) for e in tuple(record.events)],
        links=[
            Link(SpanContext(link.trace_id, link.span_id, True, TraceFlags(link.flags))) for link in tuple(record.links)
        ],
        kind=SpanKind(record.kind - 1),
        instrumentation_scope=InstrumentationScope(scope, version or None) if scope else SCOPE,
        state=StatusCode(record.status),
        message=otlp.clean(record.message) or None if record.status == 2 else None,
        **parts,
    )
    told.dropped_before(0, record.events_dropped)
    return told


def of_message(message: Any, resource: Resource, scope: InstrumentationScope, **parts: Any) -> ToldSpan:
    """A span of a request (trace.proto's Span)."""
    trace_id = int.from_bytes(message.trace_id, "big")
    flags = TraceFlags(message.flags & 0xFF | TraceFlags.SAMPLED)
    state = _state(message.trace_state)
    parent = None
    if message.parent_span_id:
        parent = _context(trace_id, message.parent_span_id, bool(message.flags & _REMOTE), flags, state)
    told = ToldSpan(
        message.name,
        _context(trace_id, message.span_id, False, flags, state),
        parent,
        resource=resource,
        attributes=pairs(message.attributes),
        events=[Event(e.name, pairs(e.attributes), e.time_unix_nano) for e in message.events],
        links=[
            Link(
                _context(int.from_bytes(k.trace_id, "big"), k.span_id, bool(k.flags & _REMOTE), flags, None),
                pairs(k.attributes),
            )
            for k in message.links
        ],
        kind=SpanKind(max(message.kind - 1, 0)),
        instrumentation_scope=scope,
        state=StatusCode(message.status.code),
        message=message.status.message or None if message.status.code == 2 else None,
        **parts,
    )
    told.dropped_before(message.dropped_attributes_count, message.dropped_events_count)
    return told


def readable(request: Any) -> Sequence[ReadableSpan]:
    """The spans of a stored request as exporters take them: processors and limits have had their turn."""
    spans: list[ReadableSpan] = []
    for part in request.resource_spans:
        resource = Resource(pairs(part.resource.attributes))
        for scoped in part.scope_spans:
            scope = InstrumentationScope(scoped.scope.name, scoped.scope.version or None)
            for message in scoped.spans:
                span = of_message(message, resource, scope)
                span._start_time = message.start_time_unix_nano
                span._end_time = message.end_time_unix_nano or None
                spans.append(span._readable_span())
    return spans


def _state(text: str) -> TraceState | None:
    if not text:
        return None
    state = TraceState()
    # Valid as kata_telemetry.w3c has it; the SDK's own reader knows the keys of an older level alone.
    state._dict = dict(member.partition("=")[::2] for member in text.split(","))
    return state


def _context(trace_id: int, span_id: bytes, remote: bool, flags: TraceFlags, state: TraceState | None) -> SpanContext:
    return SpanContext(trace_id, int.from_bytes(span_id, "big"), remote, flags, state)


def told_context(context: OurContext) -> SpanContext:
    """Our ids as those of a span in another process."""
    return SpanContext(context.trace_id, context.span_id, True, TraceFlags(context.flags), _state(context.state))


def our_context(context: SpanContext) -> OurContext:
    """The API's ids as ours."""
    state = context.trace_state.to_header() if context.trace_state else ""
    return OurContext(context.trace_id, context.span_id, int(context.trace_flags) & KNOWN_FLAGS, state)


def pairs(attributes: Iterable[Any]) -> dict[str, Any]:
    """What KeyValues say."""
    return {pair.key: _plain(pair.value) for pair in attributes if pair.value.WhichOneof("value")}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return pairs(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _fit_all(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {otlp.clean(key): _fit(value) for key, value in attributes.items()}


def _fit(value: Any) -> Any:
    if isinstance(value, str):
        return otlp.clean(value)
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        number = int(value)  # a range looks for an enumeration's member one by one
        return number if number in otlp.INT64 else str(number)
    if isinstance(value, list | tuple):
        return [_fit(item) for item in value]
    return otlp.clean(str(value))
