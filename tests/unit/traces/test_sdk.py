"""OpenTelemetry's SDK between what is recorded and what is stored."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor

from kata_telemetry import otlp
from kata_telemetry.span import Kind, Site, Span, SpanContext, Tracer
from kata_traces.sdk import environment
from kata_traces.sdk.pipeline import Pipeline

site = Site(package="test", subsystem="unit")


def record(name: str = "rootSpan", service: str = "kata", **attributes: Any) -> Span:
    tracer = Tracer(service, lambda _: None, common={"source": "runtime", "sandbox_id": "s1"})
    return tracer.start(name, attributes=attributes)


def through(pipeline: Pipeline, *spans: Span) -> list[dict[str, Any]]:
    """The spans as they would be stored, each with its resource's attributes."""
    for span in spans:
        span.finish()
    told, failed = pipeline.tell(spans, "s1")
    assert failed == 0
    return stored(pipeline.encode(told))


def stored(request: Any) -> list[dict[str, Any]]:
    found = []
    for part in json.loads(otlp.to_line(request))["resourceSpans"]:
        resource = attributes_of(part["resource"])
        found += [
            {**span, "resource": resource, "scope": s["scope"]} for s in part["scopeSpans"] for span in s["spans"]
        ]
    return found


def attributes_of(part: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in part.get("attributes", ())}


def guest(*names: str) -> Any:
    """A request of the guest, as it is behind the quarantine."""
    spans = [record(name, "kata-agent", a=1, b=2, c=3, d=4, e=5) for name in names]
    for span in spans:
        span.finish()
    return otlp.parse(otlp.encode(spans, "s1").data)


def test_the_environment_is_in_every_resource_and_ours_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,sandbox_id=lie,service.name=a,k=%20v")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pods")
    pipeline = Pipeline([])
    [ours] = through(pipeline, record())
    [theirs] = stored(pipeline.encode(pipeline.tell_request(guest("create"))))
    assert (ours["resource"]["service.name"], theirs["resource"]["service.name"]) == ("pods", "kata-agent")
    for span in (ours, theirs):
        assert span["resource"]["deployment.environment"] == "test"
        assert span["resource"]["sandbox_id"] == "s1"
        assert span["resource"]["k"] == " v"
        assert span["resource"]["telemetry.sdk.name"] == "opentelemetry"


def test_without_a_name_the_services_are_ours() -> None:
    assert through(Pipeline([]), record())[0]["resource"]["service.name"] == "kata"


def test_limits_hold_for_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "4")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "1")
    monkeypatch.setenv("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1")
    pipeline = Pipeline([])
    span = record(a="long text", b=2, c=3)
    for number in range(3):
        span.event("e", number=number, text="long text")
        span.link(SpanContext(1, 2 + number))
    [ours] = through(pipeline, span)
    [theirs] = stored(pipeline.encode(pipeline.tell_request(guest("create"))))
    assert len(ours["attributes"]) == len(theirs["attributes"]) == 4
    assert ours["droppedAttributesCount"] == 1
    assert theirs["droppedAttributesCount"] == 3
    assert (len(ours["events"]), ours["droppedEventsCount"]) == (2, 1)
    assert (len(ours["links"]), ours["droppedLinksCount"]) == (1, 2)
    assert all(len(event["attributes"]) == 1 for event in ours["events"])
    # By these a span is found, so they stay: what else it has goes first.
    assert attributes_of(ours)["source"] == "runti"
    assert attributes_of(ours)["sandbox_id"] == "s1"


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "٣"])
def test_a_limit_that_is_none_is_said_and_the_default_holds(text: str, caplog: pytest.LogCaptureFixture) -> None:
    variables = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": text, "OTEL_SPAN_LINK_COUNT_LIMIT": "7", "HOME": "/"}
    with caplog.at_level(logging.WARNING, "kata"):
        environment.tidy(variables)
    assert variables == {"OTEL_SPAN_LINK_COUNT_LIMIT": "7", "HOME": "/"}
    assert f"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: {text!r} is no number" in caplog.text


def test_limits_that_say_nothing_are_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    variables = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": " ", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "unset"}
    environment.tidy(variables)
    assert variables == {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "unset"}
    assert not caplog.records


class Processor(SpanProcessor):
    """Notes what it sees, and marks each span."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.seen.append(f"start {span.name}")
        span.set_attribute("marked", True)

    def on_end(self, span: Any) -> None:
        self.seen.append(f"end {span.name} {dict(span.attributes)['marked']}")

    def shutdown(self) -> None:
        self.seen.append("shutdown")


def test_processors_see_each_span_once_and_what_they_set_is_stored() -> None:
    processor = Processor()
    pipeline = Pipeline([processor])
    [ours] = through(pipeline, record("a"))
    [theirs] = stored(pipeline.encode(pipeline.tell_request(guest("b"))))
    assert processor.seen == ["start a", "end a True", "start b", "end b True"]
    assert attributes_of(ours)["marked"] is attributes_of(theirs)["marked"] is True
    pipeline.close()
    assert processor.seen[-1] == "shutdown"


def test_a_span_that_was_journaled_is_the_same_when_it_ends() -> None:
    processor = Processor()
    pipeline = Pipeline([processor])
    span = record("lasts", a=1)
    told, _ = pipeline.tell([span], "s1", ended=False)
    [opened] = stored(pipeline.encode(told))
    assert "endTimeUnixNano" not in opened
    assert attributes_of(opened)["marked"] is True
    span.set(b=2)
    span.event("later")
    span.fail("broken")
    [ended] = through(pipeline, span)
    assert processor.seen == ["start lasts", "end lasts True"]
    assert ended["startTimeUnixNano"] == opened["startTimeUnixNano"]
    assert attributes_of(ended)["b"] == "2"
    assert attributes_of(ended)["marked"] is True
    assert [event["name"] for event in ended["events"]] == ["later"]
    assert ended["status"] == {"code": 2, "message": "broken"}


def test_a_span_that_ends_while_it_is_journaled_ends_once() -> None:
    processor = Processor()
    pipeline = Pipeline([processor])
    span = record("quick")
    span.finish()
    pipeline.tell([span], "s1", ended=False)
    through(pipeline, span)
    assert processor.seen == ["start quick", "end quick True"]


class Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("no")

    def on_end(self, span: Any) -> None:
        span._attributes._dict["odd"] = object()
        raise RuntimeError("no")


def test_a_processor_that_fails_takes_no_span_from_anybody(caplog: pytest.LogCaptureFixture) -> None:
    found = through(Pipeline([Broken()]), record("a"), record("b"))
    assert [span["name"] for span in found] in (["a", "b"], [])  # what it made unfit can't be stored
    assert caplog.text.count("span processor Broken: RuntimeError: no") == 1


def test_a_processor_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KATA_SPAN_PROCESSORS", "nothing")
    assert len(through(Pipeline(), record())) == 1
    assert "KATA_SPAN_PROCESSORS: 'nothing'" in caplog.text


def test_state_and_kind_and_remote_parent_stay() -> None:
    tracer = Tracer("kata", lambda _: None)
    span = tracer.start("call", parent=SpanContext(10, 11, 1, "foo@=1,0a=2"), kind=Kind.SERVER)
    [found] = through(Pipeline([]), span)
    assert found["traceState"] == "foo@=1,0a=2"
    assert (found["kind"], found["flags"], found["parentSpanId"]) == (2, 0x300, f"{11:016x}")


# The API


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    import opentelemetry.context as api

    monkeypatch.setattr(api, "_RUNTIME_CONTEXT", api._RUNTIME_CONTEXT)
    monkeypatch.setenv("OTEL_PYTHON_CONTEXT", "kata")
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "kata")
    environment.announce()
    return []


def tracer_of(ended: list[Span]) -> Any:
    from kata_traces.sdk.api import KataProvider

    return KataProvider().get_tracer("library", "1.0")


def test_the_apis_current_span_is_ours_and_the_other_way_round(ended: list[Span]) -> None:
    from opentelemetry import trace

    from kata_telemetry.span import current

    ours, theirs = Tracer("kata", ended.append), tracer_of(ended)
    assert not trace.get_current_span().get_span_context().is_valid
    with site.root(ours, "root") as root:
        assert trace.get_current_span().get_span_context().span_id == root.context.span_id
        with theirs.start_as_current_span("GET", attributes={"a": 1, "none": None}) as get:
            assert current().name == "GET"
            assert trace.get_current_span() is get or trace.get_current_span() == get
            with site.span("inner"):
                assert trace.get_current_span().get_span_context().span_id == current().context.span_id
                with theirs.start_as_current_span("deep"):
                    pass
            assert current().name == "GET"
        assert current() is root
    names = {span.name: span for span in ended}
    assert list(names) == ["deep", "inner", "GET", "root"]
    assert names["GET"].parent_id == root.context.span_id
    assert names["inner"].parent_id == names["GET"].context.span_id
    assert names["deep"].parent_id == names["inner"].context.span_id
    [told] = through(Pipeline([]), names["GET"])
    assert told["scope"] == {"name": "library", "version": "1.0"}
    assert "otel.scope.name" not in attributes_of(told)


def test_an_error_in_a_library_is_on_its_span(ended: list[Span]) -> None:
    theirs = tracer_of(ended)
    root = site.root(Tracer("kata", ended.append), "root")
    with root, pytest.raises(OSError, match="away"), theirs.start_as_current_span("GET"):
        raise OSError("away")
    assert (int(ended[0].status), ended[0].events[0].name) == (2, "exception")


def test_without_a_trace_a_library_records_nothing(ended: list[Span]) -> None:
    with tracer_of(ended).start_as_current_span("GET") as span:
        assert not span.is_recording()
    assert ended == []


async def test_tasks_inherit_a_librarys_span(ended: list[Span]) -> None:
    import asyncio

    async def work() -> None:
        with site.span("inner"):
            pass

    with site.root(Tracer("kata", ended.append), "root"), tracer_of(ended).start_as_current_span("GET") as get:
        await asyncio.create_task(work())
    assert ended[0].parent_id == get.get_span_context().span_id


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_whenever_the_api_is_imported(first: bool, tmp_path: Path) -> None:
    """A process in which somebody has imported it before tracing went on, and one in which it is imported later."""
    code = f"""
import sys
if {first}:
    from opentelemetry import trace
    trace.get_tracer("early")
from pathlib import Path
from kata_traces.sdk import environment
from kata_telemetry.span import Site, Tracer
assert {first} or not any(name.startswith("opentelemetry") for name in sys.modules)
environment.announce()
ended = []
with Site(package="p", subsystem="s").root(Tracer("kata", ended.append), "root") as root:
    from opentelemetry import trace
    assert trace.get_current_span().get_span_context().span_id == root.context.span_id
    with trace.get_tracer("library").start_as_current_span("GET"):
        pass
print(*(span.name for span in ended))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("GET root\n", "")
