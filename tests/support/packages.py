"""Packages of somebody else, with entry points for OpenTelemetry: as pip leaves them, made by a test."""

from pathlib import Path

__all__ = ["install"]

MODULE = '''
"""An exporter that appends spans to the file SPANS_TO, and fails where SPANS_POISON is one's name, or SPANS_AWAY is."""

import os
import time

from opentelemetry import trace
from opentelemetry.propagators import textmap
from opentelemetry.sdk.resources import Resource, ResourceDetector
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON


class Exporter(SpanExporter):
    def export(self, spans):
        if os.environ.get("SPANS_POISON") in {span.name for span in spans} or os.path.exists(os.environ["SPANS_AWAY"]):
            return SpanExportResult.FAILURE
        lines = "".join(
            f"{span.context.span_id:016x} {span.name} {span.resource.attributes.get('deployment.environment', '-')} "
            f"{len(span.attributes)}\\n"
            for span in spans
        )
        fd = os.open(os.environ["SPANS_TO"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, lines.encode())
        os.close(fd)
        return SpanExportResult.SUCCESS


class Hanging(SpanExporter):
    def export(self, spans):
        time.sleep(3600)


class Broken(SpanExporter):
    def __init__(self):
        raise RuntimeError("not today")


class Processor(SpanProcessor):
    def on_start(self, span, parent_context=None):
        span.set_attribute("marked", True)


class Detector(ResourceDetector):
    def detect(self):
        return Resource({"rack": "r1"})


def sampler(argument):
    if argument == "broken":
        raise RuntimeError("no such share")
    return ALWAYS_ON if argument == "yes" else ALWAYS_OFF


class Propagator(textmap.TextMapPropagator):
    def extract(self, carrier, context=None, getter=textmap.default_getter):
        found = getter.get(carrier, "x-Trace")
        if not found:
            return context
        trace_id, span_id = (int(part, 16) for part in found[0].split(":"))
        span = trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, True, trace.TraceFlags(1)))
        return trace.set_span_in_context(span, context)

    def inject(self, carrier, context=None, setter=textmap.default_setter):
        span = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "X-Trace", f"{span.trace_id:x}:{span.span_id:x}")

    @property
    def fields(self):
        return {"x-trace"}
'''
ENTRY_POINTS = """
[opentelemetry_traces_exporter]
filed = somebody_elses:Exporter
hanging = somebody_elses:Hanging
broken = somebody_elses:Broken

[opentelemetry_span_processor]
marking = somebody_elses:Processor

[opentelemetry_resource_detector]
rack = somebody_elses:Detector

[opentelemetry_propagator]
xtrace = somebody_elses:Propagator

[opentelemetry_traces_sampler]
told = somebody_elses:sampler
"""


def install(directory: Path) -> list[Path]:
    """Put the package into a directory of sys.path; what is to be removed afterwards."""
    metadata = directory / "somebody_elses-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody-elses\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    module = directory / "somebody_elses.py"
    module.write_text(MODULE)
    return [module, metadata]
