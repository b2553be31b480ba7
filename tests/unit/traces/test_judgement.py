"""What is said about traces: `trace diff`, `trace check`, `trace explain`."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_telemetry.conventions import FAILURE_HINT
from kata_traces.commands import main as command
from kata_traces.read.check import Rules, check, summary
from kata_traces.read.compare import Run, compare, median, percentile, run_of
from kata_traces.read.explain import MAX_LINES, explain, start_of
from kata_traces.read.failure import MAX_SAID, failure_of
from kata_traces.read.trace import Trace, load
from kata_traces.store.abandoned import CUT_OFF
from kata_traces.store.errors import StoreError
from kata_traces.views import comparison
from support.odd_traces import HOSTILE, hostile, trace_of, traces
from support.traces import BEGIN, MS, SANDBOX, Maker, container_start, write_store

few = settings(max_examples=40, deadline=None)


def slowed(name: str, amount: int, make: Maker | None = None) -> Maker:
    """A container's start (or `make`) in which `name` takes `amount` ms longer; all that comes after it is later."""
    make = make or container_start()
    at = next(e["span"] for e in make.spans if e["span"]["name"] == name)
    until = int(at["endTimeUnixNano"])
    for span in (entry["span"] for entry in make.spans):
        for key in ("startTimeUnixNano", "endTimeUnixNano"):
            if int(span[key]) >= until:
                span[key] = str(int(span[key]) + amount * MS)
    return make


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    options = parser.parse_args(["trace", *arguments])
    status = options.run(options)
    assert isinstance(status, int)
    return status


# --- percentiles


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 50, 0), ([7], 95, 7), ([1, 3], 50, 2), ([1, 2, 3], 50, 2), (list(range(101)), 95, 95), ([0, 100], 95, 95)],
)
def test_percentiles(values: list[int], share: int, expected: int) -> None:
    assert percentile(values, share) == expected


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_percentiles_lie_within(values: list[int]) -> None:
    assert min(values) <= median(values) <= percentile(values, 95) <= max(values)


# --- diff


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("startVirtiofsd", "host setup"),
        ("launchQemu", "QEMU"),
        ("boot.kernel", "kernel"),
        ("boot.initramfs", "initramfs"),
        ("imports", "agent"),
        ("virtiofs_mount", "sandbox"),
        ("crun create", "container"),
        ("sync", "stop"),
    ],
)
def test_a_slower_stage_is_blamed_by_its_amount(name: str, stage: str) -> None:
    result = compare([run_of(trace_of(container_start()))], [run_of(trace_of(slowed(name, 500)))])
    assert result.total.change == pytest.approx(500 * MS, abs=MS)
    assert result.stages[0].name == (stage,)
    assert result.stages[0].change == pytest.approx(500 * MS, rel=0.1)
    assert result.spans[0].name[-1] == name
    said = comparison.sentence(result)
    assert "% slower" in said
    assert f"stage {stage} (+" in said
    assert f"in {name} (+" in said


def test_runs_against_runs() -> None:
    before = [run_of(trace_of(slowed("boot.kernel", amount))) for amount in (0, 10, 20, 30)]
    after = [run_of(trace_of(slowed("crun create", amount))) for amount in (300, 310, 320, 330)]
    result = compare(before, after)
    assert result.clear
    [crun] = [row for row in result.spans if row.name[-1] == "crun create"]
    assert crun.before_p50 == 123 * MS
    assert (crun.after_p50, crun.after_p95) == (438 * MS, 451_500_000)
    said = comparison.sentence(result)
    assert "median" in said
    assert "Mostly stage container (+315 ms), in crun create (+315 ms on the critical path)." in said
    assert "Against that, stage kernel got faster (-15.0 ms)" not in said  # a twentieth is not worth a word
    assert "vary by" not in said


def test_the_span_that_is_blamed_lies_in_the_stage_that_is_blamed() -> None:
    # The stage is slower by two of its spans, each less than one of another stage, which is not the largest.
    make = slowed("imports", 300)
    make = slowed("clockSync", 300, make)
    result = compare([run_of(trace_of(container_start()))], [run_of(trace_of(slowed("sync", 400, make)))])
    assert result.stages[0].name == ("agent",)
    assert result.spans[0].name[-1] == "sync"
    said = comparison.sentence(result)
    assert "Mostly stage agent (+600 ms), in " in said
    assert "sync (+400" not in said


def test_a_difference_within_the_noise_says_so() -> None:
    before = [run_of(trace_of(slowed("boot.kernel", amount))) for amount in (0, 10, 100)]
    result = compare(before, [run_of(trace_of(slowed("boot.kernel", 50)))])
    assert not result.clear
    assert "within what the 3 runs of the baseline vary by" in comparison.sentence(result)


def test_medians_that_do_not_add_up_are_said_not_to() -> None:
    # Each run is slow in a stage of its own, so that no stage's median is.
    before = [run_of(trace_of(slowed(name, 500))) for name in ("boot.kernel", "crun create", "sync")]
    told = " ".join(comparison.text(compare(before, [run_of(trace_of(container_start()))]), 100))
    assert "The stages add up to 0 s, not to the total" in told
    told = " ".join(comparison.text(compare(before[:1], before[1:2]), 100))
    assert "add up" not in told


def test_no_difference() -> None:
    same = run_of(trace_of(container_start()))
    assert comparison.sentence(compare([same], [same])) == "No difference: 3.01 s against 3.01 s."
    assert all(row.change == 0 for row in compare([same], [same]).spans)


@given(traces(), traces())
@few
def test_the_parts_of_a_difference_add_up(before: Trace, after: Trace) -> None:
    result = compare([run_of(before)], [run_of(after)])
    assert sum(row.change for row in result.stages) == result.total.change
    assert sum(row.change for row in result.spans) == result.total.change
    for line in comparison.text(result, 100):
        assert line.isprintable()
    json.dumps(comparison.to_json(result))


def test_diff_of_kept_traces_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path, container_start(), sandbox_id="before")
    directory = write_store(tmp_path, slowed("crun create", 500), sandbox_id="after")
    where = ["--trace-dir", str(tmp_path)]
    assert run("diff", "before", "after", *where) == 0
    out = capsys.readouterr().out
    assert "16.6 % slower: 3.51 s against 3.01 s, +500 ms. Mostly stage container" in " ".join(out.split())
    assert out.splitlines()[0] == "baseline:  before (1 run)"
    file = tmp_path / "other.jsonl"
    file.write_bytes((directory / "spans.jsonl").read_bytes())
    many = ["--baseline", "before", "--candidate", str(file), str(directory)]
    assert run("diff", *many, "--format", "json", *where) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["stages"][0]["stage"] == "container"
    assert content["stages"][0]["contribution_ns"] == 500 * MS
    assert content["spans"][0]["path"][-1] == "crun create"
    assert len(content["candidate"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "1 traces given"),
        (["a", "b", "c"], "3 traces given"),
        (["--baseline", "a"], "belong together"),
        (["a", "b", "--baseline", "a", "--candidate", "b"], "instead of A B"),
        (["nope", "nope"], "no trace of 'nope'"),
        (["/nope/spans.jsonl", "x"], "cannot read the trace /nope/spans.jsonl: No such file"),
    ],
)
def test_diff_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        run("diff", "--trace-dir", str(tmp_path), *arguments)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\n")
    (tmp_path / "dir").mkdir()
    with pytest.raises(StoreError, match=r"has no span: .*OTLP/JSON"):
        run("check", str(tmp_path / "x"), "--trace-dir", str(tmp_path))
    with pytest.raises(StoreError, match="directory without a trace"):
        run("check", f"{tmp_path}/dir", "--trace-dir", str(tmp_path))


# --- check


def test_a_whole_trace_keeps_to_the_defaults() -> None:
    trace = trace_of(container_start())
    assert check(trace, Rules()) == []
    assert summary(trace) == f"{len(trace.spans)} spans of kata and kata-agent, 3.01 s, 0.1 % unaccounted"


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ({"min_spans": 10_000}, "expected at least 10000"),
        ({"services": ("kata", "other")}, "service other: no span; there are kata, kata-agent"),
        ({"unaccounted": 0.05}, "unaccounted: 0.1 % of 3.01 s, allowed 0.05 %; the longest stretch,"),
        ({"budgets": {"boot.kernel": 1000 * MS}}, "budget: boot.kernel took 1.25 s, allowed 1.00 s"),
        ({"budgets": {"mount": 4 * MS}}, "budget: mount, the longest of 12, took 4.10 ms, allowed 4.00 ms"),
        ({"budgets": {"StartVm": MS}}, "budget: there is no span StartVm to hold to 1.00 ms"),
        ({"budgets": {"stage:kernel": MS}}, "budget: stage kernel took 1.25 s, allowed 1.00 ms"),
    ],
)
def test_a_broken_rule_is_one_line(rules: dict[str, Any], line: str) -> None:
    [found] = check(trace_of(container_start()), Rules(**rules))
    assert line in found


def test_faults_of_a_trace_are_found() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    make.add("StartVM", 0, 99, root)
    make.add("early", -20, 10, root)
    make.add("lost", 3, 4, "00000000000000ff")
    make.add("backwards", 9, 7, root)
    call = make.add("AgentService.Check", 20, 40, root, kind=3)
    make.add("check", 21, 48, call, agent=True, kind=2)
    make.add("lasting", 30, 120, root)
    lines = check(trace_of(make, lost={"queue full": 3}), Rules())
    assert lines == [
        "lost: 3: 3 queue full",
        "orphans: 1 spans have no parent here: lost",
        "negative: 1 spans end before they start: backwards",
        "misfit: 2 spans lie outside their parent by more than 1.00 ms: early starts 20.0 ms before rootSpan",
    ]
    lenient = Rules(lost=3, orphans=1, negative=1, misfit=20 * MS)
    assert check(trace_of(make, lost={"queue full": 3}), lenient) == []
    late = Rules(lost=3, orphans=1, negative=1, misfit=5 * MS)
    assert "check ends 8.00 ms after" not in check(trace_of(make), late)[0]


def test_errors_are_a_rule_if_asked() -> None:
    trace = trace_of(container_start(error="no such file"))
    assert check(trace, Rules()) == []
    [line] = check(trace, Rules(errors=False))
    assert line.startswith("errors: 4 spans failed: rootSpan, AgentService.CreateContainer, create_container, …")
    assert line.endswith("the deepest: no such file")


def test_a_hostile_trace_makes_lines_that_print() -> None:
    trace = trace_of(hostile())
    rules = Rules(errors=False, unaccounted=0, budgets=dict.fromkeys(HOSTILE, 1), services=HOSTILE)
    for line in [*check(trace, rules), *explain(trace)]:
        assert line.isprintable()


def test_check_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_store(tmp_path)
    where = ["--trace-dir", str(tmp_path)]
    assert run("check", *where) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    limits = [
        "--min-spans",
        "5000",
        "--max-unaccounted",
        "0.01%",
        "--budget",
        "StartVM=2s",
        "--budget",
        "stage:kernel=1s",
    ]
    more = ["--require-service", "x", "--max-orphans", "3", "--max-negative", "1", "--max-misfit", "5ms", "--no-errors"]
    assert run("check", str(directory / "spans.jsonl"), *limits, *more, *where) == 1
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["spans", "service x", "unaccounted", "budget", "budget"]


@pytest.mark.parametrize("budget", ["StartVM", "=5ms", "StartVM=soon", "stage:lunch=1s"])
def test_budgets_that_are_none(tmp_path: Path, budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("check", "--budget", budget, "--trace-dir", str(tmp_path))
    assert "is no" in capsys.readouterr().err


# --- explain


def test_a_first_process_that_is_not_in_the_trace() -> None:
    """The store's disk was full: what is said of a sandbox that has ended is not what is said of one that starts."""
    make = Maker()
    make.add("Stop", 2000, 2500, make.add("rootSpan", 0, 2500))
    [first, *_] = explain(trace_of(make, command="sh", outcome="exit 0"))
    assert "took 2.50 s in all, and the trace has no first process; it ended with exit 0." in first
    live = load(make.lines(), live=True)
    assert live is not None
    assert "2.50 s so far without a first process; it is still running." in explain(live)[0]


def test_what_dominated_a_start() -> None:
    lines = explain(trace_of(container_start(), command="sh", outcome="exit 7"))
    waited = "boot.kernel 1.25 s (kernel), imports 355 ms (agent), boot.initramfs 284 ms (kernel)"
    assert lines == [
        f"Sandbox {SANDBOX} (sh) took 2.76 s to its first process and 3.01 s in all; it ended with exit 7.",
        "Most of the start went to: kernel 1.25 s (45.4 %), agent 433 ms (15.7 %), initramfs 284 ms (10.3 %).",
        f"What everybody waited for: {waited}.",
    ]


def test_what_is_unusual() -> None:
    usual = [start_of(trace_of(slowed("boot.kernel", amount))) for amount in (0, 5, 10)]
    lines = explain(trace_of(slowed("crun create", 500)), usual)
    assert "Unusual: container took 712 ms, 3.4 times the median of 3 earlier starts, 212 ms." in lines
    lines = explain(trace_of(container_start()), usual)
    assert "Nothing of that is unusual: the median of 3 earlier starts took 2.76 s." in lines


def test_why_a_start_failed() -> None:
    lines = explain(trace_of(container_start(error="no such file"), outcome="error"))
    assert lines[0] == f"Sandbox {SANDBOX} failed after 2.70 s, before its first process."
    assert lines[1] == "Why: no such file"
    assert lines[2].startswith("It was seen first in crun create (container, seen by kata-agent), after 123 ms; ")
    assert "create_container › crun create." in lines[2]  # noqa: RUF001 - the sign that is printed


def test_the_first_failure_is_the_cause() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100, error="stopping failed")
    make.add("Stop", 80, 90, root, error="second")
    make.add("inner", 10, 20, make.add("outer", 5, 30, root, error="outer says"), error="first")
    lines = explain(trace_of(make))
    assert lines[1] == "Why: stopping failed"
    assert lines[2].startswith("It was seen first in inner (runtime, seen by kata), after 10.0 ms: first; ")


def test_a_failure_that_ended_nothing_is_told_as_such() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    make.add("Exec", 10, 20, root, error="no such command")
    assert explain(trace_of(make))[1] == "Something failed, and the sandbox went on: no such command"


def test_a_guest_that_panicked_is_quoted() -> None:
    said = "QEMU ended while the guest was booting\nlast lines of the guest's console:\n"
    said += "  | [1.0] all is well\n  | [2.0] Kernel panic - not syncing: no root\n  | [2.1] </TASK>"
    make = container_start(error=said)
    make.spans[0]["span"]["attributes"].append({"key": FAILURE_HINT, "value": {"stringValue": "a root, perhaps"}})
    lines = explain(trace_of(make, outcome="error"))
    # Whole, as the terminal had it.
    assert "\n".join(lines[1:7]) == f"Why: {said}\nhint: a root, perhaps"


def test_how_the_sandbox_ended_is_told_where_the_first_failure_does_not() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100, error="the VM ended (killed by signal 9)")
    make.add("AgentService.WaitProcess", 10, 20, root, error="the VM has ended")
    lines = explain(trace_of(make))
    assert lines[1] == "Why: the VM ended (killed by signal 9)"
    assert "AgentService.WaitProcess (runtime, seen by kata), after 10.0 ms: the VM has ended; " in lines[2]


def test_a_killed_runtime_is_told_as_such_and_when() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 12_000, error=CUT_OFF)
    make.add("AgentService.WaitProcess", 10, 12_000, root, error=CUT_OFF)
    failure = failure_of(trace_of(make, outcome="killed"))
    assert failure is not None
    assert failure.said == ["The runtime was killed 12.0 s after its start, give or take 1.00 s"]
    assert failure.span.name == "AgentService.WaitProcess"
    assert "dmesg" in failure.hint


def test_a_trace_without_an_outcome_has_ended_where_its_root_has() -> None:
    assert explain(trace_of(container_start(), outcome=""))[0].endswith("; it ended.")


def test_a_killed_writer() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 0)
    create = make.add("create", 1, 0, root)
    make.add("StartVM", 2, 0, create)
    for entry in make.spans:
        del entry["span"]["endTimeUnixNano"]
    make.add("loadConfig", 0, 1, root)
    lines = explain(trace_of(make))
    assert any("was killed; the last that went on was StartVM" in line for line in lines)


@given(traces())
@few
def test_an_explanation_is_short_and_prints(trace: Trace) -> None:
    lines = explain(trace, [start_of(trace)])
    assert 1 <= len(lines) <= MAX_LINES + MAX_SAID
    assert all(line.isprintable() and len(line) <= 640 for line in lines)


def test_explain_compares_with_earlier_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        earlier = {"start": BEGIN - number - 1, "trace_id": container_start().spans[0]["span"]["traceId"]}
        directory = write_store(tmp_path, slowed("boot.kernel", number), sandbox_id=f"old{number}", **earlier)
        for name in ("spans.jsonl", "meta.json"):
            content = (directory / name).read_text().replace("4bf92f35", f"4bf92f3{number}")
            (directory / name).write_text(content)
    write_store(tmp_path, slowed("crun create", 500))
    assert run("explain", "--trace-dir", str(tmp_path)) == 0
    assert "times the median of 3 earlier starts" in capsys.readouterr().out


def test_a_run_counts_spans_of_one_path_together() -> None:
    found: Run = run_of(trace_of(container_start()))
    [mounts] = [path for path in found.durations if path[-2:] == ("mountAll", "mount")]
    assert found.durations[mounts] == pytest.approx(8 * 2.2 * MS, abs=8)
