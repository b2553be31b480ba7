"""A trace as a tree, from lines of OTLP/JSON, whoever wrote them: the model that views and checks read.

Nothing here imports protobuf. Lines may be cut off, spans may lack their parent, have not ended or form
circles: what can be read is shown, and what is odd about it can be asked for.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kata_common.contract import AGENT_SERVICE as AGENT
from kata_common.documents import parse_json
from kata_traces.read import stages
from kata_traces.read.stages import Lane, Rule
from kata_traces.store.store import Meta, Store

__all__ = ["Misfit", "Trace", "TraceEvent", "TraceSpan", "load", "load_store"]


NO_RULE = Rule(None)


class TraceEvent(NamedTuple):
    """An event; `time` is host time in ns."""

    name: str
    time: int
    attributes: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class TraceSpan:
    """A span in its tree. Times are host time in ns; `end` of an open one is the last moment that is known of it."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    kind: int
    start: int
    end: int
    open: bool
    failed: bool
    message: str
    attributes: Mapping[str, Any]
    events: list[TraceEvent]
    dropped_events: int
    # Filled by the tree.
    parent: "TraceSpan | None" = field(default=None, repr=False)
    children: "list[TraceSpan]" = field(default_factory=list, repr=False)
    depth: int = 0
    # The stage that it counts for: its own, or the one inherited from its parent.
    rule: Rule = NO_RULE
    # Whether that stage is its own.
    named: bool = False

    @property
    def duration(self) -> int:
        return self.end - self.start

    @property
    def lane(self) -> Lane:
        return stages.lane(self.name, agent=self.service == AGENT)

    @property
    def self_time(self) -> int:
        """Time that no child covers, ns."""
        covered, reached = 0, self.start
        for child in sorted(self.children, key=lambda child: child.start):
            start, end = max(child.start, reached), min(child.end, self.end)
            if end > start:
                covered += end - start
                reached = end
        return max(self.duration - covered, 0)


class Misfit(NamedTuple):
    """A span that is not within its parent: by how much it is earlier and later, ns."""

    span: TraceSpan
    before: int
    after: int


@dataclass(slots=True)
class Trace:
    """One trace. `roots` holds its root, then whatever has no parent here."""

    trace_id: str
    spans: list[TraceSpan]
    roots: list[TraceSpan]
    meta: Meta
    live: bool = False
    # Lines that could not be read, and spans of other traces among them.
    broken: int = 0
    foreign: int = 0
    # What went wrong last, by collector, where one does not have all of it.
    undelivered: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> TraceSpan:
        return self.roots[0]

    @property
    def duration(self) -> int:
        """From the root's start to the end of what ended last, ns: its root may only be about its start."""
        return max((span.end for span in self.spans), default=self.root.end) - self.root.start

    @property
    def services(self) -> list[str]:
        return sorted({span.service for span in self.spans})

    @property
    def orphans(self) -> list[TraceSpan]:
        """Spans that aren't the root and whose parent isn't here."""
        return self.roots[1:]

    def misfits(self, tolerance: int = 0) -> list[Misfit]:
        """Spans that lie outside their parent by more than `tolerance` ns.

        A root that is over when the sandbox has started (`trace_root = "start"`) has children that come later.
        """
        found = []
        for span in self.spans:
            if span.parent:
                before, after = span.parent.start - span.start, span.end - span.parent.end
                if span.parent.attributes.get("trace_root") == "start":
                    after = 0
                if max(before, after) > tolerance:
                    found.append(Misfit(span, max(before, 0), max(after, 0)))
        return found

    def negative(self) -> list[TraceSpan]:
        """Spans that end before they start."""
        return [span for span in self.spans if span.end < span.start]

    def walk(self) -> Iterator[TraceSpan]:
        """All spans, parents before children, siblings by start."""
        pending = list(reversed(self.roots))
        while pending:
            span = pending.pop()
            yield span
            pending += reversed(span.children)


def load_store(store: Store) -> Trace | None:
    """The trace in a store; None where it has no span yet. Raises StoreError where it can't be read."""
    # Asked first: a writer that closes meanwhile is the lesser surprise.
    live = store.live
    trace = load(store.lines(), meta=store.meta(), live=live, now=time.time_ns() if live else 0)
    if trace is not None and not live:
        from kata_traces.send.ledger import load_progress

        trace.undelivered = {target: p.error for target, p in load_progress(store).items() if p.error}
    return trace


def load(lines: Iterable[bytes | str], *, meta: Meta | None = None, live: bool = False, now: int = 0) -> Trace | None:
    """The trace in lines of OTLP/JSON; of several, the one that `meta` names or that has most spans.

    `now` (host time, ns) is how long open spans have lasted so far; 0 means up to the last moment in the trace.
    """
    meta = meta or Meta("")
    found: dict[tuple[str, str], TraceSpan] = {}
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        spans = _parse(line)
        if spans is None:
            broken += 1
            continue
        for span in spans:
            known = found.setdefault((span.trace_id, span.span_id), span)
            # An end supersedes the start that was journaled; nobody else may take a span's place.
            if known.open and not span.open and known.service == span.service:
                found[span.trace_id, span.span_id] = span
    trace_id = meta.trace_id or _largest(found)
    spans = [span for span in found.values() if span.trace_id == trace_id]
    if meta.root_id and (trace_id, meta.root_id) not in found:
        spans.append(_root_of(meta))
    if not spans:
        return None
    last = max([now, meta.end, *(max(span.start, span.end, *(e.time for e in span.events), 0) for span in spans)])
    for span in spans:
        if span.open:
            span.end = max(now or last, span.start)
    spans.sort(key=lambda span: (span.start, -span.end))
    roots = _build_tree(spans, meta.root_id)
    return Trace(trace_id, spans, roots, meta, live=live, broken=broken, foreign=len(found) - len(spans))


def _largest(found: Iterable[tuple[str, str]]) -> str:
    counts: dict[str, int] = {}
    for trace_id, _ in found:
        counts[trace_id] = counts.get(trace_id, 0) + 1
    return max(counts, key=lambda trace_id: counts[trace_id], default="")


def _root_of(meta: Meta) -> TraceSpan:
    """The root of a sandbox that was killed before its start could be written."""
    return TraceSpan(
        trace_id=meta.trace_id,
        span_id=meta.root_id,
        parent_id=meta.root_parent_id,
        name=meta.root_name or "rootSpan",
        service="kata",
        kind=1,
        start=meta.start,
        end=0,
        open=True,
        failed=False,
        message="",
        attributes={"source": "runtime", "sandbox_id": meta.sandbox_id},
        events=[],
        dropped_events=0,
    )


def _build_tree(spans: list[TraceSpan], root_id: str) -> list[TraceSpan]:
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent_id)
        if parent is not None and span.span_id != root_id and parent is not span:
            span.parent = parent
            parent.children.append(span)
    tops = [span for span in spans if span.parent is None]
    root = by_id.get(root_id) or next((span for span in tops if not span.parent_id), None) or (tops or spans)[0]
    if root.parent:
        _cut(root)  # nothing but circles
    roots = [root, *(span for span in tops if span is not root)]
    reached: set[str] = set()
    for top in roots:
        _settle(top, reached)
    # Whatever was not reached hangs in a circle of parents: cut it at its earliest span.
    for span in spans:
        if span.span_id not in reached:
            _cut(span)
            roots.append(span)
            _settle(span, reached)
    return roots


def _cut(span: TraceSpan) -> None:
    if span.parent:
        span.parent.children.remove(span)
        span.parent = None


def _settle(top: TraceSpan, reached: set[str]) -> None:
    """Depth and stage of a tree of spans."""
    pending = [top]
    while pending:
        span = pending.pop()
        reached.add(span.span_id)
        own = stages.rule(span.name)
        span.named = own is not None
        span.rule = own or (span.parent.rule if span.parent else NO_RULE)
        span.depth = span.parent.depth + 1 if span.parent else 0
        pending += span.children


def _parse(line: bytes | str) -> list[TraceSpan] | None:
    """The spans in a line; None where it is no OTLP/JSON."""
    try:
        content = parse_json(line)
        spans = []
        for resource in _list(content, "resourceSpans"):
            service = str(_attributes(resource.get("resource", {})).get("service.name", "unknown"))
            for scope in _list(resource, "scopeSpans"):
                spans += [_span(span, service) for span in _list(scope, "spans")]
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RecursionError):
        return None
    return spans


def _list(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = content.get(name) or []
    if not isinstance(value, list):
        raise TypeError(name)
    return value


def _span(content: Mapping[str, Any], service: str) -> TraceSpan:
    status = content.get("status") or {}
    end = _moment(content.get("endTimeUnixNano") or 0)
    return TraceSpan(
        trace_id=str(content["traceId"]).lower(),
        span_id=str(content["spanId"]).lower(),
        parent_id=_parent_id(content),
        name=str(content.get("name") or "unnamed"),
        service=service,
        kind=int(content.get("kind") or 0),
        start=_moment(content["startTimeUnixNano"]),
        end=end,
        open=not end,
        failed=status.get("code") == 2,
        message=str(status.get("message") or ""),
        attributes=_attributes(content),
        events=sorted(
            (
                TraceEvent(str(event.get("name") or ""), _moment(event.get("timeUnixNano") or 0), _attributes(event))
                for event in _list(content, "events")
            ),
            key=lambda event: event.time,
        ),
        dropped_events=int(content.get("droppedEventsCount") or 0),
    )


def _moment(value: Any) -> int:  # noqa: ANN401 - JSON
    """A time in ns, which OTLP has 64 bits for; no view can show another. Raises ValueError."""
    moment = int(value)
    if not 0 <= moment < 1 << 64:
        raise ValueError("a time that is none")
    return moment


def _parent_id(content: Mapping[str, Any]) -> str:
    text = str(content.get("parentSpanId") or "").lower()
    return text if text.strip("0") else ""


def _value(value: Mapping[str, Any]) -> Any:  # noqa: ANN401 - an attribute's value
    """OTLP's AnyValue in JSON: the one key says the type; 64-bit numbers are strings."""
    kind, content = next(iter(value.items()), ("stringValue", ""))
    if kind == "intValue":
        return int(content)
    if kind in {"stringValue", "boolValue", "doubleValue"}:
        return content
    return json.dumps(content)


def _attributes(content: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for pair in _list(content, "attributes"):
        attributes[str(pair["key"])] = _value(pair["value"])
    return attributes
