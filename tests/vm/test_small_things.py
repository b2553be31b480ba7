"""Small things that users meet, with a real guest, and beside runc where it can be asked."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.bundles import make_bundle, run_by_runc, runc_missing
from support.kata import Kata

pytestmark = pytest.mark.vm
RUNC = pytest.mark.skipif(bool(runc_missing()), reason=runc_missing() or "runc")


def test_descriptors_that_the_caller_closed(kata: Kata) -> None:
    """What is written to them goes nowhere, and above all into no file of ours that was opened first."""
    command = kata.tracing(runtime=True, agent=False).command(
        "run", "--", "sh", "-c", "echo MARK; echo MARK >&2; exit 3"
    )
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command], check=False, env=kata.env(), timeout=120)
    assert done.returncode == 3
    files = [path for path in kata.directory.rglob("*") if path.is_file()]
    assert any(path.name == "spans.jsonl" for path in files)
    assert [path for path in files if b"MARK\n" in path.read_bytes()] == []


def test_what_the_caller_ignores_stays_ignored(kata: Kata) -> None:
    """nohup."""
    child = kata.start(
        "run", "-i", "--", "sh", "-c", "echo up; read line; exit 5",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGHUP)
    child.stdin.write(b"go\n")
    child.stdin.close()
    assert child.wait(60) == 5
    child.stdout.close()


@pytest.mark.parametrize(
    ("options", "argv", "field"),
    [
        ((), [b"printf", b"\xff"], "process.args[1]"),
        (("-e", b"NAME=\xfe"), [b"env"], "process.env"),
        (("-w", b"/\xfd"), [b"pwd"], "process.cwd"),
    ],
)
def test_what_is_no_text_is_refused(
    kata: Kata, options: tuple[str | bytes, ...], argv: list[bytes], field: str
) -> None:
    command = [*kata.command("run"), *options, "--", *argv]
    done = subprocess.run(command, capture_output=True, check=False, env=kata.env(), timeout=60)
    assert done.returncode == 125
    assert done.stderr.decode().startswith(f"kata-runtime: {field}")
    assert "is no UTF-8" in done.stderr.decode()


@RUNC
def test_an_environment_of_more_than_a_megabyte(kata: Kata, tmp_path: Path) -> None:
    env = ["PATH=/bin:/usr/bin", *(f"V{number:02}={'x' * 100_000}" for number in range(12))]
    bundle = make_bundle(
        tmp_path / "b", "sh", "-c", "env | grep ^V | sort | md5sum; env | grep -c ^V", process={"env": env}
    )
    theirs = run_by_runc(bundle, f"env{os.getpid()}")
    assert theirs.stdout.endswith(b"\n12\n"), theirs.stderr
    assert kata("run", "--bundle", str(bundle)).stdout == theirs.stdout


@RUNC
@pytest.mark.parametrize("words", ["exec: no command", "exec: No such file or directory"])
def test_the_status_is_the_processs(kata: Kata, tmp_path: Path, words: str) -> None:
    bundle = make_bundle(tmp_path / "b", "sh", "-c", f"echo '{words}' >&2; exit 1")
    assert run_by_runc(bundle, f"status{os.getpid()}").returncode == 1
    assert kata("run", "--bundle", str(bundle)).returncode == 1


@RUNC
def test_hooks_of_a_bundle_run_on_the_host(kata: Kata, tmp_path: Path) -> None:
    """In runc's order; what each is told is its own."""
    log = tmp_path / "log"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {}
    for kind in kinds:
        script = tmp_path / kind
        script.write_text(f"#!/bin/sh\ncat >/dev/null; echo {kind} >>{log}\n")
        script.chmod(0o755)
        hooks[kind] = [{"path": str(script)}]
    bundle = make_bundle(tmp_path / "b", "true", hooks=hooks)
    assert run_by_runc(bundle, f"hooks{os.getpid()}").returncode == 0
    theirs = log.read_text()
    log.unlink()
    done = kata("run", "--bundle", str(bundle))
    assert done.returncode == 0, done.stderr
    assert log.read_text() == theirs == "".join(f"{kind}\n" for kind in kinds)
