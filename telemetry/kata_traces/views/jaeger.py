"""A trace as Jaeger's own JSON, as its UI uploads and its query API returns it.

The structure is that of `internal/uimodel/model.go` in github.com/jaegertracing/jaeger: times in µs since the epoch,
typed tags, and integers that JavaScript can't hold as texts (`converter/v1/json/from_domain.go`). Which tag says what
is OpenTelemetry's: https://opentelemetry.io/docs/specs/otel/compatibility/jaeger/.
"""

from collections.abc import Set
from typing import Any, Final

from kata_traces.read.trace import Trace, TraceEvent, TraceSpan
from kata_traces.views.values import portable

__all__ = ["to_jaeger"]

# OTLP's span kinds and Jaeger's names of them; internal is said by silence.
KINDS: Final = {2: "server", 3: "client", 4: "producer", 5: "consumer"}


def to_jaeger(trace: Trace) -> dict[str, Any]:
    """The content of a file for Jaeger's "JSON File" upload; an answer of `/api/traces/ID` has the same form."""
    processes = {service: f"p{number + 1}" for number, service in enumerate(trace.services)}
    sandbox = trace.meta.sandbox_id
    begins = {(span.parent_id, _micros(span.start)) for span in trace.spans}
    content = {
        "traceID": trace.trace_id,
        "spans": [_span(span, processes[span.service], begins) for span in trace.walk()],
        "processes": {
            process: {
                "serviceName": service,
                "tags": [_tag("service.instance.id", sandbox), _tag("sandbox_id", sandbox)] if sandbox else [],
            }
            for service, process in processes.items()
        },
        "warnings": None,
    }
    return {"data": [content], "total": 0, "limit": 0, "offset": 0, "errors": None}


def _micros(nanoseconds: int) -> int:
    return max(nanoseconds // 1000, 0)


def _span(span: TraceSpan, process: str, begins: Set[tuple[str, int]]) -> dict[str, Any]:
    tags = [_tag(key, value) for key, value in span.attributes.items()]
    if span.kind in KINDS:
        tags.append(_tag("span.kind", KINDS[span.kind]))
    if span.failed:
        tags += [_tag("error", True), _tag("otel.status_code", "ERROR")]
        if span.message:
            tags.append(_tag("otel.status_description", span.message))
    warnings = []
    if span.open:
        warnings.append("this span has not ended; its duration is how long it has lasted")
    if span.duration < 0:
        warnings.append(f"this span ends {-span.duration} ns before it starts")
    if span.dropped_events:
        warnings.append(f"{span.dropped_events} events of this span were dropped")
    # The parent that the span names, also where it is not in this trace: Jaeger says so itself.
    parent = {"refType": "CHILD_OF", "traceID": span.trace_id, "spanID": span.parent_id}
    # From the same rounding as the start, so that a child stays within its parent.
    start, end = _micros(span.start), _micros(span.end)
    if (span.parent_id, end) in begins:
        # Jaeger's critical path walks from a span to one that ended before it began, and passes over one that ended in
        # the same microsecond, as a stage of a boot does: its parent would be said to have been waited for.
        end -= 1
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "operationName": span.name,
        "references": [parent] if span.parent_id else [],
        "startTime": start,
        "duration": max(end - start, 0),
        "tags": tags,
        "logs": [_log(event) for event in span.events],
        "processID": process,
        "warnings": warnings or None,
        "flags": 1,
    }


def _log(event: TraceEvent) -> dict[str, Any]:
    fields = [_tag("event", event.name)]
    # The name is the event's; an attribute of that name gives way.
    fields += [_tag(key, value) for key, value in event.attributes.items() if key != "event"]
    return {"timestamp": _micros(event.time), "fields": fields}


def _tag(key: str, value: object) -> dict[str, Any]:
    shown = portable(value)
    if isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int):
        kind = "int64"  # also where it is written as a text
    else:
        kind = "float64" if isinstance(shown, float) else "string"
    return {"key": key, "type": kind, "value": shown}
