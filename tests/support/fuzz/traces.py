"""Spans and traces: what guests send, what files hold, what headers say, and every view of what came of it."""

import functools
import io
import json
from collections.abc import Mapping
from typing import Any

from kata_telemetry import otlp, wire
from kata_telemetry.propagation import extract
from kata_telemetry.w3c import SpanContext, tracestate
from kata_traces.read import advice, analysis, chain, check, compare, explain, failure, metrics, remarks
from kata_traces.read.foreign import UnknownFormatError, otlp_lines
from kata_traces.read.trace import Trace, load
from kata_traces.read.units import nanoseconds
from kata_traces.send.settings import CollectorSettings, SettingsError
from kata_traces.store.errors import StoreError
from kata_traces.store.quarantine import Quarantine
from kata_traces.store.spool import AgentMeta
from kata_traces.store.store import Meta
from kata_traces.views import chain as chain_view
from kata_traces.views import html, jaeger, mermaid, model, perfetto, svg, text
from kata_traces.views.serve import query, receiver
from kata_traces.views.serve.index import summarize
from support.fuzz.target import Shape, Target, text_of
from support.traces import container_start

__all__ = ["TARGETS"]


def _frames(data: bytes) -> None:
    """Cut anywhere, a stream gives the same frames."""
    whole = list(wire.Frames().feed(data))
    parts: list[bytes] = []
    stream = wire.Frames()
    for at in range(0, len(data), max(1, len(data) // 7)):
        parts += stream.feed(data[at : at + max(1, len(data) // 7)])
    assert parts == whole
    assert stream.held <= wire.MAX_FRAME + wire.NUMBER.size


def _spans(data: bytes) -> None:
    """What the quarantine lets through is this sandbox's, and can be written and read."""
    quarantine = Quarantine("s1", 17 * 10**17, now=lambda: 2**62)
    clean = quarantine.rebuild(data)
    if clean is None:
        return
    line = otlp.to_line(clean)
    assert otlp.to_request(line) == clean
    trace = load([line])
    assert trace is not None
    assert {span.trace_id for span in trace.spans} == {(quarantine.trace_id or b"").hex()}
    assert set(trace.services) == {"kata-agent"}


def _otlp(data: bytes) -> None:
    otlp.to_line(otlp.parse(data))


def _line(data: bytes) -> None:
    request = otlp.to_request(data)
    again = otlp.to_request(otlp.to_line(request))
    assert again.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)


def _show(trace: Trace) -> None:
    """Everything that shows or judges a trace."""
    text.plain(text.render(trace, text.Options()), io.StringIO())
    for content in (
        jaeger.to_jaeger(trace),
        perfetto.to_events(trace),
        model.to_model(trace),
        html.to_page_model(trace),
    ):
        json.dumps(content)
    for page in (html.render(trace), svg.render(trace), mermaid.render(trace)):
        page.encode()
    list(chain_view.blame_lines(trace, 80)), list(chain_view.chain_lines(trace, 80))
    explain.explain(trace), failure.failure_of(trace), analysis.split(trace), analysis.critical_path(trace.root)
    list(advice.advice(trace)), list(remarks.remarks(trace)), chain.blame(trace), list(chain.chain(trace))
    check.summary(trace), compare.run_of(trace), trace.misfits(), trace.negative
    for openmetrics in (True, False):
        metrics.expose([trace], openmetrics=openmetrics).encode()
    for wanted in ("name:a -b", ">5s kernel>1s", "a=b"):
        query.parse(wanted)(summarize("id", trace))


def _views(data: bytes) -> None:
    if trace := load(data.splitlines()):
        _show(trace)


def _file(data: bytes) -> None:
    if trace := load(otlp_lines(data)):
        _show(trace)


def _received(data: bytes) -> None:
    class Index:
        def add(self, identity: str, lines: list[str]) -> None:
            assert len(identity) <= 37
            load(lines)

    receiver._take(Index(), data.decode())  # type: ignore[arg-type] # all that it needs of one


def _meta(data: bytes) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(content, Mapping):
        AgentMeta.from_json(content)
        if trace := load([_LINE], meta=Meta.from_json(content)):
            _show(trace)


def _traceparent(data: bytes) -> None:
    header = data.decode("utf-8", "surrogateescape")
    if context := SpanContext.from_traceparent(header):
        assert SpanContext.from_traceparent(context.to_traceparent()) == context
    kept = tracestate([header])
    assert len(kept) <= 512
    assert tracestate([kept]) == kept
    first, _, rest = data.partition(b"\n")
    extract([("traceparent", first), ("tracestate", rest), ("other", rest)])


def _query(data: bytes) -> None:
    query.parse(data.decode("utf-8", "replace"))(_summary())


@functools.cache
def _summary() -> Any:
    trace = load(_LINES.splitlines())
    assert trace is not None
    return summarize("id", trace)


def _duration(data: bytes) -> None:
    assert 0 <= nanoseconds(data.decode("utf-8", "replace")) < 10**18


def _settings(data: bytes) -> None:
    """One variable in each line; what they come to says the same when it is told to another process."""
    environment = dict(line.partition("=")[::2] for line in data.decode("utf-8", "replace").split("\n"))
    found = CollectorSettings.resolve(environment)
    if found:
        again = CollectorSettings.resolve(found.environment())
        assert again is not None
        assert (again.endpoint, again.protocol, again.headers) == (found.endpoint, found.protocol, found.headers)


def _pretty(content: Any) -> bytes:
    return json.dumps(content).encode()


_LINES = "\n".join(container_start(error="no such file").lines()).encode()
_LINE = container_start().lines(per_line=6)[0].encode()
_REQUEST = otlp.from_line(_LINE)
_TRACE = load([_LINE])
assert _TRACE is not None
_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_META = {
    "sandbox_id": "s",
    "name": "n",
    "command": "c",
    "start": 1,
    "pid": 2,
    "trace_id": "",
    "outcome": "exit 1",
    "failure": "f",
    "labels": {"pod": "p"},
    "lost": {"why": 3},
    "spans": 4,
    "end": 5,
    "root_id": "0" * 15 + "1",
}
_P = "OTEL_EXPORTER_OTLP_"
TARGETS = (
    Target(
        "span-frames",
        "kata_telemetry.wire.Frames",
        _frames,
        (wire.frame(b"abc") * 3, wire.frame(b"")),
        (wire.FrameError,),
    ),
    Target("spans", "kata_traces.store.quarantine.Quarantine.rebuild", _spans, (_REQUEST,), ()),
    Target("otlp-protobuf", "kata_telemetry.otlp.parse", _otlp, (_REQUEST,), (otlp.MalformedOtlpError,)),
    Target("otlp-json", "kata_telemetry.otlp.to_request", _line, (_LINE,), (otlp.MalformedOtlpError,), Shape.JSON),
    Target(
        "otlp-received",
        "kata_traces.views.serve.receiver",
        _received,
        (_LINE,),
        (ValueError, AttributeError, TypeError, StoreError),
        Shape.JSON,
    ),
    Target("trace-lines", "kata_traces.read.trace.load and every view", _views, (_LINE,), (), Shape.JSON, seconds=8.0),
    Target(
        "jaeger-file",
        "kata_traces.read.foreign: Jaeger's",
        _file,
        (_pretty(jaeger.to_jaeger(_TRACE)),),
        (UnknownFormatError,),
        Shape.JSON,
        seconds=8.0,
    ),
    Target(
        "perfetto-file",
        "kata_traces.read.foreign: Perfetto's",
        _file,
        (_pretty(perfetto.to_events(_TRACE)),),
        (UnknownFormatError,),
        Shape.JSON,
        seconds=8.0,
    ),
    Target(
        "trace-meta", "kata_traces.store: meta.json, agent.json", _meta, (_pretty(_META),), (), Shape.JSON, seconds=8.0
    ),
    Target(
        "traceparent",
        "kata_telemetry.w3c, kata_telemetry.propagation",
        _traceparent,
        text_of((_PARENT, f"{_PARENT}\na=b,c@d=e", "a=1, b@x=2,,c=3")),
        (),
        Shape.TEXT,
        text_of((",a=b", "-", "00-", "=", "@")),
    ),
    Target(
        "trace-query",
        "kata_traces.views.serve.query",
        _query,
        text_of(('since:2h -name:x "a b" kernel>1s >5ms state:failed', "since:2026-11-27 until:1d a=b")),
        (),
        Shape.TEXT,
        text_of(("since:", "until:", "0001-01-01", "9999-12-31T23:59:59", ">", "<=", '"', "-")),
    ),
    Target(
        "duration",
        "kata_traces.read.units.nanoseconds",
        _duration,
        text_of(("5ms", "0.2s", "800us", "2h", "7")),
        (ValueError,),
        Shape.TEXT,
        text_of(("µs", "d", ".")),
    ),
    Target(
        "export-settings",
        "kata_traces.send.settings",
        _settings,
        text_of(
            (
                f"{_P}ENDPOINT=http://h:4318\n{_P}HEADERS=a=b%20c,d=e\n{_P}TIMEOUT=5000",
                f"{_P}TRACES_ENDPOINT=https://u:p@h/x\n{_P}PROTOCOL=http/protobuf",
                f"{_P}ENDPOINT=unix:/a\n{_P}COMPRESSION=gzip",
            )
        ),
        (SettingsError,),
        Shape.TEXT,
        text_of((_P, "http://", "[::1]", "@", "%", ":99999", ",")),
    ),
)
