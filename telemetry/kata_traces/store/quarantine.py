"""What a guest says about itself: its batches of spans, taken apart and rebuilt before anybody else reads them.

A guest is hostile. It may put its spans only into its own sandbox's trace, under the service `kata-agent`, at times
when the sandbox existed, and with bounded names, attributes and numbers. All else is cut or refused, and counted.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kata_common.contract import AGENT_SERVICE
from kata_common.text import printable
from kata_telemetry import otlp
from kata_telemetry.clock import Clock, HostClock
from kata_telemetry.wire import MAX_FRAME

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

__all__ = ["Limits", "Quarantine", "Tally", "host_time"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one guest may write into its trace; texts in characters, times in ns."""

    spans: int = 20_000
    # Refused spans after which batches are refused unseen.
    rejected: int = 100_000
    attributes: int = 32
    event_attributes: int = 16
    events: int = 128
    links: int = 8
    name: int = 128
    key: int = 64
    text: int = 1024
    # How far outside the sandbox's life a time may lie: as much as a clock offset may be wrong.
    slack: int = 5_000_000_000


@dataclass(slots=True)
class Tally:
    """What became of a guest's spans. `refused` (by reason) and `trimmed` count spans, `batches` whole refused batches,
    `dropped` what the agent says that it lost.
    """

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    trimmed: int = 0
    batches: int = 0
    dropped: int = 0

    @property
    def rejected(self) -> int:
        """Refused spans."""
        return self.refused.total()

    def lost(self) -> dict[str, int]:
        """What is not in the trace, or not whole, by reason."""
        found = {f"from the guest, refused: {reason}": number for reason, number in self.refused.items()}
        found |= {
            "batches from the guest, refused": self.batches,
            "from the guest, cut": self.trimmed,
            "dropped by the agent": self.dropped,
        }
        return {reason: number for reason, number in found.items() if number}


class _Recent:
    """The last ids seen, so that a second span with one of them is noticed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ids: OrderedDict[bytes, None] = OrderedDict()

    def add(self, span_id: bytes) -> None:
        self._ids[span_id] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)

    def __contains__(self, span_id: bytes) -> bool:
        return span_id in self._ids


@dataclass(slots=True)
class Quarantine:
    """Rebuilds the batches of one sandbox's guest.

    `since` is when the sandbox began (host time, ns), `now` reads that time: the sandbox's own, which is not bent by a
    wall clock that steps. `trace_id` and `root_id` are the sandbox's; where the runtime
    does not trace, they are None and the first valid span of the guest sets them.
    """

    sandbox_id: str
    since: int
    trace_id: bytes | None = None
    root_id: bytes | None = None
    limits: Limits = field(default_factory=Limits)
    service: str = AGENT_SERVICE
    now: Callable[[], int] = field(default_factory=lambda: host_time(HostClock()))
    tally: Tally = field(default_factory=Tally)
    _host_ids: _Recent = field(default_factory=lambda: _Recent(16_384))
    _guest_ids: _Recent = field(default_factory=lambda: _Recent(16_384))

    def claim(self, span_id: int) -> None:
        """Remember an id of the host's, which the guest therefore may not use."""
        self._host_ids.add(span_id.to_bytes(8, "big"))

    def rebuild(self, data: bytes) -> "ExportTraceServiceRequest | None":
        """A request that may be stored, or None where nothing of `data` is left. Never raises."""
        # Whoever sends that much rubbish gets no more of the host's time.
        if len(data) > MAX_FRAME or self.tally.rejected > self.limits.rejected:
            self.tally.batches += 1
            return None
        try:
            message = otlp.parse(data)
        except otlp.MalformedOtlpError:
            self.tally.batches += 1
            return None
        clean = type(message)()
        resource_spans = clean.resource_spans.add()
        for key, value in otlp.resource(self.service, self.sandbox_id).items():
            _set(resource_spans.resource.attributes.add(), key, str(value))
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name = otlp.SCOPE
        latest = self.now() + self.limits.slack
        for foreign in message.resource_spans:
            self._note_dropped(foreign)
            for scope in foreign.scope_spans:
                for span in scope.spans:
                    if refused := self._refused(span, latest):
                        self.tally.refused[refused] += 1
                    else:
                        self.tally.accepted += 1
                        self.tally.trimmed += self._copy(span, scope_spans.spans.add(), latest)
        return clean if scope_spans.spans else None

    def known(self, span_id: bytes) -> None:
        """Remember a span that an earlier process took from this guest."""
        self._guest_ids.add(span_id)
        self.tally.accepted += 1

    def _note_dropped(self, foreign: "ResourceSpans") -> None:
        for pair in foreign.resource.attributes[:4]:
            if pair.key == otlp.DROPPED:
                self.tally.dropped = min(self.tally.dropped + max(pair.value.int_value, 0), 2**32)

    def _refused(self, span: "OtlpSpan", latest: int) -> str:
        """Why a span can't be taken, or ""."""
        span_id = span.span_id
        if self.tally.accepted >= self.limits.spans:
            return "too many"
        if not (
            len(span.trace_id) == 16
            and len(span_id) == 8
            and len(span.parent_span_id) in {0, 8}
            and any(span.trace_id)
            and any(span_id)
            and span_id != span.parent_span_id
        ):
            return "ids that are none"
        if refused := self._untimely(span.start_time_unix_nano, span.end_time_unix_nano, latest):
            return refused
        if self.trace_id is None:
            self.trace_id = span.trace_id
        if span.trace_id != self.trace_id:
            return "another trace"
        if span_id in self._host_ids or span_id in self._guest_ids:
            return "an id twice" if span_id in self._guest_ids else "an id of the host's"
        self._guest_ids.add(span_id)
        return ""

    def _untimely(self, start: int, end: int, latest: int) -> str:
        if start < self.since - self.limits.slack:
            return "before the sandbox began"
        return "" if start <= end <= latest else "in the future, or an end before the start"

    def _copy(self, source: "OtlpSpan", target: "OtlpSpan", latest: int) -> bool:
        """Fill `target` with what is acceptable of `source`; True where that is not all."""
        limits = self.limits
        trimmed = False
        target.trace_id, target.span_id = source.trace_id, source.span_id
        if any(source.parent_span_id):
            target.parent_span_id = source.parent_span_id
        elif self.root_id is None:
            self.root_id = source.span_id
        else:
            target.parent_span_id = self.root_id  # one trace has one root, and this isn't it
            trimmed = True
        target.name = _text(source.name, limits.name) or "unnamed"
        trimmed |= target.name != source.name
        target.kind = source.kind if source.kind in {1, 2, 3} else 1  # type: ignore[assignment] # an enum's number
        target.start_time_unix_nano = source.start_time_unix_nano
        target.end_time_unix_nano = source.end_time_unix_nano
        # Bits 0-7 are W3C trace-flags, 8 and 9 say whether the parent is remote (SpanFlags in trace.proto).
        target.flags = source.flags & 0x3FF
        if source.status.code in {1, 2}:
            target.status.code = source.status.code
            target.status.message = _text(source.status.message, limits.text)
        own = {"source": "agent", "sandbox_id": self.sandbox_id}
        dropped = self._copy_attributes(source.attributes, target.attributes, limits.attributes, own)
        target.dropped_attributes_count = min(source.dropped_attributes_count + dropped, 2**32 - 1)
        dropped_events = self._copy_events(source, target, latest)
        target.dropped_events_count = min(source.dropped_events_count + dropped_events, 2**32 - 1)
        for link in source.links[: limits.links]:
            if len(link.trace_id) == 16 and len(link.span_id) == 8:
                copy = target.links.add()
                copy.trace_id, copy.span_id = link.trace_id, link.span_id
        return bool(trimmed or dropped or dropped_events or len(target.links) < len(source.links))

    def _copy_events(self, source: "OtlpSpan", target: "OtlpSpan", latest: int) -> int:
        dropped = 0
        for event in source.events:
            in_time = self.since - self.limits.slack <= event.time_unix_nano <= latest
            if not in_time or len(target.events) >= self.limits.events:
                dropped += 1
                continue
            copy = target.events.add()
            copy.name = _text(event.name, self.limits.name) or "unnamed"
            copy.time_unix_nano = event.time_unix_nano
            lost = self._copy_attributes(event.attributes, copy.attributes, self.limits.event_attributes, {})
            copy.dropped_attributes_count = min(event.dropped_attributes_count + lost, 2**32 - 1)
        return dropped

    def _copy_attributes(self, source: Iterable[Any], target: Any, limit: int, own: dict[str, str]) -> int:  # noqa: ANN401 - repeated KeyValue
        for key, value in own.items():
            _set(target.add(), key, value)
        seen = set(own)
        dropped = 0
        for pair in source:
            key = _text(pair.key, self.limits.key)
            if key in own:
                continue
            kind = pair.value.WhichOneof("value")
            if not key or key in seen or len(seen) >= limit or kind not in _SCALARS:
                dropped += 1
                continue
            value = getattr(pair.value, kind)
            if kind == "double_value" and not math.isfinite(value):
                dropped += 1
                continue
            seen.add(key)
            copy = target.add()
            copy.key = key
            setattr(copy.value, kind, _text(value, self.limits.text) if kind == "string_value" else value)
        return dropped


def host_time(clock: Clock) -> Callable[[], int]:
    """Reads a clock in host time (ns)."""
    return lambda: clock.to_host(clock.now())


_SCALARS = frozenset({"string_value", "bool_value", "int_value", "double_value"})


def _set(pair: Any, key: str, value: str) -> None:  # noqa: ANN401 - KeyValue
    pair.key = key
    pair.value.string_value = value


def _text(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, with what a terminal would obey made visible."""
    return printable(text[:limit])[:limit]
