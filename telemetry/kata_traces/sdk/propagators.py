"""Propagators by their names in OTEL_PROPAGATORS, at the runtime's edge to its callers and to whom it calls.

`tracecontext` is ours (kata_telemetry.propagation), `baggage` has nothing that we read, others are those of the entry
point group `opentelemetry_propagator`. Between runtime and agent it is always W3C Trace Context. Only where others are
named is anything of OpenTelemetry imported.
"""

import functools
import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from kata_telemetry.propagation import extract, inject
from kata_telemetry.span import SpanContext, current

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

__all__ = ["VARIABLE", "outward", "parent"]

_log = logging.getLogger("kata.tracing")

VARIABLE: Final = "OTEL_PROPAGATORS"
GROUP: Final = "opentelemetry_propagator"
DEFAULT: Final = "tracecontext"


def parent(carrier: Iterable[tuple[str, str]]) -> SpanContext | None:
    """The caller's span in the metadata of a call; of several propagators that find one, the last."""
    pairs = list(carrier)
    found: SpanContext | None = None
    for name in _names():
        if name == DEFAULT:
            found = extract(pairs) or found
        elif propagator := _foreign(name):
            found = _extracted(propagator, name, pairs) or found
    return found


def from_environment(environment: Mapping[str, str]) -> SpanContext | None:
    """The parent in a process's environment: names in upper case, all but letters and digits as `_` (OpenTelemetry's
    "Environment Variables as Context Propagation Carriers").
    """
    return parent((name.lower().replace("_", "-"), value) for name, value in environment.items() if name.isupper())


def outward() -> list[tuple[str, str]]:
    """What tells whom we call, if it is not our agent, of the current span."""
    pairs: dict[str, str] = {}
    for name in _names():
        if name == DEFAULT:
            pairs.update(inject())
        elif current().recording and (propagator := _foreign(name)):
            pairs.update(_injected(propagator, name))
    return [(key.lower(), value) for key, value in pairs.items()]


def _names() -> list[str]:
    names = [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]
    return [] if "none" in names else [name for name in names or [DEFAULT] if name != "baggage"]


@functools.cache
def _foreign(name: str) -> "TextMapPropagator | None":
    """One of an installed package; None, with a warning, where there is none of that name."""
    from importlib.metadata import entry_points

    point = next(iter(entry_points(group=GROUP, name=name)), None)
    try:
        if point is None:
            raise LookupError("is no propagator of an installed package")
        loaded = point.load()
        propagator: TextMapPropagator = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        _log.warning("%s: %r: %s", VARIABLE, name[:80], error)
        return None
    return propagator


def _extracted(propagator: "TextMapPropagator", name: str, pairs: list[tuple[str, str]]) -> SpanContext | None:
    from opentelemetry import trace
    from opentelemetry.context.context import Context
    from opentelemetry.propagators.textmap import DefaultGetter

    from kata_traces.sdk.told import our_context

    carrier: dict[str, Any] = {}
    for key, value in pairs:
        carrier.setdefault(key.lower(), []).append(value)
    try:
        found = propagator.extract(_Folded(carrier), Context(), DefaultGetter())
    except Exception as error:
        _log.warning("%s: %r: %s: %s", VARIABLE, name, type(error).__name__, error)
        return None
    context = trace.get_current_span(found).get_span_context()
    return our_context(context) if context.is_valid else None


def _injected(propagator: "TextMapPropagator", name: str) -> dict[str, str]:
    from opentelemetry import trace

    from kata_telemetry.span import parent_to_be
    from kata_traces.sdk.told import told_context

    carrier: dict[str, str] = {}
    span = trace.NonRecordingSpan(told_context(parent_to_be().context))
    try:
        propagator.inject(carrier, trace.set_span_in_context(span))
    except Exception as error:
        _log.warning("%s: %r: %s: %s", VARIABLE, name, type(error).__name__, error)
    return carrier


class _Folded(dict[str, Any]):
    """Names of headers in any case."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)
