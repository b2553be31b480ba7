"""The harness of `nox -s nested`, as far as it goes without a guest."""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kata_runtime.hypervisor.qemu.accelerator import Usability
from support.l1 import __main__ as command
from support.l1.machine import Machine, nested_kvm
from support.l1.userland import Userland

ORDER = {"command": "true", "shell": ""}


@pytest.fixture
def l1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose QEMU is a shell script (`fake`), without virtiofsd."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("kata_runtime.hypervisor.qemu.accelerator.kvm_usability", lambda: Usability(False))
    fake(programs, "virtiofsd", "exec sleep 1000")
    return Machine(Userland(tmp_path), tmp_path / "product.img", tmp_path / "share", ORDER)


def fake(programs: Path, name: str, script: str) -> None:
    path = programs / name
    path.write_text(f"#!/bin/sh\necho $$ >{programs.parent}/{name}.pid\n{script}\n")
    path.chmod(0o755)


def qemu(l1: Machine, script: str) -> None:
    fake(l1.share.parent / "bin", "qemu-system-x86_64", script)


def nothing_runs(l1: Machine) -> None:
    for path in l1.share.parent.glob("*.pid"):
        try:
            ended = os.pidfd_open(int(path.read_text()))
        except ProcessLookupError:
            continue
        # One that was killed is gone a moment later, or waits for whoever adopts it.
        assert select.select([ended], [], [], 10)[0], path.name
        os.close(ended)


@pytest.mark.slow
def test_the_status_is_that_of_the_tests(l1: Machine, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    qemu(l1, f"printf 'one\\r\\ntwo\\r\\n'; echo 5 >{l1.share}/l1/status")
    assert l1.run(30) == 5
    assert b"one\ntwo\n" in capfdbinary.readouterr().out
    assert "command=true\n" in (l1.share / "l1/order").read_text()
    nothing_runs(l1)


@pytest.mark.slow
def test_an_l1_that_dies_has_failed(l1: Machine) -> None:
    qemu(l1, "exit 0")
    assert l1.run(30) == 1
    nothing_runs(l1)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["", "while :; do echo x; done & ", "exec >/dev/null; "])
def test_an_l1_that_never_ends_is_ended(l1: Machine, output: str) -> None:
    qemu(l1, f"{output}exec sleep 1000")
    begin = time.monotonic()
    assert l1.run(0.5) is None
    assert time.monotonic() - begin < 10
    nothing_runs(l1)


@pytest.mark.slow
def test_ctrl_c_takes_l1_down(l1: Machine) -> None:
    qemu(l1, "exec sleep 1000")

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            l1.run(30)
    finally:
        signal.signal(signal.SIGALRM, before)
    nothing_runs(l1)


@pytest.mark.slow
def test_its_qemu(l1: Machine) -> None:
    qemu(l1, f'for word in "$@"; do echo "$word" >>{l1.share}/words; done; echo 0 >{l1.share}/l1/status')
    assert l1.run(30) == 0
    words = (l1.share / "words").read_text().splitlines()
    assert words[words.index("-cpu") + 1] == "max,erms=off,fsrm=off,+svm"
    assert [word for word in words if word.startswith("id=") and "snapshot=on" not in word] == []


@pytest.mark.parametrize(
    ("usable", "switches", "expected"),
    [
        (True, {"kvm_amd": "1"}, True),
        (True, {"kvm_intel": "Y"}, True),
        (True, {"kvm_intel": "N"}, False),
        (True, {}, False),
        (False, {"kvm_amd": "1"}, False),
    ],
)
def test_kvm_for_l1(
    usable: bool, switches: dict[str, str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kata_runtime.hypervisor.qemu.accelerator.kvm_usability", lambda: Usability(usable))
    for name, value in switches.items():
        (tmp_path / name / "parameters").mkdir(parents=True)
        (tmp_path / name / "parameters/nested").write_text(f"{value}\n")
    assert nested_kvm(tmp_path) is expected


def test_the_list_of_tests(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="one" time="1.25"/>'
        '<testcase name="two" time="61"><failure>why</failure></testcase></testsuite></testsuites>'
    )
    assert command.times(report).splitlines() == ["      1.2 s  passed   one", "     61.0 s  failure  two"]


def test_what_l1_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    options = command.parser().parse_args(["-k", "a and not 'b'", "-x"])
    words = shlex.split(command.order(options)["command"])
    assert words[words.index("-k") + 1] == "a and not 'b'"
    assert "-x" in words
    assert command.order(command.parser().parse_args(["--command", "echo 'hi'"]))["command"] == "echo 'hi'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"), [(["--timeout", "soon"], "invalid float"), (["--shell", "--bench"], "not allowed with")]
)
def test_a_command_line_that_is_none(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.l1", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 2
    assert said in done.stderr
