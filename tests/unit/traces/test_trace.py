"""The model of a trace: tree, critical path, stages, and lines of any kind."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_traces.read.analysis import critical_path, split
from kata_traces.read.stages import Lane, Stage, lane, rule
from kata_traces.read.trace import Trace, load
from kata_traces.store.store import Meta
from support.traces import BEGIN, MS, Maker, container_start


def trace_of(make: Maker, **meta: Any) -> Trace:
    trace = load(make.lines(), meta=Meta("s1", **meta))
    assert trace is not None
    return trace


def path_names(trace: Trace) -> list[str]:
    names = [segment.span.name for segment in critical_path(trace.root)]
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


def test_a_container_start() -> None:
    trace = trace_of(container_start())
    assert trace.root.name == "rootSpan"
    assert len(trace.spans) >= 90
    assert trace.services == ["kata", "kata-agent"]
    assert trace.orphans == trace.negative() == []
    assert trace.misfits() == []
    parts = split(trace)
    others = {Stage.EXEC, Stage.RESTORE, Stage.HOTPLUG}
    assert list(parts.stages) == [stage for stage in Stage if stage not in others]
    assert sum(parts.stages.values()) + parts.unaccounted == parts.total == 3012_400_000
    assert parts.stages[Stage.KERNEL] == 1251_800_000
    assert parts.unaccounted < 0.01 * parts.total
    assert parts.gaps[0].end - parts.gaps[0].start <= parts.unaccounted
    names = path_names(trace)
    for expected in (
        "loadConfig",
        "boot.kernel",
        "imports",
        "virtiofs_mount",
        "crun create",
        "process",
        "wait_process",
        "sync",
    ):
        assert expected in names
    assert "startVsockBackend" not in names


def test_self_time_counts_overlapping_children_once() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    make.add("a", 10, 40, root)
    make.add("b", 30, 60, root)
    make.add("late", 90, 130, root)
    trace = trace_of(make)
    assert trace.root.self_time == 40 * MS
    (misfit,) = trace.misfits()
    assert (misfit.span.name, misfit.before, misfit.after) == ("late", 0, 30 * MS)
    assert trace.misfits(tolerance=31 * MS) == []


def test_the_critical_path_takes_the_child_that_ended_last() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    make.add("early", 0, 30, root)
    make.add("short", 40, 50, root)
    make.add("long", 35, 90, root)
    make.add("background", 20, 300, root)
    trace = trace_of(make)
    # The one that outlasts the root counts up to the root's end.
    assert path_names(trace) == ["rootSpan", "background"]
    make.spans.pop()
    assert path_names(trace_of(make)) == ["early", "rootSpan", "long", "rootSpan"]


def test_a_waiting_span_leaves_the_time_to_what_works_beside_it() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    start = make.add("StartVM", 0, 90, root)
    make.add("waitVM", 10, 80, start)
    make.add("boot.kernel", 20, 50, start)
    make.add("unheardOf", 82, 85, start)
    stages = split(trace_of(make)).stages
    assert stages == {Stage.QEMU: 20 * MS, Stage.KERNEL: 30 * MS, Stage.AGENT: 40 * MS}


def test_the_critical_path_leads_through_what_works_beside_a_waiting_span() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    make.add("boot.kernel", 10, 30, root)
    make.add("waitVM", 5, 50, root)
    make.add("Start", 55, 70, root)
    make.add("process", 65, 90, root)
    wait = make.add("Wait", 68, 95, root)
    make.add("AgentService.WaitProcess", 69, 94, wait)
    path = [(s.span.name, (s.start - BEGIN) // MS, (s.end - BEGIN) // MS) for s in critical_path(trace_of(make).root)]
    assert path == [
        ("rootSpan", 0, 5),
        ("waitVM", 5, 10),
        ("boot.kernel", 10, 30),
        ("waitVM", 30, 50),
        ("rootSpan", 50, 55),
        ("Start", 55, 70),
        ("process", 70, 90),
        ("AgentService.WaitProcess", 90, 94),
        ("Wait", 94, 95),
        ("rootSpan", 95, 100),
    ]


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("AgentService.CreateSandbox", Stage.SANDBOX),
        ("rootSpan", None),
        ("AgentService.GetGuestDetails", Stage.AGENT),
        ("crun delete", Stage.STOP),
        ("boot.firmware", Stage.FIRMWARE),
    ],
)
def test_stages_by_name(name: str, stage: Stage | None) -> None:
    found = rule(name)
    assert found is not None
    assert found.stage is stage


def test_unknown_names_and_lanes() -> None:
    assert rule("whatever") is None
    assert lane("whatever", agent=True) is Lane.AGENT
    assert lane("whatever", agent=False) is Lane.RUNTIME
    assert lane("qmp.quit", agent=False) is Lane.QEMU
    assert lane("crun start", agent=True) is Lane.CONTAINER


def test_an_end_supersedes_a_start_and_nobody_else_does() -> None:
    make = container_start()
    lines = make.lines()
    started = json.loads(lines[0])
    root = started["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    del root["endTimeUnixNano"]
    started["resourceSpans"][0]["scopeSpans"][0]["spans"] = [root]
    forged = json.loads(json.dumps(started))
    forged["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"] = "kata-agent"
    forged["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= {"name": "gotcha", "endTimeUnixNano": str(BEGIN)}
    for order in (
        [json.dumps(started), *lines],
        [*lines, json.dumps(started)],
        [json.dumps(started), json.dumps(forged), *lines],
    ):
        trace = load(order)
        assert trace is not None
        assert not trace.root.open
        assert trace.root.duration == 3012_400_000
        assert trace.root.name == "rootSpan"


def test_a_killed_sandbox_has_a_root_from_its_meta() -> None:
    lines = container_start().lines()
    first = json.loads(lines[0])
    del first["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    meta = Meta(
        "s1", trace_id="4bf92f3577b34da6a3ce929d0e0e4736", root_id=f"{1:016x}", root_name="rootSpan", start=BEGIN
    )
    trace = load([json.dumps(first), *lines[1:]], meta=meta)
    assert trace is not None
    assert trace.root.name == "rootSpan"
    assert trace.root.open
    # The last thing known of it.
    assert trace.root.end == BEGIN + 3011_000_000
    assert trace.orphans == []
    alone = load([], meta=meta, live=True, now=BEGIN + 5 * MS)
    assert alone is not None
    assert alone.root.duration == 5 * MS


def test_nothing_is_no_trace() -> None:
    assert load([]) is None
    assert load(["", "\n", "{"]) is None


def test_orphans_remote_parents_and_other_traces() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100, "00000000000000aa")
    make.add("child", 1, 2, root)
    make.add("lost", 3, 4, "00000000000000ff")
    other = Maker()
    other.add("foreign", 0, 1)
    lines = make.lines() + [line.replace("4bf92f", "000000") for line in other.lines()]
    trace = load(lines, meta=Meta("s1", root_id=root))
    assert trace is not None
    assert trace.root.name == "rootSpan"
    assert [span.name for span in trace.orphans] == ["lost"]
    assert trace.foreign == 1


def test_circles_of_parents_are_cut() -> None:
    make = Maker()
    make.add("rootSpan", 0, 100)
    make.add("a", 1, 50, f"{3:016x}")
    make.add("b", 2, 40, f"{2:016x}")
    make.add("self", 5, 6, f"{4:016x}")
    trace = trace_of(make)
    assert sorted(span.name for span in trace.walk()) == ["a", "b", "rootSpan", "self"]
    make.spans.pop(0)
    trace = trace_of(make)
    assert len(list(trace.walk())) == 3
    assert critical_path(trace.root)


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "[1]",
        '{"resourceSpans":{"a":1}}',
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"a"}]}]}]}',
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"a","spanId":"b","startTimeUnixNano":Infinity}]}]}]}',
        "[" * 100_000,
    ],
)
def test_lines_of_another_kind_are_counted(line: str) -> None:
    trace = load([line, *container_start().lines()])
    assert trace is not None
    assert trace.broken == 1


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(0, 2**32))
def test_a_store_that_was_cut_off_is_still_a_trace(cut: int, seed: int) -> None:
    content = "".join(line + "\n" for line in container_start().lines(per_line=10)).encode()
    cut %= len(content)
    lines = content[:cut].splitlines(keepends=True)
    random.Random(seed).shuffle(lines)
    trace = load(lines, meta=Meta("s1", trace_id="4bf92f3577b34da6a3ce929d0e0e4736", root_id=f"{1:016x}", start=BEGIN))
    assert trace is not None
    assert trace.broken <= 1
    check_invariants(trace)


def check_invariants(trace: Trace) -> None:
    assert len(list(trace.walk())) == len(trace.spans)
    root = trace.root
    path = critical_path(root)
    assert all(segment.start < segment.end for segment in path)
    if root.duration > 0:
        assert (path[0].start, path[-1].end) == (root.start, root.end)
        assert all(one.end == other.start for one, other in pairwise(path))
    parts = split(trace)
    assert sum(parts.stages.values()) + parts.unaccounted == parts.total
    assert parts.unaccounted >= 0
    assert sum(piece.end - piece.start for piece in parts.slices) == parts.total
    assert all(one.end == other.start for one, other in pairwise(parts.slices))
    assert all(one.stage != other.stage for one, other in pairwise(parts.slices))
    assert all(span.self_time <= max(span.duration, 0) for span in trace.spans)


NAMES = [
    "create",
    "StartVM",
    "waitVM",
    "boot.kernel",
    "wait_process",
    "crun create",
    "other",
    "AgentService.WaitProcess",
]


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.integers(-20, 100), st.integers(-5, 100), st.integers(0, 14)), max_size=14
    )
)
def test_invariants_of_any_tree(shape: list[tuple[str, int, int, int]]) -> None:
    make = Maker()
    make.add("rootSpan", 0, 80)
    for name, start, length, parent in shape:
        make.add(name, start, start + length, f"{parent:016x}")
    trace = load(make.lines(), meta=Meta("s1", root_id=f"{1:016x}"))
    assert trace is not None
    check_invariants(trace)
    assert split(trace).stages == _slow_split(trace)


def _slow_split(trace: Trace) -> dict[Stage, int]:
    """The same by looking at every millisecond."""
    totals: dict[Stage, int] = {}
    root = trace.root
    for moment in range(root.start, root.end, MS):
        active = [s for s in trace.spans if s.rule.stage and s.start <= moment < s.end and s.start < s.end]
        busy = set()
        for span in active:
            parent = span.parent
            while parent and parent not in [
                s for s in trace.spans if s.rule.stage and max(s.start, root.start) < min(s.end, root.end)
            ]:
                parent = parent.parent
            busy.add(parent.span_id if parent else "")
        leaves = [span for span in active if span.span_id not in busy]
        if leaves:
            order = {span.span_id: index for index, span in enumerate(trace.walk())}
            best = min(leaves, key=lambda s: (s.rule.role, -s.depth, -max(s.start, 0), order[s.span_id]))
            assert best.rule.stage
            totals[best.rule.stage] = totals.get(best.rule.stage, 0) + MS
    return totals


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["deep", "parallel", "in turn"])
def test_twenty_thousand_spans(shape: str) -> None:
    """As many as a guest may have, in shapes that would take a quadratic algorithm minutes."""
    make = Maker()
    root = parent = make.add("rootSpan", 0, 20_000)
    for number in range(20_000):
        begin, end = (number, number + 0.5) if shape == "in turn" else (0, 20_000)
        span = make.add("crun start" if number % 2 else "waitVM", begin, end, parent)
        parent = span if shape == "deep" else root
    check_invariants(trace_of(make))


@pytest.mark.parametrize("connected", [90, 110])
def test_qemus_start_is_blamed_whenever_its_monitor_answers(connected: int) -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 300)
    launch = make.add("launchQemu", 10, connected, root)
    make.add("qmp.connect", 12, connected, launch)
    make.add("boot.qemu", 12, 100, root)
    make.add("boot.firmware", 100, 300, root)
    path = critical_path(trace_of(make).root)
    assert [segment.span.name for segment in path if segment.end - segment.start > 5 * MS] == [
        "rootSpan",
        "boot.qemu",
        "boot.firmware",
    ]


def test_input_that_comes_late_is_blamed_and_not_the_output_that_follows() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 300)
    make.add("stdio.stdin", 10, 200, root)
    make.add("process", 10, 250, root)
    make.add("stdio.stdout", 10, 280, root)
    path = critical_path(trace_of(make).root)
    assert [(segment.span.name, segment.end - segment.start) for segment in path][1:-1] == [
        ("stdio.stdin", 190 * MS),
        ("process", 50 * MS),
        ("stdio.stdout", 30 * MS),
    ]
