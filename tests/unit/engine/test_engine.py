"""The commands of an OCI runtime, as far as they go without a guest."""

import argparse
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from kata_runtime.cli.main import main
from kata_runtime.cli.options import environment
from kata_runtime.engine.life import number_of
from kata_runtime.engine.standin import Console, stand_in
from kata_runtime.engine.store import Record, Store, began
from kata_runtime.errors import HostError, KataError, SandboxError


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGTERM", 15), ("RTMIN+3", signal.SIGRTMIN + 3), ("64", 64)],
)
def test_signals(text: str, number: int) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "TERMINATE", "RTMIN+99", "٩"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no signal"):
        number_of(text)


def test_variables_of_ours() -> None:
    assert environment(["A=1", "B", "C", "D="], {"B": "2"}) == ("A=1", "B=2", "D=")
    with pytest.raises(KataError, match="names no variable"):
        environment(["=1"])


def test_a_record_is_kept_and_its_id_taken(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    record = Record("c1", "/bundle", sandbox="c1", pid=os.getpid(), began=began(os.getpid()), annotations={"a": "b"})
    store.reserve(record)
    assert store.read("c1") == record
    assert (record.owner, record.stands) == (True, True)
    assert store.ids() == ["c1"]
    with pytest.raises(SandboxError, match="c1 exists already"):
        store.reserve(record)
    store.forget("c1")
    assert store.ids() == []
    with pytest.raises(SandboxError, match="'c1' does not exist"):
        store.read("c1")
    for name in ("..", "a/b", ""):
        with pytest.raises(SandboxError):
            store.reserve(Record(name, "/"))


def test_a_process_id_that_is_used_again_stands_for_nobody() -> None:
    assert not Record("c1", "/", pid=os.getpid(), began=began(os.getpid()) + 1).stands
    assert not Record("c1", "/", pid=0).stands


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["kill", "c1", "NOPE"], "'NOPE' is no signal"),
        (["start"], "required"),
        (["exec", "-w", "tmp", "c1", "--", "true"], "'tmp' is not an absolute path"),
        (["events", "--interval", "never", "c1"], "'never' is not a number of seconds"),
        (["stop", "--time", "soon", "c1"], "'soon' is not a number of seconds"),
    ],
)
def test_a_command_line_that_is_none(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == KataError.exit_code
    said = capsys.readouterr().err
    assert why in said
    assert f"usage: kata-runtime {arguments[0]}" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["state", "nosuch"], "container 'nosuch' does not exist"),
        (["delete", "../etc"], "can't be the name"),
        (["create", "--bundle", "/nowhere", "c1"], "/nowhere is not an OCI bundle"),
        (["create", "--preserve-fds", "3", "c1"], "--preserve-fds"),
        (["update", "nosuch", "--memory", "1"], "does not exist"),
        (["exec", "c1"], "exec needs a command"),
        (["exec", "--"], "exec needs a sandbox"),
        (["exec", "--process", "/nowhere", "c1"], "/nowhere can't be read"),
        (["exec", "--user", "root", "c1", "--", "true"], "exec takes numbers"),
        (["exec", "--console-socket", "/x", "c1", "--", "true"], "for a process with a terminal"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="what others are told is that they aren't root")
def test_one_clear_error(arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    root = ["--root", str(tmp_path / "root"), "--log", str(log), "--log-format", "json"]
    assert main([*root, *arguments]) == KataError.exit_code
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said
    # Where an engine looks for it.
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert why in last["msg"]


def test_delete_force_of_nothing(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        assert main(["--root", str(tmp_path), "delete", "--force", "nosuch"]) == 0


def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features"]) == 0
    features = json.loads(capsys.readouterr().out)
    assert "pid" in features["linux"]["namespaces"]
    assert features["linux"]["cgroup"]["v2"] is True


def test_who_listens_at_a_console_socket_gets_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        console = Console(str(path))
        connection, _ = listener.accept()
        with connection:
            _, [master], _, _ = socket.recv_fds(connection, 100, 1)
    os.write(console.descriptor, b"raw\n")
    assert os.read(master, 10) == b"raw\n"
    os.close(master)
    os.close(console.descriptor)
    with pytest.raises(HostError, match="--console-socket"):
        Console(str(tmp_path / "nobody"))


def test_a_process_stands_in(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    reading, writing = os.pipe()

    def body(started: object) -> int:
        assert callable(started)
        started()
        os.read(reading, 1)
        return 7

    assert stand_in(body, pid_file=str(pid_file)) == 0
    pid = int(pid_file.read_text())
    os.write(writing, b"x")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert stand_in(lambda _: 5) == 5

    def refused(_: object) -> int:
        raise KataError("no")

    assert stand_in(refused) == KataError.exit_code
    for descriptor in (reading, writing):
        os.close(descriptor)
