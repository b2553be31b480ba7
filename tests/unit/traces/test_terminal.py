"""What is printed of a trace, and of many: `blame`, `critical-chain`, `plot`, `list` and its pager."""

import argparse
import json
import os
import pty
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kata_telemetry.conventions import IMAGE_NAME, POD_NAME, POD_NAMESPACE, SCHEMA, of_pod, table
from kata_traces.commands import main as command
from kata_traces.commands.pager import paged
from kata_traces.read.cells import columns, crop_left, wrap
from kata_traces.read.chain import blame, chain
from kata_traces.read.trace import Trace
from kata_traces.views import svg
from kata_traces.views.chain import blame_lines, chain_lines
from support.odd_traces import HOSTILE, hostile, trace_of, traces
from support.traces import BEGIN, MS, container_start, write_store

few = settings(max_examples=40)
ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    options = parser.parse_args(["trace", *arguments])
    status = options.run(options)
    assert isinstance(status, int)
    return status


# --- blame and critical-chain


def test_blame_names_what_was_waited_for() -> None:
    trace = trace_of(container_start())
    lines = list(blame_lines(trace, 100, limit=3))
    assert [line.split()[:5] for line in lines[:2]] == [
        ["1.25", "s", "41.6", "%", "boot.kernel"],
        ["355", "ms", "11.8", "%", "imports"],
    ]
    assert lines[-1].endswith("more")


def test_the_chain_is_a_tree_with_times() -> None:
    lines = list(chain_lines(trace_of(container_start()), 100))
    assert "rootSpan @0 s +3.01 s, alone 4.50 ms" in lines
    assert "│ │ │   ├─boot.kernel @403 ms +1.25 s" in lines
    assert not any("qmp.query-name" in line for line in lines)
    assert any("qmp.query-name" in line for line in chain_lines(trace_of(container_start()), 100, everything=True))


@given(traces())
@few
def test_what_is_blamed_adds_up_to_the_root(trace: Trace) -> None:
    whole = max(trace.root.duration, 0)
    assert sum(item.waited for item in blame(trace)) == whole
    links = list(chain(trace))
    assert sum(link.own for link in links) == whole
    assert links[0].waited == whole
    for line in [*blame_lines(trace, 80), *chain_lines(trace, 80)]:
        assert line.isprintable()
        assert columns(line) <= 130


# --- plot


@pytest.mark.parametrize("error", ["", "no such file"])
def test_the_plot_is_a_picture(error: str) -> None:
    content = svg.render(trace_of(container_start(error=error), outcome="error" if error else "exit 0"))
    root = ET.fromstring(content)
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("}text")]
    assert any(text.startswith("boot.kernel  (1.25 s)") for text in texts)
    assert bool(error) == (error in texts if error else False)


@given(traces())
@few
def test_no_trace_breaks_the_plot(trace: Trace) -> None:
    root = ET.fromstring(svg.render(trace))
    assert not any(
        element.tag.rpartition("}")[2] in ("script", "foreignObject", "image", "a") for element in root.iter()
    )


def test_a_hostile_trace_is_text_in_the_plot() -> None:
    root = ET.fromstring(svg.render(trace_of(hostile(), name=HOSTILE[0], command=HOSTILE[2])))
    assert HOSTILE[0] in next(element.text or "" for element in root.iter() if element.tag.endswith("}title"))


# --- list


def store(trace_dir: Path, number: int, **meta: Any) -> None:
    begin, end = BEGIN + number * 1000 * MS, BEGIN + (2 * number + 1) * 1000 * MS
    write_store(trace_dir, sandbox_id=f"{number:02}aaaaaaaaaaaaaaaa", start=begin, end=end, **meta)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    labels = {POD_NAME: "web-1", POD_NAMESPACE: "shop", IMAGE_NAME: "registry.local/team/nginx:1.25"}
    store(tmp_path, 1, labels=labels, command="sandbox")
    store(tmp_path, 2, outcome="error", failure="the VM ended")
    store(tmp_path, 3, outcome="killed")
    store(tmp_path, 4)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ([], ["04", "03", "02", "01"]),
        (["--failed"], ["03", "02"]),
        (["--slower-than", "3.5s"], ["04", "03"]),
        (["--image", "nginx"], ["01"]),
        (["--pod", "shop/web"], ["01"]),
        (["--limit", "2"], ["04", "03"]),
        (["--since", "2025-12-17T00:00"], ["04", "03", "02", "01"]),
        (["--until", "2025-12-01"], []),
        (["--since", "1h"], []),
        (["--running"], []),
    ],
)
def test_filters(many: Path, arguments: list[str], numbers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--format", "json", "--trace-dir", str(many), *arguments) == 0
    assert [entry["sandbox"][:2] for entry in json.loads(capsys.readouterr().out)] == numbers


def test_the_table_shows_pods_and_images(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--trace-dir", str(many)) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["SANDBOX", "NAME", "POD", "IMAGE", "COMMAND", "START", "DURATION", "SPANS", "STATUS"]
    assert "01aaaaaaaaaa  web" in rows[3]  # a short id
    assert "shop/web-1" in rows[3]
    assert "registry.local/team/nginx:1.25" in rows[3]
    assert " sandbox " not in rows[3]
    assert rows[2].endswith("error: the VM ended")


def test_ids_that_begin_alike_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for end in "xy":
        write_store(tmp_path, sandbox_id=f"aaaaaaaaaaaaaaaaaaaa{end}")
    assert run("list", "--trace-dir", str(tmp_path)) == 0
    assert "aaaaaaaaaaaaaaaaaaaax" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["soon", "3", "2025-13-01"])
def test_times_that_are_none(tmp_path: Path, when: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("list", "--since", when, "--trace-dir", str(tmp_path))
    assert "is no time" in capsys.readouterr().err


def test_what_is_longer_than_the_terminal_goes_through_the_pager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", f"tee {tmp_path}/paged")
    here, there = pty.openpty()
    with open(there, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert paged(lambda stream: stream.write("long\n"), lines=1000) == 0
        assert (tmp_path / "paged").read_text() == "long\n"
        assert paged(lambda stream: stream.write("short\n"), lines=1) == 0
        assert paged(lambda stream: stream.write("plain\n"), lines=1000, pager=False) == 0
        terminal.flush()
        said = b""
        while not said.endswith(b"plain\r\n"):  # a terminal gives what it has, line by line
            said += os.read(here, 1000)
        assert b"short\r\nplain\r\n" in said
        assert (tmp_path / "paged").read_text() == "long\n"
        monkeypatch.setenv("PAGER", "/no/such/pager")
        assert paged(lambda stream: stream.write("straight\n"), lines=1000) == 0
    os.close(here)


# --- cells


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "three"]),
        ("  | quoted words here", 14, ["  | quoted", "  | words here"]),
        ("unbreakable", 4, ["unbr", "eaka", "ble"]),
        ("", 5, [""]),
    ],
)
def test_wrapping(text: str, width: int, lines: list[str]) -> None:
    assert wrap(text, width) == lines


def test_names_are_shortened_from_the_left() -> None:
    assert crop_left("/usr/bin/qemu-system-x86_64", 14) == "…system-x86_64"


# --- conventions


def test_what_a_pods_annotations_say() -> None:
    found = of_pod(
        {
            "io.kubernetes.cri.sandbox-name": "web-1",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.image-name": "nginx" * 100,
            "other": "x",
        }
    )
    assert found[POD_NAME] == "web-1"
    assert found[POD_NAMESPACE] == "shop"
    assert len(found[IMAGE_NAME]) == 256
    assert of_pod({}) == {}


def test_the_docs_have_the_schema_as_the_code_has_it() -> None:
    assert table() in (ROOT / "docs/tracing.md").read_text()
    assert all(what for _, what in SCHEMA.values())
