"""A trace as JSON for programs: our model of it, and the OTLP lines it came from."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from kata_common.documents import parse_json
from kata_traces.read.advice import advice
from kata_traces.read.analysis import critical_path, split
from kata_traces.read.failure import failure_of
from kata_traces.read.trace import Trace, TraceSpan

__all__ = ["otlp_lines", "to_model"]


def to_model(trace: Trace) -> dict[str, Any]:
    """Spans (parents before children), stages, critical path and checks. All times are host time in ns."""
    parts = split(trace)
    meta = trace.meta
    return {
        "trace_id": trace.trace_id,
        "sandbox_id": meta.sandbox_id,
        "name": meta.name,
        "command": meta.command,
        "outcome": meta.outcome,
        "failure": _failure(trace),
        "advice": list(advice(trace)),
        "live": trace.live,
        "services": trace.services,
        "root": trace.root.span_id,
        "start_ns": trace.root.start,
        "end_ns": trace.root.end,
        "duration_ns": trace.root.duration,
        "stages": {stage.value: took for stage, took in parts.stages.items()},
        "unaccounted_ns": parts.unaccounted,
        "gaps": [{"start_ns": gap.start, "end_ns": gap.end} for gap in parts.gaps],
        "critical_path": [
            {
                "span_id": segment.span.span_id,
                "name": segment.span.name,
                "start_ns": segment.start,
                "end_ns": segment.end,
            }
            for segment in critical_path(trace.root)
        ],
        "checks": {
            "orphans": [span.span_id for span in trace.orphans],
            "negative": [span.span_id for span in trace.negative()],
            "outside_parent": [
                {"span_id": misfit.span.span_id, "before_ns": misfit.before, "after_ns": misfit.after}
                for misfit in trace.misfits()
            ],
            "lost": meta.lost,
            "broken_lines": trace.broken,
            "foreign_spans": trace.foreign,
        },
        "spans": [_span(span) for span in trace.walk()],
    }


def _failure(trace: Trace) -> dict[str, Any] | None:
    found = failure_of(trace)
    if found is None:
        return None
    return {"message": "\n".join(found.said), "hint": found.hint, "span_id": found.span.span_id, "fatal": found.fatal}


def _span(span: TraceSpan) -> dict[str, Any]:
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "name": span.name,
        "service": span.service,
        "lane": span.lane.value,
        "stage": span.rule.stage.value if span.rule.stage else None,
        "depth": span.depth,
        "kind": span.kind,
        "start_ns": span.start,
        "end_ns": span.end,
        "duration_ns": span.duration,
        "self_ns": span.self_time,
        "open": span.open,
        "error": span.failed,
        "message": span.message,
        "attributes": dict(span.attributes),
        "events": [{"name": e.name, "time_ns": e.time, "attributes": dict(e.attributes)} for e in span.events],
        "dropped_events": span.dropped_events,
    }


def otlp_lines(lines: Iterable[bytes | str]) -> Iterator[str]:
    """The trace in OpenTelemetry's file format: whole lines only, and of open spans those that have no end yet."""
    ended: set[str] = set()
    for line in lines:
        try:
            content = parse_json(line)
            spans = [s for r in content["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]]
            ids = {span["spanId"] for span in spans}
            started = [span for span in spans if not _ended(span)]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        # The journal of open spans comes after all that ended.
        if started and ids <= ended:
            continue
        for resource in content["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                scope["spans"] = [s for s in scope["spans"] if s["spanId"] not in ended or _ended(s)]
        ended |= ids
        yield json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _ended(span: dict[str, Any]) -> bool:
    return span.get("endTimeUnixNano", "0") not in {"0", 0}
