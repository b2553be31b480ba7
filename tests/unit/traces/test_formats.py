"""Traces for other tools: Mermaid, Perfetto, Jaeger, and the page's data."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kata_traces.read.trace import Trace
from kata_traces.views import html, jaeger, mermaid, perfetto
from kata_traces.views.values import portable
from support.odd_traces import HOSTILE, hostile, trace_of, traces
from support.traces import BEGIN, MS, TRACE, Maker, container_start

few = settings(max_examples=40, deadline=None)


def embedded(page: str) -> Any:
    """The trace in a page, as a browser would find it."""

    class Finder(HTMLParser):
        scripts: list[tuple[str, str]]
        kind = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "script":
                self.scripts.append((dict(attrs).get("type") or "", ""))
                self.kind = "script"

        def handle_data(self, data: str) -> None:
            if self.kind:
                self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

        def handle_endtag(self, tag: str) -> None:
            self.kind = ""

    finder = Finder()
    finder.scripts = []
    finder.feed(page)
    # No text of a trace made another one.
    assert [kind for kind, _ in finder.scripts] == ["application/json", ""]
    return json.loads(finder.scripts[0][1])


# --- Mermaid


def test_mermaid_of_a_container_start() -> None:
    lines = mermaid.render(trace_of(container_start(), name="web", outcome="exit 7")).splitlines()
    assert lines[:4] == [
        "gantt",
        "  title web, 3.01 s, exit 7, 0.1 % unaccounted",
        "  dateFormat x",
        "  axisFormat %S.%L s",
    ]
    assert "  boot.kernel 1.25 s :403, 1655" in lines
    assert "  12 x load_kernel_module 33.6 ms :done, 2395, 2431" in lines
    sections = [line.split()[1] for line in lines if line.startswith("  section ")]
    assert sections == ["runtime", "QEMU", "kernel", "agent", "container"]


def test_mermaid_marks_failures() -> None:
    chart = mermaid.render(trace_of(container_start(error="no such file")))
    assert chart.count(":crit, ") == 4
    assert "  crun create 123 ms :crit, 2573, 2696" in chart


TASK = re.compile(r"  [\w ._+/()=µ-][\w ._+/()=µ%-]* :(crit, |done, )?\d+, \d+")


@given(traces())
@few
def test_mermaid_is_bounded_and_well_formed(trace: Trace) -> None:
    chart = mermaid.render(trace, rows=5)
    tasks = [line for line in chart.splitlines()[4:] if not line.startswith(("  section ", "  %% "))]
    assert 1 <= len(tasks) <= 5
    for task in tasks:
        assert TASK.fullmatch(task), task
        start, end = (int(number) for number in re.findall(r"(\d+), (\d+)$", task)[0])
        assert start < end


def test_mermaid_takes_no_syntax_from_a_trace() -> None:
    make = Maker()
    root = make.add("section x", 0, 1000)
    make.add("click a call b()", 1, 900, root)
    chart = mermaid.render(trace_of(make))
    assert "  (section x) 1.00 s :" in chart
    assert "  (click a call b()) 899 ms :" in chart
    assert "%%{" not in mermaid.render(trace_of(hostile()))


# --- Perfetto


def slices(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in content["traceEvents"] if event["ph"] == "X"]


def test_perfetto_of_a_container_start() -> None:
    content = perfetto.to_events(trace_of(container_start()))
    threads = [e["args"]["name"] for e in content["traceEvents"] if e["name"] == "thread_name"]
    assert threads[:2] == ["runtime", "runtime (2)"]
    assert {name.partition(" (")[0] for name in threads} == {"runtime", "QEMU", "kernel", "agent", "container"}
    [kernel] = [event for event in slices(content) if event["name"] == "boot.kernel"]
    assert (kernel["ts"], kernel["dur"]) == (402_800.0, 1_251_800.0)
    assert kernel["args"]["critical_path_us"] == 1_251_800.0
    instants = [event for event in content["traceEvents"] if event["ph"] == "i"]
    assert next(event["name"] for event in instants if event["tid"] == kernel["tid"]).startswith("Linux version")
    assert content["otherData"]["begin_unix_ns"] == str(BEGIN)


@given(traces())
@few
def test_every_span_is_on_one_track_and_none_cuts_another(trace: Trace) -> None:
    content = perfetto.to_events(trace)
    json.dumps(content, allow_nan=False)
    found = slices(content)
    assert Counter(event["args"]["span_id"] for event in found) == Counter(span.span_id for span in trace.spans)
    by_track: dict[int, list[tuple[float, float]]] = {}
    for event in found:
        by_track.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for track in by_track.values():
        # Perfetto takes them in this order: an outer slice stands before those within it.
        assert track == sorted(track, key=lambda piece: (piece[0], -piece[1]))
        for index, (start, end) in enumerate(track):
            for other_start, other_end in track[index + 1 :]:
                assert other_start >= end or other_end <= end, (start, end, other_start, other_end)


@pytest.mark.slow
def test_twenty_thousand_spans_that_cut_each_other() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 40_000)
    for number in range(20_000):
        make.add("task", number, number + 20_000, root)
    content = perfetto.to_events(trace_of(make))
    assert len(slices(content)) == 20_001
    threads = [event["tid"] for event in content["traceEvents"] if event["name"] == "thread_name"]
    assert len(threads) == len(set(threads))


# --- Jaeger


def test_jaeger_of_a_container_start() -> None:
    content = jaeger.to_jaeger(trace_of(container_start(error="no such file")))
    assert set(content) == {"data", "total", "limit", "offset", "errors"}
    [trace] = content["data"]
    assert set(trace) == {"traceID", "spans", "processes", "warnings"}
    assert {process["serviceName"] for process in trace["processes"].values()} == {"kata", "kata-agent"}
    root = trace["spans"][0]
    assert root["references"] == []
    assert root["startTime"] == BEGIN // 1000
    [crun] = [span for span in trace["spans"] if span["operationName"] == "crun create"]
    assert trace["processes"][crun["processID"]]["serviceName"] == "kata-agent"
    assert crun["references"][0]["refType"] == "CHILD_OF"
    assert crun["references"][0]["traceID"] == TRACE
    assert {"key": "error", "type": "bool", "value": True} in crun["tags"]
    assert {"key": "otel.status_description", "type": "string", "value": "no such file"} in crun["tags"]
    [kernel] = [span for span in trace["spans"] if span["operationName"] == "boot.kernel"]
    assert kernel["duration"] == 1_251_800 - 1  # boot.initramfs begins there
    assert kernel["logs"][0]["fields"][0] == {
        "key": "event",
        "type": "string",
        "value": "Linux version 6.1.0-41-cloud-amd64",
    }
    [server] = [span for span in trace["spans"] if span["operationName"] == "create_container"]
    assert {"key": "span.kind", "type": "string", "value": "server"} in server["tags"]


def test_jaeger_walks_from_one_stage_to_the_one_before() -> None:
    """Its critical path takes a span that ended before the next one began, not one that ended just then."""
    make = Maker()
    root = make.add("rootSpan", 0, 60)
    for name, begin, end in (("firmware", 10, 20), ("kernel", 20, 50), ("none", 50, 50), ("beside", 51, 60)):
        make.add(name, begin, end, root)
    [trace] = jaeger.to_jaeger(trace_of(make))["data"]
    spans = {span["operationName"]: span for span in trace["spans"]}
    took = {name: span["duration"] for name, span in spans.items()}
    assert took == {"rootSpan": 60_000, "firmware": 9_999, "kernel": 29_999, "none": 0, "beside": 9_000}
    assert spans["firmware"]["startTime"] + took["firmware"] < spans["kernel"]["startTime"]


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ({"intValue": "5"}, {"type": "int64", "value": 5}),
        ({"intValue": str(2**63 - 1)}, {"type": "int64", "value": "9223372036854775807"}),
        ({"boolValue": True}, {"type": "bool", "value": True}),
        ({"doubleValue": 0.5}, {"type": "float64", "value": 0.5}),
        ({"doubleValue": float("nan")}, {"type": "string", "value": "nan"}),
        ({"stringValue": "x"}, {"type": "string", "value": "x"}),
    ],
)
def test_jaeger_types(value: dict[str, Any], tag: dict[str, Any]) -> None:
    make = Maker()
    make.add("rootSpan", 0, 1)
    make.spans[0]["span"]["attributes"] = [{"key": "k", "value": value}]
    assert jaeger.to_jaeger(trace_of(make))["data"][0]["spans"][0]["tags"] == [{"key": "k", **tag}]


@given(traces())
@few
def test_jaeger_has_every_span_once(trace: Trace) -> None:
    content = jaeger.to_jaeger(trace)
    json.dumps(content, allow_nan=False)
    [found] = content["data"]
    assert sorted(span["spanID"] for span in found["spans"]) == sorted(span.span_id for span in trace.spans)
    for span in found["spans"]:
        assert span["duration"] >= 0
        assert span["processID"] in found["processes"]


# --- the page


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    page = html.render(trace_of(container_start(), name="web", command="sh"))
    assert "<title>Trace of 3f9c2a1b7e54 web sh</title>" in page
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacent", page)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "%%" not in page


def test_the_pages_data() -> None:
    trace = trace_of(container_start(error="no such file"))
    data = embedded(html.render(trace))
    assert data["begin"] == str(BEGIN)
    assert sum(end - start for _, start, end in data["slices"]) == trace.root.duration
    assert sum(end - start for _, start, end in data["critical"]) == trace.root.duration
    rows, values = data["spans"], data["values"]
    assert [row[0] for row in rows] == [span.span_id for span in trace.walk()]
    assert all(row[1] < index for index, row in enumerate(rows))
    crun = next(row for row in rows if values[row[2]] == "crun create")
    assert (crun[7], crun[8], crun[10]) == (2573 * MS, 123 * MS, html.FAILED)
    assert values[crun[12]] == "no such file"
    attributes = {values[crun[13][i]]: values[crun[13][i + 1]] for i in range(0, len(crun[13]), 2)}
    assert attributes["container_id"] == "c1"
    assert data["clock"] is None


def test_hostile_texts_stay_data() -> None:
    trace = trace_of(hostile(), name=HOSTILE[0], command=HOSTILE[2], outcome=HOSTILE[1])
    page = html.render(trace)
    data = embedded(page)
    assert page.isascii() or not set(page) & set("\u2028\ud800\u202e")
    assert page.count("</script>") == 2
    assert data["name"] == HOSTILE[0]
    assert {data["values"][row[2]] for row in data["spans"]} >= set(HOSTILE)


@given(traces())
@few
def test_the_page_has_every_span_once(trace: Trace) -> None:
    data = json.loads(json.dumps(html.to_page_model(trace), allow_nan=False))
    assert sorted(row[0] for row in data["spans"]) == sorted(span.span_id for span in trace.spans)
    # Contiguous subtrees: the page relies on it.
    for index, row in enumerate(data["spans"]):
        assert row[1] < index
        assert row[6] == (data["spans"][row[1]][6] + 1 if row[1] >= 0 else 0)


def test_the_guests_clock_is_the_runtimes_word() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    reading = {"offset_ns": BEGIN - 7, "bound_ns": 250_000, "wall_error_ns": -670}
    for agent, readings in ((False, reading), (True, {**reading, "offset_ns": 1}), (False, {"offset_ns": 3})):
        make.add("clockSync", 5, 10, root, agent=agent)
        pairs = [{"key": key, "value": {"intValue": str(value)}} for key, value in readings.items()]
        make.spans[-1]["span"]["attributes"] = pairs
    clock = html.to_page_model(trace_of(make))["clock"]
    assert clock == {
        "readings": [{"at": 10 * MS, "offset": str(BEGIN - 7), "bound": 250_000, "wall": -670}],
        "service": "kata-agent",
        "spans": 1,
    }


def test_values_that_javascript_cannot_hold() -> None:
    assert [portable(value) for value in (1, True, 2**53, -(2**60), 0.5, float("inf"), "x", None)] == [
        1, True, "9007199254740992", "-1152921504606846976", 0.5, "inf", "x", "None",
    ]  # fmt: skip
    assert html._Table().pairs({"1": 1, "a": True, "b": 1.0}) == [0, 1, 2, 3, 4, 5]


def test_the_scripts_are_all_in_the_page() -> None:
    folder = Path(html.__file__).parent / "page"
    assert {path.stem for path in folder.glob("*.js")} == {*html.SCRIPTS, *html.SERVED, *html.SITE}
