"""Samplers that are not among the known ones: of the entry point group `opentelemetry_traces_sampler`."""

from typing import Final, NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, Sampler

from kata_telemetry.sampling import NAMES, SamplerError
from kata_telemetry.span import SpanContext
from kata_telemetry.values import Value
from kata_traces.sdk.told import told_context

__all__ = ["Verdict", "ask"]

VARIABLE: Final = "OTEL_TRACES_SAMPLER"
GROUP: Final = "opentelemetry_traces_sampler"


class Verdict(NamedTuple):
    """Whether a trace is kept, and what the sampler gives its root: attributes, and a tracestate."""

    sampled: bool
    attributes: dict[str, Value]
    state: str


def ask(name: str, argument: str, context: SpanContext, parent: SpanContext | None, root: str) -> Verdict:
    """What the sampler called `name` says of the trace of `context`, whose root is called `root`.

    Raises SamplerError.
    """
    from importlib.metadata import entry_points

    installed = entry_points(group=GROUP)
    point = next(iter(installed.select(name=name)), None)
    if point is None:
        names = ", ".join(sorted({*NAMES, *(point.name for point in installed)}))
        raise SamplerError(
            f"OTEL_TRACES_SAMPLER: {name[:80]!r} is no sampler of an installed package; there are {names}"
        )
    above = trace.set_span_in_context(trace.NonRecordingSpan(told_context(parent))) if parent else None
    try:
        # As the SDK's configurator has it: a factory of one argument, OTEL_TRACES_SAMPLER_ARG.
        sampler: Sampler = point.load()(argument or None)
        result = sampler.should_sample(above, context.trace_id, root, trace.SpanKind.INTERNAL, {}, [])
    except Exception as error:
        raise SamplerError(f"{VARIABLE}: {name!r}: {type(error).__name__}: {error}"[:1000]) from error
    attributes = {key: value for key, value in (result.attributes or {}).items() if isinstance(value, Value)}
    state = result.trace_state.to_header() if result.trace_state else context.state
    return Verdict(result.decision is Decision.RECORD_AND_SAMPLE, attributes, state)
