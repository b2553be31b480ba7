"""The table of failures (docs/tracing.md): what stderr says is what `explain`, `show`, the page and JSON say."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kata_traces.views.html import embedded
from support.kata import Kata
from support.processes import children

pytestmark = pytest.mark.vm

PREFIX, HINT = "kata-runtime: ", "  hint: "


@dataclass(frozen=True)
class Row:
    """A failure: how it is made, what the message must say, and the span in which it was seen first."""

    says: tuple[str, ...]
    span: str
    hint: str = ""
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ("true",)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    # What is ended in a sandbox that runs: the program's name, and how.
    victim: str = ""
    number: signal.Signals = signal.SIGKILL
    status: int = 125


QEMU, PYTHON = "qemu-system-x86_64", Path(sys.executable).resolve().name
ROWS = {
    "out of memory at boot": Row(
        ("Kernel panic - not syncing: System is deadlocked on memory", "it came as far as: kernel"),
        "boot.kernel",
        "the guest ran out of memory: more --memory",
        options=("--memory", "64"),
    ),
    "too little memory for QEMU": Row(
        ("QEMU did not start (exit status 1); QEMU said: qemu: initrd is too large, cannot support.",),
        "launchQemu",
        "--memory",
        options=("--memory", "1"),
    ),
    "argument that QEMU refuses": Row(
        ("QEMU did not start", "Property 'max-x86_64-cpu.no-such-feature' not found"),
        "launchQemu",
        "[hypervisor.qemu]",
        settings={"hypervisor.qemu": {"accelerator": "tcg", "cpu_features": "no-such-feature=on"}},
    ),
    "kernel panic": Row(
        ("Kernel panic - not syncing: VFS: Unable to mount root fs",),
        "boot.kernel",
        "do kernel, initrd, image and kernel_params",
        settings={"hypervisor.qemu": {"kernel_params": "rdinit=/nowhere"}},
    ),
    "image that is none": Row(
        ("kata: boot failed: /dev/vda can't be mounted",),
        "boot.kernel",
        "do kernel, initrd, image and kernel_params",
        settings={"hypervisor.qemu": {"image": "/etc/passwd"}},
    ),
    "kernel that is missing": Row(
        ("the guest's kernel is missing: /nowhere/kernel",),
        "findArtifacts",
        "correct [hypervisor.qemu] kernel",
        settings={"hypervisor.qemu": {"kernel": "/nowhere/kernel"}},
    ),
    "command not found": Row(
        ("executable file `no-such-command` not found in $PATH",),
        "crun create",
        command=("no-such-command",),
        status=127,
    ),
    "killed VM": Row(("the VM ended while a container was running (killed by signal 9)",), "Wait", victim=QEMU),
    "dead virtiofsd": Row(
        ("(virtiofsd ended unexpectedly (killed by signal 9))", "virtiofsd said:"), "Wait", victim="virtiofsd"
    ),
    "hung agent": Row(
        ("the VM ended while a container was running (the agent has not answered for 3 s)",),
        "Wait",
        settings={"agent.kata": {"health_check_request_timeout_ms": 3000}},
        victim=QEMU,
        number=signal.SIGSTOP,
    ),
}


def up(kata: Kata, *options: str) -> "subprocess.Popen[bytes]":
    """A sandbox `broken` whose workload has started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = kata.start("run", "--trace", "--name", "broken", *options, "--", "sh", "-c", "echo up; sleep 1000", **pipes)
    assert child.stdout is not None
    if child.stdout.readline() != b"up\n":
        pytest.fail(f"the sandbox did not start: {child.communicate()[1].decode()}")
    return child


def failed(kata: Kata, row: Row) -> tuple[int, str]:
    """Exit status and stderr of the failure."""
    for table, keys in row.settings.items():
        kata.configure(table, **keys)
    if row.victim:
        child = up(kata, *row.options)
        os.kill(children(child.pid)[row.victim], row.number)
        _, errors = child.communicate(timeout=60)
        return child.returncode, errors.decode()
    done = kata.run(*row.command, options=["--trace", "--name", "broken", *row.options])
    return done.returncode, done.stderr.decode()


def message_of(stderr: str) -> tuple[list[str], str]:
    """The lines of the error that a run ended with, and its hint."""
    lines = stderr.splitlines()
    hint = lines.pop().removeprefix(HINT) if lines[-1].startswith(HINT) else ""
    begin = max(i for i, line in enumerate(lines) if line.startswith(PREFIX) and "WARNING" not in line)
    return [lines[begin].removeprefix(PREFIX), *lines[begin + 1 :]], hint


def views(kata: Kata, tmp_path: Path) -> dict[str, str]:
    """What each view of the trace says of the failure: lines, those of the terminal joined again."""
    page = tmp_path / "page.html"
    assert kata("trace", "show", "broken", "--format", "html", "--output", str(page)).returncode == 0
    told = json.loads(kata("trace", "show", "broken", "--format", "json").stdout)["failure"]
    return {
        "explain": kata("trace", "explain", "broken").stdout.decode(),
        "show": kata("trace", "show", "broken", "--width", "1000").stdout.decode(),
        "page": "\n".join(embedded(page.read_text())["failure"]["lines"]),
        "json": f"{told['message']}\nhint: {told['hint']}",
    }


@pytest.mark.parametrize("name", ROWS)
def test_every_view_tells_what_stderr_told(kata: Kata, tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    status, stderr = failed(kata, row)
    assert status == row.status, stderr
    lines, hint = message_of(stderr)
    for part in row.says:
        assert part in "\n".join(lines)
    assert row.hint in hint
    for view, text in views(kata, tmp_path).items():
        for line in lines:
            # On a terminal all lines but the first are indented.
            assert line.strip() in text, f"{view} lacks: {line}"
        assert not hint or f"hint: {hint}" in text, view
    explained = kata("trace", "explain", "broken").stdout.decode()
    assert f"It was seen first in {row.span} (" in explained
    # No advice about the price of a guest that never ran.
    assert "most of 0 s" not in explained


def test_a_killed_runtime_is_told_with_its_time(kata: Kata, tmp_path: Path) -> None:
    child = up(kata)
    store = kata.trace_dir / "broken"
    begun = json.loads((store / "meta.json").read_text())["start"]
    last = (store / "spans.jsonl").stat().st_mtime_ns
    # Nothing ends meanwhile; only the store's clock goes on.
    fd = os.pidfd_open(child.pid)
    while (store / "lock").stat().st_mtime_ns < last + 2_000_000_000:
        assert not select.select([fd], [], [], 0.2)[0], "the runtime ended by itself"
    os.close(fd)
    child.kill()
    child.communicate(timeout=30)
    killed = Path(f"{store}/lock").stat().st_mtime_ns
    lived = (killed - begun) / 1e9
    told = json.loads(kata("trace", "show", "broken", "--format", "json").stdout)
    assert told["duration_ns"] / 1e9 == pytest.approx(lived, abs=0.2)
    assert killed > last + 2_000_000_000
    for view, text in views(kata, tmp_path).items():
        assert "The runtime was killed " in text, view
        assert "after its start, give or take 1.00 s" in text, view
        assert "hint: if nobody did, the host's kernel may have" in text, view
    assert "It was in rootSpan" in kata("trace", "explain", "broken").stdout.decode()
    assert kata.run("true").returncode == 0  # which also cleans up


def test_what_fails_before_the_sandbox_is_told_by_its_trace(kata: Kata, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        done = kata.run("true", options=["--trace", "--name", "broken", "-p", f"{port}:80"])
    assert done.returncode == 125
    [line], hint = message_of(done.stderr.decode())
    assert f"port {port} can't be published" in line
    for view, text in views(kata, tmp_path).items():
        assert line in text, view
        assert f"hint: {hint}" in text, view


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_costs_spans_and_says_so(kata: Kata, tmp_path: Path, small_disk: Path) -> None:
    kata.configure("runtime", trace_dir=str(small_disk))
    done = kata.run("echo", "hello", options=["--trace", "--name", "broken"])
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    warned = next(line for line in done.stderr.decode().splitlines() if "the trace is not whole" in line)
    assert "store full or not writable" in warned
    for command in (["explain"], ["show", "--width", "1000"]):
        text = kata("trace", command[0], "broken", *command[1:]).stdout.decode()
        assert "store full or not writable" in text
        assert "killed" not in text
    assert "so far" not in kata("trace", "explain", "broken").stdout.decode()
