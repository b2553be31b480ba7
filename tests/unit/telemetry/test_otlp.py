"""Records to OTLP and OTLP/JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_common.contract import Port
from kata_telemetry import __version__, otlp
from kata_telemetry.span import Event, Kind, Site, Span, SpanContext, Tracer
from kata_telemetry.values import Value

site = Site(package="test", subsystem="unit")


def make(name: str = "rootSpan", **attributes: Value) -> Span:
    tracer = Tracer("kata", lambda _: None)
    return tracer.start(name, attributes=attributes)


def first(line: str) -> dict[str, object]:
    span = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert isinstance(span, dict)
    return span


def test_a_line_is_conformant_otlp_json() -> None:
    tracer = Tracer("kata", lambda _: None)
    span = tracer.start(
        "StartVM",
        parent=SpanContext(0xA, 0xB, 1, "a=1"),
        kind=Kind.CLIENT,
        attributes={"n": 5, "f": 0.5, "b": True, "s": "text"},
    )
    span.event("greeting", version="7.2")
    span.link(SpanContext(0xC, 0xD))
    span.fail(RuntimeError("broken"))
    span.finish()
    encoded = otlp.encode([span], "s1")
    assert (encoded.spans, encoded.failed) == (1, 0)
    line = otlp.to_line(encoded.data)
    assert "\n" not in line
    content = json.loads(line)
    resource = {a["key"]: a["value"] for a in content["resourceSpans"][0]["resource"]["attributes"]}
    assert resource["service.name"] == {"stringValue": "kata"}
    assert resource["sandbox_id"] == {"stringValue": "s1"}
    scope = content["resourceSpans"][0]["scopeSpans"][0]["scope"]
    assert scope == {"name": "kata_telemetry", "version": __version__}
    record = first(line)
    assert record["traceId"] == f"{10:032x}"
    assert record["parentSpanId"] == f"{11:016x}"
    assert record["spanId"] == f"{span.context.span_id:016x}"
    assert record["kind"] == 3
    assert record["traceState"] == "a=1"
    assert record["startTimeUnixNano"] == str(tracer.clock.to_host(span.start))
    assert record["status"] == {"code": 2, "message": "broken"}
    assert record["links"] == [{"traceId": f"{12:032x}", "spanId": f"{13:016x}", "flags": 0x300}]
    assert {"key": "n", "value": {"intValue": "5"}} in record["attributes"]  # type: ignore[operator]
    assert otlp.from_line(line) == encoded.data


def test_an_open_span_has_no_end() -> None:
    assert "endTimeUnixNano" not in first(otlp.to_line(otlp.encode([make()]).data))


def test_dropped_events_are_told() -> None:
    span = make()
    for _ in range(130):
        span.event("e")
    assert first(otlp.to_line(otlp.encode([span]).data))["droppedEventsCount"] == 2


def test_what_spans_may_not_hold_is_made_fit() -> None:
    span = make("\udcff" + "n" * 9000, big=2**70, path="a\udc80", other=[1, 2])  # type: ignore[arg-type]
    encoded = otlp.encode([span])
    assert encoded.failed == 0
    record = first(otlp.to_line(encoded.data))
    assert len(str(record["name"])) < 5000
    assert {"key": "big", "value": {"stringValue": str(2**70)}} in record["attributes"]  # type: ignore[operator]


def test_one_odd_span_does_not_take_the_others_with_it() -> None:
    odd = make()
    odd.context = SpanContext(2**200, 1)
    encoded = otlp.encode([make("a"), odd, make("b")])
    assert (encoded.spans, encoded.failed) == (2, 1)


def by_the_sdk(span: Span, sandbox_id: str) -> bytes:
    """What OpenTelemetry's SDK and its encoder make of the same span."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanKind, TraceFlags, TraceState
    from opentelemetry.trace import SpanContext as SdkContext
    from opentelemetry.trace.status import Status, StatusCode

    to_host = span.tracer.clock.to_host
    trace_id, span_id, flags, state = span.context
    parent = SdkContext(trace_id, span.parent_id, span.kind is Kind.SERVER, TraceFlags(flags))
    readable = ReadableSpan(
        name=span.name,
        context=SdkContext(trace_id, span_id, False, TraceFlags(flags), TraceState.from_header([state] * bool(state))),
        parent=parent if span.parent_id else None,
        resource=Resource(otlp.resource(span.tracer.service, sandbox_id)),
        attributes=span.attributes,
        events=[Event(event.name, event.attributes, to_host(event.time)) for event in span.events],
        links=[Link(SdkContext(link.trace_id, link.span_id, True, TraceFlags(link.flags))) for link in span.links],
        kind=SpanKind[span.kind.name],
        status=Status(StatusCode[span.status.name], span.message or None),
        start_time=to_host(span.start),
        end_time=to_host(span.end),
        instrumentation_scope=InstrumentationScope(otlp.SCOPE, __version__),
    )
    return encode_spans([readable]).SerializeToString()


values = st.text(max_size=9) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
named = st.dictionaries(st.text(min_size=1, max_size=9), values, max_size=4)
contexts = st.builds(
    SpanContext, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), state=st.sampled_from(["", "a=1"])
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    name=st.text(max_size=20),
    attributes=named,
    kind=st.sampled_from(Kind),
    parent=st.none() | contexts,
    events=st.lists(st.tuples(st.text(max_size=9), named), max_size=3),
    link=st.none() | contexts,
    error=st.none() | st.text(min_size=1, max_size=20),
)
def test_the_bytes_are_those_of_opentelemetrys_sdk(
    name: str,
    attributes: dict[str, Value],
    kind: Kind,
    parent: SpanContext | None,
    events: list[tuple[str, dict[str, Value]]],
    link: SpanContext | None,
    error: str | None,
) -> None:
    span = Tracer("kata-agent", lambda _: None).start(name, parent=parent, kind=kind, attributes=attributes)
    for what, details in events:
        span._add_event(Event(what, span.tracer.clock.now(), details))
    if link:
        span.link(link)
    if error:
        span.fail(error)
    span.finish()
    assert otlp.encode([span], "s1").data == by_the_sdk(span, "s1")


@pytest.mark.parametrize(
    "line",
    ["", "[]", "3", "{", '{"resourceSpans":7}', '{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"zz"}]}]}]}'],
)
def test_malformed_lines(line: str) -> None:
    with pytest.raises(otlp.MalformedOtlpError):
        otlp.from_line(line)


def test_malformed_bytes() -> None:
    with pytest.raises(otlp.MalformedOtlpError, match="4 bytes"):
        otlp.parse(b"\xff\xff\xff\xff")


@pytest.mark.slow
@settings(max_examples=50)
@given(
    st.text(),
    st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.text() | st.booleans() | st.integers() | st.floats(), max_size=5
    ),
)
def test_anything_that_is_recorded_comes_back(name: str, attributes: dict[str, Value]) -> None:
    span = make(name, **attributes)
    span.finish()
    encoded = otlp.encode([span])
    assert encoded.failed == 0
    line = otlp.to_line(encoded.data)
    assert otlp.to_line(otlp.from_line(line)) == line


@pytest.mark.timeout(5)
def test_a_member_of_an_enumeration_is_its_number() -> None:
    """Looked for in a range it would be compared with each of 2^64 numbers."""
    span = make(port=Port.CLOCK)
    span.finish()
    attributes = first(otlp.to_line(otlp.encode([span]).data))["attributes"]
    assert {"key": "port", "value": {"intValue": "1028"}} in attributes  # type: ignore[operator]


def test_version_agrees_with_the_distribution() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
