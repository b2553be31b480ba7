"""OpenTelemetry's API over our records: what an instrumented library records lies in the sandbox's trace.

Entry points `kata` of opentelemetry_tracer_provider (here) and of opentelemetry_context (kata_traces.sdk.context). Only
OpenTelemetry's API loads them, in a process where somebody imports it, after `environment.announce`.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.util._decorator import _agnosticcontextmanager

from kata_telemetry import span as own
from kata_telemetry.span import Event, Kind, Level, Span, SpanContext, Status
from kata_telemetry.values import Value
from kata_traces.sdk.told import SCOPE_NAME, SCOPE_VERSION, our_context, told_context

__all__ = ["ApiSpan", "KataProvider"]

# The API's kinds that OTLP numbers further on (trace.proto): PRODUCER and CONSUMER are CLIENT and SERVER of messages.
_KINDS = {
    trace.SpanKind.INTERNAL: Kind.INTERNAL,
    trace.SpanKind.SERVER: Kind.SERVER,
    trace.SpanKind.CLIENT: Kind.CLIENT,
    trace.SpanKind.PRODUCER: Kind.CLIENT,
    trace.SpanKind.CONSUMER: Kind.SERVER,
}


class ApiSpan(trace.Span):
    """A record as the API knows spans."""

    def __init__(self, record: Span) -> None:
        self.record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiSpan) and other.record is self.record

    def __hash__(self) -> int:
        return hash(self.record)

    def get_span_context(self) -> trace.SpanContext:
        trace_id, span_id, _, flags, state, _ = told_context(self.record.context)
        return trace.SpanContext(trace_id, span_id, False, flags, state)

    def is_recording(self) -> bool:
        return self.record.recording and not self.record.end

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        if self.is_recording():
            self.record._own.update(_there(attributes))

    def set_attribute(self, key: str, value: Any) -> None:
        self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        if self.is_recording():
            at = _local(self.record, timestamp) or self.record.tracer.now()
            self.record._add_event(Event(name, at, _there(attributes)))

    def add_link(self, context: trace.SpanContext, attributes: Any = None) -> None:
        if self.is_recording() and context.is_valid:
            self.record.link(our_context(context))

    def update_name(self, name: str) -> None:
        if self.is_recording():
            self.record.name = name

    def set_status(self, status: trace.Status | trace.StatusCode, description: str | None = None) -> None:
        code: Any = status
        if isinstance(status, trace.Status):
            code, description = status.status_code, status.description
        # OK is the last word, UNSET is none (the specification's "Set Status").
        if self.is_recording() and self.record.status is not Status.OK and code is not trace.StatusCode.UNSET:
            self.record.status, self.record.message = Status(code.value), description or ""

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        kind = type(exception)
        details = {
            "exception.type": f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
        }
        self.add_event("exception", {**details, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        self.record.finish(at=_local(self.record, end_time))


def _there(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (attributes or {}).items() if value is not None}


def _local(record: Span, host: int | None) -> int:
    """A time of the host (ns) as a reading of the record's clock; 0 where there is none."""
    return max(host - record.tracer.clock.to_host(0), 1) if host else 0


class KataTracer(trace.Tracer):
    """Makes records under the current span; where there is none, the sandbox's trace is not on, or not so far."""

    def __init__(self, name: str, version: str | None) -> None:
        self._site: dict[str, Value] = {SCOPE_NAME: name, "package": name, "subsystem": "library"}
        if version:
            self._site[SCOPE_VERSION] = version

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        above = trace.get_current_span(context)
        theirs = above.get_span_context()
        parent: Span | SpanContext | None
        if isinstance(above, ApiSpan):
            tracer, parent = above.record.tracer, above.record
            if above.record.leaf:
                links, parent = [*(links or ()), trace.Link(theirs)], above.record.parent
        else:
            now = own.current()
            if not now.recording:
                return trace.NonRecordingSpan(theirs)
            tracer, parent = now.tracer, our_context(theirs) if theirs.is_valid else now
        if tracer.level < Level.NORMAL:
            return trace.NonRecordingSpan(theirs)
        record = tracer.child(name, parent, 0, _KINDS[kind], self._site, _there(attributes))
        record.start = _local(record, start_time) or record.start
        for link in links or ():
            record.link(our_context(link.context))
        return ApiSpan(record)

    @_agnosticcontextmanager
    def start_as_current_span(  # noqa: PLR0913, PLR0917 - the API's
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[trace.Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(
            span,
            end_on_exit=end_on_exit,
            record_exception=record_exception,
            set_status_on_exception=set_status_on_exception,
        ) as span:
            yield span


class KataProvider(trace.TracerProvider):
    """Gives tracers whose spans go where ours go."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        return KataTracer(instrumenting_module_name, instrumenting_library_version)
