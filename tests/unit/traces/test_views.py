"""Views of a trace, and the commands that show them."""

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_common.files import Lock
from kata_telemetry import otlp
from kata_traces.commands import main as command
from kata_traces.read.remarks import remarks
from kata_traces.read.trace import Trace, load
from kata_traces.read.units import duration, percent
from kata_traces.send.settings import SettingsError
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Meta
from kata_traces.views import text
from support.collectors import http_collector
from support.traces import BEGIN, MS, SANDBOX, TRACE, Maker, container_start, write_store


def trace_of(make: Maker, **meta: Any) -> Trace:
    trace = load(make.lines(), meta=Meta(SANDBOX, root_id=f"{1:016x}", **meta))
    assert trace is not None
    return trace


def shown(make: Maker, meta: dict[str, Any] | None = None, **options: Any) -> list[str]:
    stream = io.StringIO()
    text.plain(text.render(trace_of(make, **(meta or {})), text.Options(**options)), stream)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0 s"),
        (7, "7 ns"),
        (750_000, "750 µs"),
        (999_999, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_949_999, "1.00 s"),
        (3_012_400_000, "3.01 s"),
        (59_990_000_000, "60.0 s"),
        (100_000_000_000, "1 m 40 s"),
        (7_260_000_000_000, "2 h 1 m"),
        (200_000_000_000_000, "2 d 7 h"),
        (-5_000_000, "-5.00 ms"),
    ],
)
def test_durations(nanoseconds: int, expected: str) -> None:
    assert duration(nanoseconds) == expected


def test_shares() -> None:
    assert percent(1, 200) == "0.5 %"
    assert percent(0, 0) == "0.0 %"


def test_the_waterfall_of_a_container_start() -> None:
    lines = shown(container_start(), {"name": "web", "command": "sh", "outcome": "exit 7"}, width=100)
    whole = "\n".join(lines)
    assert f"sandbox {SANDBOX} · web · sh" in lines[0]
    assert lines[0].endswith("spans · exit 7")
    assert TRACE in lines[1]
    kernel = next(line for line in lines if "boot.kernel" in line)
    assert kernel.startswith("kernel ")
    assert "█" * 15 in kernel
    assert kernel.endswith("1.25 s ◆")
    vsock = next(line for line in lines if "startVsockBackend" in line)
    assert "█" not in vsock
    assert not vsock.endswith("◆")
    assert "12 \N{MULTIPLICATION SIGN} load_kernel_module" in whole
    assert "4 \N{MULTIPLICATION SIGN} qmp.…" in whole
    for lane in ("runtime ", "QEMU ", "kernel ", "agent ", "container "):
        assert any(line.startswith(lane) for line in lines)
    last = " ".join(lines[lines.index(next(line for line in lines if line.startswith("total "))) :])
    assert last.startswith("total 3.01 s = 13.2 ms (runtime start) + 81.5 ms (host setup)")
    assert last.endswith("(unaccounted, 0.1 %)")


@pytest.mark.parametrize("width", [1, 80, 100, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    for make in (container_start(), container_start(error="x" * 500)):
        for line in shown(make, width=width, events=True):
            assert len(line) <= max(width, 80)


def test_a_name_that_is_the_id_is_said_once() -> None:
    assert shown(container_start(), {"name": SANDBOX})[0].count(SANDBOX) == 1
    assert " · web · " in shown(container_start(), {"name": "web"})[0]


def test_errors_are_shown_with_their_message() -> None:
    lines = shown(container_start(error="no such file"))
    # Where it began; what it travelled through on its way up says no more than that it failed.
    above = [lines[index - 1] for index, line in enumerate(lines) if line.endswith("  ✗ no such file")]
    assert [line.split("─")[-1].split()[:2] for line in above[1:]] == [["crun", "create"]]
    assert "rootSpan" in above[0]  # none of what lies right below it failed


def test_an_error_of_many_lines_is_shown_by_its_first() -> None:
    lines = shown(container_start(error="QEMU ended\nlast lines of the console:\n  | panic"))
    assert "✗ QEMU ended" in [line.strip() for line in lines]


def test_what_to_show() -> None:
    make = container_start()
    assert len(shown(make, fold=False)) > len(shown(make)) + 20
    assert not any("qmp." in line for line in shown(make, min_duration=5 * MS))
    assert [line.split()[1] for line in shown(make, depth=1) if line.startswith("runtime")] == ["rootSpan"]
    two = [line for line in shown(make, depth=2) if line.startswith("runtime")]
    assert len(two) == 6
    events = shown(make, events=True)
    assert any("· +7.20 ms Linux version 6.1.0-41-cloud-amd64" in line for line in events)
    assert any(line.endswith("exited status=7") for line in events)


def test_ascii_where_the_terminal_has_nothing_else() -> None:
    lines = shown(container_start(error="no such file"), ascii=True)
    content = "\n".join(lines)
    assert content.isascii()
    assert "|-create" in content or "`-create" in content


def test_open_spans_and_odd_traces_say_so() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    make.add("early", -20, 10, root)
    make.add("lost", 3, 4, "00000000000000ff")
    del make.spans[0]["span"]["endTimeUnixNano"]
    lines = shown(make, {"lost": {"queue full": 3}})
    whole = "\n".join(lines)
    assert "not in this trace: 3 queue full" in whole
    assert "1 spans have no parent here" in whole
    assert "1 spans start before their parent, early by 20.0 ms" in whole
    assert "ended without a word" in lines[0]
    assert any(line.endswith("10.0 ms+") for line in lines if "rootSpan" in line)


def test_colour_is_richs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    text.coloured(text.render(trace_of(container_start()), text.Options(width=100)), stream, 100)
    plain = io.StringIO()
    text.plain(text.render(trace_of(container_start()), text.Options(width=100)), plain)
    assert "\x1b[33m" in stream.getvalue()
    # One line more, the bar of stages: without colour it would say nothing.
    assert len(stream.getvalue().splitlines()) == len(plain.getvalue().splitlines()) + 1


@pytest.mark.slow
@given(st.text(min_size=1), st.text())
def test_no_name_breaks_the_view(name: str, message: str) -> None:
    make = Maker()
    root = make.add(name, 0, 100)
    make.add(name, 1, 2, root, error=message or "x", events=((1, message, {name: message}),))
    for line in shown(make, {"name": message}, events=True):
        assert line.isprintable()


# Commands.


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    options = parser.parse_args(["trace", *arguments])
    status = options.run(options)
    assert isinstance(status, int)
    return status


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    write_store(tmp_path)
    write_store(tmp_path, sandbox_id="3f9d", name="db", start=BEGIN - 5, end=BEGIN + 10**9, outcome="")
    return tmp_path


def test_list(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(kept / SANDBOX / "lock")
    assert lock.acquire()
    assert run("list", "--trace-dir", str(kept)) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["SANDBOX", "NAME", "COMMAND", "START", "DURATION", "SPANS", "STATUS"]
    assert first.split()[:3] == [SANDBOX, "web", "sh"]
    assert first.endswith("running")
    assert "1.00 s" in second
    assert second.endswith("killed")
    lock.release()
    assert run("list", "--format", "json", "--trace-dir", str(kept)) == 0
    assert [entry["live"] for entry in json.loads(capsys.readouterr().out)] == [False, False]
    assert run("list", "--trace-dir", str(kept / "nothing")) == 0
    assert "no traces in" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [[], ["latest"], [SANDBOX], ["3f9c"], ["web"]])
def test_show_finds_the_sandbox(kept: Path, wanted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", *wanted, "--trace-dir", str(kept)) == 0
    assert f"sandbox {SANDBOX}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("3f9", "beginning of 2 sandboxes"),
        ("nope", r"no trace of 'nope'; traces are kept in .*enable_tracing"),
        ("", "no trace of"),
    ],
)
def test_show_says_what_is_wrong(kept: Path, wanted: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        run("show", wanted, "--trace-dir", str(kept))


def test_show_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no trace; traces are kept in"):
        run("show", "--trace-dir", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no span yet"):
        run("show", "--trace-dir", str(tmp_path))


def test_show_as_json(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--format", "json", "--trace-dir", str(kept)) == 0
    model = json.loads(capsys.readouterr().out)
    assert model["trace_id"] == TRACE
    assert model["services"] == ["kata", "kata-agent"]
    assert sum(model["stages"].values()) + model["unaccounted_ns"] == model["duration_ns"]
    assert model["spans"][0]["name"] == "rootSpan"
    assert model["spans"][0]["start_ns"] == BEGIN
    assert model["checks"]["orphans"] == []
    assert sum(s["end_ns"] - s["start_ns"] for s in model["critical_path"]) == model["duration_ns"]


def test_show_as_otlp(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = kept / SANDBOX
    lines = container_start().lines()
    first = json.loads(lines[0])
    spans = first["resourceSpans"][0]["scopeSpans"][0]["spans"]
    started = {**spans[3], "spanId": f"{999:016x}", "endTimeUnixNano": "0"}
    first["resourceSpans"][0]["scopeSpans"][0]["spans"] = [{**spans[0], "endTimeUnixNano": "0"}, started]
    (directory / "open.jsonl").write_text(json.dumps(first) + "\n" + '{"resou')
    assert run("show", "--format", "otlp", "--trace-dir", str(kept)) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(lines) + 1
    assert [line["name"] for line in json.loads(out[-1])["resourceSpans"][0]["scopeSpans"][0]["spans"]] == [
        started["name"]
    ]
    for line in out:
        otlp.from_line(line)


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("text", f"sandbox {SANDBOX}"),
        ("json", "{"),
        ("otlp", '{"resourceSpans"'),
        ("html", "<!DOCTYPE html>"),
        ("mermaid", "gantt"),
        ("perfetto", '{"traceEvents"'),
        ("jaeger", '{"data"'),
    ],
)
def test_show_in_every_form(kept: Path, form: str, begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["show", "--format", form, "--trace-dir", str(kept)]
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(begins)
    file = kept / "out"
    assert run(*arguments, "--output", str(file)) == 0
    assert file.read_text().startswith(begins)
    assert form == "text" or file.read_text() == printed
    assert capsys.readouterr() == ("", f"{file}: {file.stat().st_size:,} bytes\n")


def test_output_that_cannot_be_written(kept: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*/nope/x: No such file or directory"):
        run("show", "--format", "html", "--output", str(kept / "nope" / "x"), "--trace-dir", str(kept))


def test_the_command_line_prints_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kata_runtime.cli.main import main

    assert main(["trace", "show", "nope", "--trace-dir", str(tmp_path)]) == 125
    assert capsys.readouterr().err.startswith("kata-runtime: no trace of 'nope'; traces are kept in ")


def test_push(kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with pytest.raises(SettingsError, match="--endpoint"):
        run("push", "--trace-dir", str(kept))
    with http_collector("ok", "busy") as collected:
        arguments = ["--endpoint", collected.endpoint, "--protocol", "http/protobuf", "--trace-dir", str(kept)]
        assert run("push", *arguments) == 1
        assert "bytes and 0 refused batches are left: HTTP 503" in capsys.readouterr().out
        assert run("push", *arguments) == 0
        lock = Lock(kept / SANDBOX / "export.lock")
        assert lock.acquire()
        assert run("push", "--all", *arguments) == 1
        lock.release()
        assert "another process" in capsys.readouterr().err
        assert len(collected.names) == 2 * len(container_start().spans)


@pytest.mark.parametrize(
    ("value", "expected"), [("5ms", 5 * MS), ("0.2s", 200 * MS), ("800us", 800_000), ("3", 3 * MS)]
)
def test_durations_are_read(value: str, expected: int) -> None:
    assert command.parse_duration(value) == expected


@pytest.mark.parametrize("value", ["", "ms", "5 parsecs", "-1s", "nan", "inf", "1e30s"])
def test_durations_that_are_none(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        command.parse_duration(value)


def test_show_needs_neither_sdk_nor_rich(kept: Path) -> None:
    """`trace show` is used in a hurry; through a pipe that is closed early it is quiet."""
    code = f"""
import argparse, sys
from kata_traces.commands import main as command
parser = argparse.ArgumentParser()
command.add_arguments(parser.add_subparsers())
options = parser.parse_args(["trace", "show", "--trace-dir", {str(kept)!r}])
status = options.run(options)
heavy = [name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "google", "grpc", "rich", "asyncio")]
sys.exit(", ".join(heavy) or status)
"""
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "rootSpan" in done.stdout
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(("live", "agent", "said"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_live_trace_says_that_the_guest_has_not_told_yet(live: bool, agent: bool, said: int) -> None:
    make = Maker()
    make.add("boot.agent", 1, 2, make.add("rootSpan", 0, 5), agent=agent)
    trace = load(make.lines(), live=live)
    assert trace is not None
    assert sum("no span of the guest" in remark for remark in remarks(trace)) == said


@pytest.mark.parametrize(("live", "kernel", "said"), [(False, False, 1), (True, False, 0), (False, True, 0)])
def test_a_boot_that_nobody_told_of_is_no_agents_fault(live: bool, kernel: bool, said: int) -> None:
    """The VM was killed before the agent's account came: all of the boot looks like one long wait for it."""
    make = Maker()
    root = make.add("rootSpan", 0, 500)
    make.add("boot.firmware", 1, 50, root)
    make.add("waitVM", 1, 400, root)
    if kernel:
        make.add("boot.kernel", 50, 400, root)
    trace = load(make.lines(), live=live)
    assert trace is not None
    assert sum("are one stretch here, waitVM" in remark for remark in remarks(trace)) == said
