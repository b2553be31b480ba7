"""Metrics from spans: a histogram of durations per operation of a sandbox, for Prometheus.

They are computed from the trace when somebody asks, so that a sandbox pays nothing for them. A store only grows while
its sandbox lives, so the counts do, too; when a trace is removed, its series end.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kata_common.contract import AGENT_SERVICE as AGENT
from kata_traces.read.explain import start_of
from kata_traces.read.trace import Trace, TraceSpan

if TYPE_CHECKING:
    from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Exemplar

__all__ = ["BOUNDS", "MAX_OPERATIONS", "OTHER", "expose"]

# Upper bounds of the buckets, in seconds: from a QMP command to a boot that went wrong.
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# A guest names its spans as it likes; beyond this many names of one sandbox's agent, the rest is one operation.
MAX_OPERATIONS: Final = 200
OTHER: Final = "other"


@dataclass(slots=True)
class _Operation:
    """Durations of one operation; the last bucket has no bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    # For each bucket the span that came last: the example that a dashboard leads to.
    examples: list[TraceSpan | None] = field(default_factory=lambda: [None] * (len(BOUNDS) + 1))
    # What each example took.
    taken: list[float] = field(default_factory=lambda: [0.0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    errors: int = 0

    def add(self, span: TraceSpan) -> None:
        self.observe(max(span.duration, 0) / 1e9, span)
        self.errors += span.failed

    def observe(self, seconds: float, span: TraceSpan) -> None:
        """Count `seconds`; `span` is an example of it."""
        bucket = bisect_left(BOUNDS, seconds)
        self.counts[bucket] += 1
        self.examples[bucket] = span
        self.taken[bucket] = seconds
        self.seconds += seconds


def _operations(trace: Trace) -> dict[tuple[str, str], _Operation]:
    """By service and name of the span; spans that still last are not in it."""
    found: dict[tuple[str, str], _Operation] = {}
    of_agent = 0
    for span in sorted(trace.spans, key=lambda span: span.end):
        if span.open:
            continue
        key = (_label(span.service), _label(span.name))
        if key not in found and span.service == AGENT:
            of_agent += 1
            if of_agent > MAX_OPERATIONS:
                key = (AGENT, OTHER)
        found.setdefault(key, _Operation()).add(span)
    return found


def _label(text: str) -> str:
    """What JSON may hold and UTF-8 may not, a lone surrogate, becomes a question mark."""
    return text.encode(errors="replace").decode()


class _Collector:
    """What prometheus_client's exposition asks for."""

    def __init__(self, traces: Iterable[Trace]) -> None:
        self._traces = list(traces)

    def collect(self) -> "Iterator[HistogramMetricFamily | CounterMetricFamily]":
        from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

        labels = ("sandbox_id", "service", "operation")
        durations = HistogramMetricFamily(
            "kata_span_duration_seconds", "Duration of the operations of a sandbox, from its spans.", labels=labels
        )
        errors = CounterMetricFamily("kata_span_errors", "Operations of a sandbox that failed.", labels=labels)
        for trace in self._traces:
            for (service, name), operation in sorted(_operations(trace).items()):
                values = (trace.meta.sandbox_id, service, name)
                durations.add_metric(values, buckets=_buckets(operation), sum_value=operation.seconds)
                if operation.errors:
                    errors.add_metric(values, operation.errors)
        yield durations
        yield errors
        yield self._stages()

    def _stages(self) -> "HistogramMetricFamily":
        """The stages of each start that reached its first process, with the trace as example."""
        from prometheus_client.metrics_core import HistogramMetricFamily

        labels = ("sandbox_id", "stage")
        found = HistogramMetricFamily(
            "kata_start_stage_seconds", "Stages of a sandbox's start; `all` is the whole of it.", labels=labels
        )
        for trace in self._traces:
            start = start_of(trace)
            if not start.reached:
                continue
            for stage, took in (*start.stages.items(), ("all", start.total)):
                operation = _Operation()
                operation.observe(took / 1e9, trace.root)
                found.add_metric(
                    (trace.meta.sandbox_id, stage), buckets=_buckets(operation), sum_value=operation.seconds
                )
        return found


def _buckets(operation: _Operation) -> "list[tuple[str, float] | tuple[str, float, Exemplar]]":
    from prometheus_client.samples import Exemplar

    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    total = 0
    bounds = (*map(str, BOUNDS), "+Inf")
    for bound, count, span, took in zip(bounds, operation.counts, operation.examples, operation.taken, strict=True):
        total += count
        if span is None:
            buckets.append((bound, total))
            continue
        ids = {"trace_id": span.trace_id, "span_id": span.span_id}
        buckets.append((bound, total, Exemplar(ids, took, span.end / 1e9)))
    return buckets


def expose(traces: Iterable[Trace], *, openmetrics: bool = True, more: "Iterable[Collector]" = ()) -> str:
    """The metrics of these traces as text: OpenMetrics 1.0, which has exemplars, or Prometheus' format 0.0.4.

    Those of the collectors `more` come first.
    """
    from prometheus_client import CollectorRegistry, exposition
    from prometheus_client.openmetrics import exposition as openmetrics_exposition

    registry = CollectorRegistry()
    for collector in (*more, _Collector(traces)):
        registry.register(collector)
    text: bytes = (openmetrics_exposition if openmetrics else exposition).generate_latest(registry)
    return text.decode()
