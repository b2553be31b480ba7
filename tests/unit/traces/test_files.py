"""Files as first-class: every command takes one, and what it writes belongs to who asked."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kata_traces.commands import main as command
from kata_traces.commands import metrics
from kata_traces.commands.durations import parse_duration
from kata_traces.commands.output import format_of, write_file
from kata_traces.read.foreign import UnknownFormatError, otlp_lines
from kata_traces.read.trace import Trace, load
from kata_traces.read.units import attribute
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store
from kata_traces.views import jaeger, perfetto
from support.collectors import grpc_collector, http_collector
from support.odd_traces import trace_of, traces
from support.traces import MS, container_start, write_store

few = settings(max_examples=40, deadline=None)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    options = parser.parse_args(["trace", *arguments])
    status = options.run(options)
    assert isinstance(status, int)
    return status


def tree(trace: Trace) -> list[tuple[str, int, bool, str]]:
    return [(span.name, span.depth, span.failed, span.service) for span in trace.walk()]


# --- formats of others


@pytest.mark.parametrize("kind", ["jaeger", "perfetto"])
def test_our_files_come_back_whole(kind: str) -> None:
    trace = trace_of(container_start(error="no such file"))
    content = jaeger.to_jaeger(trace) if kind == "jaeger" else perfetto.to_events(trace)
    back = load(otlp_lines(json.dumps(content, indent=1).encode()))
    assert back is not None
    assert back.trace_id == trace.trace_id
    assert tree(back) == tree(trace)
    for before, after in zip(trace.walk(), back.walk(), strict=True):
        assert after.duration == pytest.approx(before.duration, abs=2000)
        assert dict(after.attributes) == dict(before.attributes)
        assert [e.name for e in after.events] == [e.name for e in before.events]
        assert after.message == (before.message or "")


@given(traces())
@few
def test_any_trace_comes_back_from_jaegers_form(trace: Trace) -> None:
    back = load(otlp_lines(json.dumps(jaeger.to_jaeger(trace)).encode()))
    assert back is not None
    assert sorted(span.span_id for span in back.spans) == sorted(span.span_id for span in trace.spans)


def test_a_trace_event_file_that_is_not_ours() -> None:
    events = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "main"}},
        {"ph": "X", "name": "inner", "pid": 1, "tid": 2, "ts": 20, "dur": 5, "args": {"n": 1, "list": [1, 2]}},
        {"ph": "X", "name": "outer", "pid": 1, "tid": 2, "ts": 10, "dur": 50},
        {"ph": "X", "name": "beside", "pid": 1, "tid": 3, "ts": 15, "dur": 50},
    ]
    trace = load(otlp_lines(json.dumps(events).encode()))
    assert trace is not None
    assert tree(trace) == [
        ("trace", 0, False, "file"),
        ("outer", 1, False, "main"),
        ("inner", 2, False, "main"),
        ("beside", 1, False, "thread 3"),
    ]
    [inner] = [span for span in trace.spans if span.name == "inner"]
    assert dict(inner.attributes) == {"n": 1, "list": "[1, 2]"}


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"[]", b"{}", b'{"data": [1]}', b'{"traceEvents": [{"ph": "X"}]}', b"[" * 100_000]
)
def test_what_is_no_trace_says_so(content: bytes) -> None:
    with pytest.raises(UnknownFormatError):
        otlp_lines(content)


# --- every command takes a file


@pytest.mark.parametrize("suffix", [".jsonl", ".jaeger.json", ".perfetto.json"])
def test_every_command_takes_a_file(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path)
    where = ["--trace-dir", str(tmp_path)]
    file = str(tmp_path / f"x{suffix}")
    assert run("show", "--output", file, *where) == 0
    nowhere = ["--trace-dir", str(tmp_path / "nowhere")]
    for arguments in (["show"], ["explain"], ["check", "--max-misfit", "2ms"], ["show", "--format", "html"]):
        assert run(*arguments[:1], file, *arguments[1:], *nowhere) == 0
        out = capsys.readouterr().out
        assert "boot.kernel" in out or out.startswith("ok: ")
    assert run("diff", file, file, *nowhere) == 0
    assert "No difference" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    metrics.add_arguments(parser)
    options = parser.parse_args([file, *nowhere])
    assert options.run(options) == 0
    assert 'operation="boot.kernel"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.html", "html"),
        ("X.HTM", "html"),
        ("x.mmd", "mermaid"),
        ("x.jsonl", "otlp"),
        ("x.json", "json"),
        ("a.jaeger.json", "jaeger"),
        ("x.txt", "text"),
        ("x", "text"),
    ],
)
def test_the_name_of_a_file_says_its_format(name: str, kind: str) -> None:
    assert format_of(Path(name)) == kind


def test_a_format_that_is_given_goes_before_the_name(tmp_path: Path) -> None:
    write_store(tmp_path)
    assert run("show", "--format", "mermaid", "--output", f"{tmp_path}/x.html", "--trace-dir", str(tmp_path)) == 0
    assert (tmp_path / "x.html").read_text().startswith("gantt\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_made_under_sudo_belongs_to_who_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "567")
    write_file(tmp_path / "new", b"x")
    assert ((tmp_path / "new").stat().st_uid, (tmp_path / "new").stat().st_gid) == (1234, 567)
    (tmp_path / "old").write_bytes(b"")
    os.chown(tmp_path / "old", 42, 43)
    write_file(tmp_path / "old", b"x")
    assert ((tmp_path / "old").stat().st_uid, (tmp_path / "old").stat().st_gid) == (42, 43)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("safe")
    (tmp_path / f".x.{os.getpid()}").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="File exists"):
        write_file(tmp_path / "x", b"evil")
    assert (tmp_path / "victim").read_text() == "safe"


# --- units


@pytest.mark.parametrize(("text", "ns"), [("3s", 3000), ("5", 5), ("2m", 120_000), ("1.5h", 5400_000)])
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text) == ns * MS


def test_a_budget_without_a_unit_is_no_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("check", "--budget", "StartVM=3", "--trace-dir", str(tmp_path))
    assert "'3' has no unit: write 3s or 3ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("bound_ns", 210_000, "210 µs"),
        ("wall_error_ns", -300_000_000, "-300 ms"),
        ("pid", 4711, "4711"),
        ("odd_ns", "text", "text"),
        ("huge_ns", 2**80, str(2**80)),
    ],
)
def test_times_among_attributes_are_told_as_times(key: str, value: object, shown: str) -> None:
    assert attribute(key, value) == shown


def test_an_offset_of_a_clock_is_told_as_a_moment() -> None:
    assert attribute("offset_ns", 1_766_000_000_123_456_789).endswith(".123456789")


# --- push


def test_push_says_what_was_there_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_store(tmp_path)
    count = len(container_start().spans)
    with http_collector() as collector:
        arguments = [
            "push",
            "--endpoint",
            collector.endpoint,
            "--protocol",
            "http/protobuf",
            "--trace-dir",
            str(tmp_path),
        ]
        assert run(*arguments) == 0
        assert f": {count} spans sent to http/protobuf" in capsys.readouterr().out
        assert run(*arguments) == 0
        out = capsys.readouterr().out
        assert ": 0 spans sent to http/protobuf " in out
        assert f", already delivered: {count} (--again sends them again)" in out
        assert run(*arguments, "--again") == 0
        assert f": {count} spans sent to" in capsys.readouterr().out
        # A file has no notes; it is sent whole, each time.
        for _ in range(2):
            assert run("push", str(directory / "spans.jsonl"), *arguments[1:]) == 0
            assert f"spans.jsonl: {count} spans sent to" in capsys.readouterr().out
        assert len(collector.names) == 4 * count
    assert Store(directory).own_meta().sandbox_id


@pytest.mark.parametrize(
    ("start", "protocol", "said"),
    [
        (http_collector, "grpc", "speaks HTTP, not gRPC: use --protocol http/protobuf"),
        (grpc_collector, "http/protobuf", "it may speak gRPC: use --protocol grpc"),
    ],
)
def test_a_port_that_speaks_the_other_protocol_is_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: Any, protocol: str, said: str
) -> None:
    write_store(tmp_path)
    with start() as collector:
        collector_at = ["--endpoint", collector.endpoint, "--protocol", protocol, "--timeout", "5"]
        assert run("push", *collector_at, "--trace-dir", str(tmp_path)) == 1
    assert said in capsys.readouterr().out
