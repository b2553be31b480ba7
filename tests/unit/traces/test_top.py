"""`trace top`: its rows without a terminal, the screen by textual's pilot, and the whole in tmux."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_traces.read.lookup import Source
from kata_traces.read.trace import Trace
from kata_traces.store.store import Store
from kata_traces.views.top.rows import MIN_WINDOW, Rows
from support.odd_traces import HOSTILE, hostile, trace_of, traces
from support.traces import MS, container_start, write_store

pytestmark = pytest.mark.slow


def names(rows: Rows) -> list[str]:
    return [span.name for span in rows.rows]


def test_moving_and_folding() -> None:
    rows = Rows(trace_of(container_start()))
    assert names(rows)[:3] == ["rootSpan", "loadConfig", "create"]
    rows.move(2)
    everything = len(rows.rows)
    rows.fold(shut=True)
    assert names(rows)[:4] == ["rootSpan", "loadConfig", "create", "Start"]
    assert rows.chosen.name == "create"
    rows.fold(shut=False)
    assert len(rows.rows) == everything
    rows.fold(shut=False)
    assert rows.chosen.name == "createSandboxFromConfig"
    rows.fold_all(shut=True)
    assert names(rows) == ["rootSpan", "loadConfig", "create", "Start", "process", "Wait", "Stop"]
    rows.move(10**6)
    assert rows.chosen.name == "Stop"


def test_searching_unfolds_and_goes_round() -> None:
    rows = Rows(trace_of(container_start()))
    rows.fold_all(shut=True)
    assert rows.search("CRUN")
    found = [rows.chosen.name]
    while rows.search("CRUN") and rows.chosen.name not in found:
        found.append(rows.chosen.name)
    assert found == ["crun create", "crun start", "crun delete"]
    assert rows.search("CRUN", step=-1)
    assert rows.chosen.name == "crun delete"
    assert rows.search("module=module7")
    assert not rows.search("no such thing")


def test_zooming() -> None:
    rows = Rows(trace_of(container_start()))
    whole = rows.bounds
    rows.search("boot.kernel")
    rows.zoom_to(rows.chosen)
    assert rows.begin < rows.chosen.start < rows.chosen.end < rows.end
    assert rows.end - rows.begin < 1.2 * rows.chosen.duration
    rows.pan(-100)
    assert rows.begin == whole[0]
    rows.zoom_all()
    assert (rows.begin, rows.end) == whole


def test_filters() -> None:
    rows = Rows(trace_of(container_start(error="no such file")))
    rows.filter(failed=True)
    assert names(rows)[-1] == "crun create"
    rows.filter(failed=False, critical=True)
    assert "boot.kernel" in names(rows)
    assert "qmp.query-name" not in names(rows)


def test_a_trace_that_grows_keeps_what_was_chosen() -> None:
    make = container_start()
    later = make.spans[40:]
    del make.spans[40:]
    rows = Rows(trace_of(make))
    rows.search("boot.kernel")
    rows.fold_all(shut=False)
    begin = rows.bounds
    make.spans += later
    rows.replace(trace_of(make))
    assert rows.chosen.name == "boot.kernel"
    assert (rows.begin, rows.end) == rows.bounds != begin or rows.bounds == begin
    rows.zoom(0.5)
    window = rows.begin, rows.end
    rows.replace(trace_of(make))
    assert (rows.begin, rows.end) == window


@given(traces(), st.lists(st.integers(0, 9), max_size=12))
@settings(max_examples=40)
def test_no_key_breaks_it(trace: Trace, keys: list[int]) -> None:
    rows = Rows(trace)
    actions = [
        lambda: rows.move(1),
        lambda: rows.move(-1),
        lambda: rows.fold(shut=True),
        lambda: rows.fold(shut=False),
        lambda: rows.fold_all(shut=True),
        lambda: rows.zoom(0.5),
        lambda: rows.zoom_to(rows.chosen),
        lambda: rows.pan(0.5),
        lambda: rows.filter(critical=not rows.only_critical),
        lambda: rows.next_critical(1),
    ]
    for key in keys:
        actions[key]()
        assert 0 <= rows.at < len(rows.rows)
        assert rows.bounds[0] <= rows.begin < rows.end <= rows.bounds[1]
        assert rows.end - rows.begin >= min(MIN_WINDOW, rows.bounds[1] - rows.bounds[0])


# --- the screen


def screen(app: object) -> str:
    from textual.app import App

    assert isinstance(app, App)
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def test_the_screen(tmp_path: Path) -> None:
    from kata_traces.views.top.app import Top

    app = Top(Source(Store(write_store(tmp_path, container_start(error="no such file"), outcome="error"))))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        shown = screen(app)
        assert "rootSpan" in shown
        assert "no such file" in shown
        assert "boot.kernel" in shown
        await pilot.press("slash", *"crun", "enter")
        await pilot.pause()
        assert app.rows.chosen.name == "crun create"
        await pilot.press("enter")
        await pilot.pause()
        assert "container_id = c1" in screen(app)
        await pilot.press("f")
        assert app.rows.end - app.rows.begin < 200 * MS
        await pilot.press("0", "c")
        assert app.rows.only_critical
        await pilot.press("escape", "question_mark")
        await pilot.pause()
        assert "fold, unfold all" in screen(app)


async def test_hostile_texts_are_text(tmp_path: Path) -> None:
    from kata_traces.views.top.app import Top

    app = Top(Source(Store(write_store(tmp_path, hostile(), name=HOSTILE[5], command="[red]x[/red]"))))
    async with app.run_test(size=(160, 40)) as pilot:
        await pilot.press("enter", *["down"] * (2 * len(HOSTILE) + 1))
        await pilot.pause()
        shown = screen(app)
    assert "[red]x[/red]" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x00", "\u202e", "\u2028"}


@pytest.fixture
def tmux(tmp_path: Path) -> list[str]:
    if shutil.which("tmux") is None:
        pytest.skip("needs Debian's package tmux")
    return ["tmux", "-S", str(tmp_path / "tmux.sock")]


def test_in_a_terminal(tmp_path: Path, tmux: list[str]) -> None:
    """Driven as a person would: a pseudo-terminal, real keys, and what is on the screen."""
    directory = write_store(tmp_path / "traces")
    program = Path(sys.executable).with_name("kata-runtime")
    command = f"{program} trace top --trace-dir {directory.parent}; echo left $?; exec cat"
    environment = {**os.environ, "LANG": "C.UTF-8"}

    def tell(*arguments: str) -> str:
        done = subprocess.run([*tmux, *arguments], env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    def see(text: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            shown = tell("capture-pane", "-p")
            if text in shown:
                return shown
        raise AssertionError(f"{text!r} is not on the screen:\n{shown}")

    tell("-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "40", command)
    try:
        assert "rootSpan" in see("boot.kernel")
        tell("send-keys", "/", "crun create", "Enter")
        tell("send-keys", "Enter")
        see("container_id = c1")
        tell("send-keys", "q")
        see("left 0")
    finally:
        tell("kill-server")
