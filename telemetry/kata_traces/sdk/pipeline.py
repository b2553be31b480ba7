"""What is recorded, by way of OpenTelemetry's SDK, to what is stored.

Records of the runtime and requests of the guest (behind the quarantine) become SDK spans: with what resource detectors
and OTEL_RESOURCE_ATTRIBUTES say, within the SDK's limits (OTEL_SPAN_*_LIMIT), seen by span processors. The official
encoder makes the request of them. For one thread.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from kata_common.contract import AGENT_SERVICE
from kata_telemetry import otlp
from kata_telemetry.span import Span as Record
from kata_traces.sdk.told import ToldSpan, of_message, of_record, pairs

__all__ = ["PROCESSORS", "Pipeline"]

_log = logging.getLogger("kata.tracing")

# Names, separated by commas, of the processors that see each span, in their order: OpenTelemetry has no such variable.
PROCESSORS: Final = "KATA_SPAN_PROCESSORS"
# Resources that are made once for many spans: a forwarder sees sandboxes come and go.
MAX_RESOURCES: Final = 256
GROUP: Final = "opentelemetry_span_processor"


class _Row(SpanProcessor):
    """Processors one after the other. One that raises is told of once, and takes no span from anybody."""

    def __init__(self, processors: Iterable[SpanProcessor]) -> None:
        self.processors = tuple(processors)
        self.ended: list[ReadableSpan] = []
        self._told: set[str] = set()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for processor in self.processors:
            with self._watched(processor):
                processor.on_start(span, parent_context)

    def _on_ending(self, span: Span) -> None:
        for processor in self.processors:
            with self._watched(processor):
                processor._on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self.processors:
            with self._watched(processor):
                processor.on_end(span)
        self.ended.append(span)

    @contextlib.contextmanager
    def _watched(self, processor: SpanProcessor) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            name = type(processor).__name__
            if name not in self._told:
                self._told.add(name)
                _log.warning("span processor %s: %s: %s", name, type(error).__name__, error)


class Pipeline:
    """`processors` see each span, in their order; by default those that KATA_SPAN_PROCESSORS names."""

    def __init__(self, processors: Iterable[SpanProcessor] | None = None) -> None:
        # It warns of each attribute that a limit drops; they are counted on their span.
        logging.getLogger("opentelemetry.attributes").setLevel(logging.ERROR)
        self._limits = SpanLimits()
        self._found = _detected()
        self._resources: dict[object, Resource] = {}
        self._row = _Row(_named() if processors is None else processors)
        # Spans that were told while they were open, and the attributes that processors gave them.
        self._open: dict[int, tuple[ToldSpan, dict[str, Any]]] = {}

    def tell(
        self, records: Iterable[Record], sandbox_id: str = "", *, ended: bool = True
    ) -> tuple[list[ReadableSpan], int]:
        """Records as the SDK has them, and how many could not be told. Open ones (not `ended`) have started only."""
        told: list[ReadableSpan] = []
        failed = 0
        for record in records:
            try:
                told += self._tell(record, sandbox_id, ended)
            except Exception as error:
                failed += 1
                _log.info("a span is left out: %s: %s", type(error).__name__, error)
        return told, failed

    def tell_request(self, request: Any) -> list[ReadableSpan]:
        """The ended spans of a request (ExportTraceServiceRequest) as the SDK has them."""
        self._row.ended = []
        for part in request.resource_spans:
            resource = self._resource(part.resource.SerializeToString(), pairs(part.resource.attributes))
            for scoped in part.scope_spans:
                scope = InstrumentationScope(scoped.scope.name, scoped.scope.version or None)
                for message in scoped.spans:
                    span = of_message(message, resource, scope, span_processor=self._row, limits=self._limits)
                    span.start(message.start_time_unix_nano)
                    span.end(message.end_time_unix_nano)
        return self._row.ended

    def encode(self, told: Sequence[ReadableSpan]) -> Any:
        """One request (ExportTraceServiceRequest) of them. What a processor made unfit is left out."""
        try:
            return encode_spans(told)
        except Exception:
            return encode_spans([span for span in told if _encodable(span)])

    def close(self) -> None:
        """Processors may have something to finish."""
        for processor in self._row.processors:
            with self._row._watched(processor):
                processor.shutdown()

    def _tell(self, record: Record, sandbox_id: str, ended: bool) -> Sequence[ReadableSpan]:
        service = record.tracer.service
        key = (service, sandbox_id)
        resource = self._resources.get(key) or self._resource(key, otlp.resource(service, sandbox_id), ours=True)
        told = of_record(record, resource, span_processor=self._row, limits=self._limits)
        start = record.tracer.clock.to_host(record.start)
        known = self._open.pop(record.context.span_id, None)
        if known is None:
            told.start(start)
        else:
            known[0].complete(told, known[1], start)
            told = known[0]
        if not ended:
            self._open[record.context.span_id] = told, _added(told, record)
            return [told]
        self._row.ended = []
        told.end(max(record.tracer.clock.to_host(record.end), start))
        return self._row.ended

    def _resource(self, key: object, own: dict[str, Any], *, ours: bool = False) -> Resource:
        resource = self._resources.get(key)
        if resource is None:
            found = dict(self._found)
            service = found.pop("service.name", "")
            # OTEL_SERVICE_NAME names the runtime, not its guests. All else that is ours wins: by it sandboxes, and the
            # two sides of one, are told apart.
            if ours and service and service != AGENT_SERVICE:
                own = {**own, "service.name": service}
            resource = Resource({**own, **{name: value for name, value in found.items() if name not in own}})
            if len(self._resources) >= MAX_RESOURCES:
                self._resources.clear()
            self._resources[key] = resource
        return resource


def _encodable(span: ReadableSpan) -> bool:
    try:
        encode_spans([span])
    except Exception:
        return False
    return True


def _added(told: ToldSpan, record: Record) -> dict[str, Any]:
    own = record.attributes
    return {key: value for key, value in (told.attributes or {}).items() if key not in own}


def _detected() -> dict[str, Any]:
    """What resource detectors and the environment say; a service's name only where somebody gave one."""
    found = dict(Resource.create().attributes)
    if str(found.get("service.name", "")).startswith("unknown_service"):
        del found["service.name"]
    return found


def _named() -> list[SpanProcessor]:
    from importlib.metadata import entry_points

    found: list[SpanProcessor] = []
    for name in filter(None, (part.strip() for part in os.environ.get(PROCESSORS, "").split(","))):
        point = next(iter(entry_points(group=GROUP, name=name)), None)
        try:
            if point is None:
                raise LookupError(f"no installed package has an entry point of that name in {GROUP}")
            found.append(point.load()())
        except Exception as error:
            _log.warning("%s: %r: %s: %s", PROCESSORS, name, type(error).__name__, error)
    return found
