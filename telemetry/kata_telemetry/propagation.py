"""The edge of gRPC: W3C Trace Context in metadata, without importing grpc.

A client adds `inject()` to the metadata of a call; a server opens its span with `extract(...)` as the parent:

    span = _trace.root(tracer, "create_container", parent=extract(context.invocation_metadata()), kind=Kind.SERVER)
"""

from collections.abc import Iterable, Mapping

from kata_telemetry.span import parent_to_be
from kata_telemetry.w3c import SpanContext, tracestate

__all__ = ["extract", "from_environment", "inject"]


def inject() -> list[tuple[str, str]]:
    """Metadata (lower-case keys) that names the current span; empty where there is no trace."""
    span = parent_to_be()
    if not span.recording:
        return []
    pairs = [("traceparent", span.context.to_traceparent())]
    if span.context.state:
        pairs.append(("tracestate", span.context.state))
    return pairs


def extract(metadata: Iterable[tuple[str, str | bytes]] | None) -> SpanContext | None:
    """The caller's span, or None where the metadata names none or an invalid one. Never raises: the peer wrote it."""
    parent: SpanContext | None = None
    states: list[str] = []
    for key, value in metadata or ():
        name = key.lower()
        if name not in {"traceparent", "tracestate"}:
            continue
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if name == "tracestate":
            states.append(text)
            continue
        if parent is not None:
            return None  # two parents are as good as none (W3C Trace Context, 3.2)
        parent = SpanContext.from_traceparent(text)
        if parent is None:
            return None
    return parent._replace(state=tracestate(states)) if parent else None


def from_environment(environment: Mapping[str, str]) -> SpanContext | None:
    """The parent in TRACEPARENT and TRACESTATE (OpenTelemetry's environment variables for processes), or None."""
    return extract((key, value) for key, value in environment.items() if key in {"TRACEPARENT", "TRACESTATE"})
