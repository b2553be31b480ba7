"""The commands of an OCI runtime by themselves, as a monitor like conmon calls them, and what runc says of the same."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.bundles import make_bundle, runc_missing
from support.kata import TIMEOUT, Kata

pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(runc_missing()), reason=runc_missing())]


@dataclass
class Engine:
    """An OCI runtime with a root of the test's own. pytest is a subreaper as conmon is, and waits for the ends."""

    argv: list[str]
    directory: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        argv = [*self.argv, *arguments]
        return subprocess.run(argv, env=self.environment, text=True, check=False, timeout=TIMEOUT, **given)

    def create(self, bundle: Path, **options: Any) -> int:
        """`create` a container `box`; the process that stands for it."""
        pid_file = self.directory / "pid"
        extra = options.pop("arguments", ())
        with (self.directory / "out").open("wb") as out:
            done = self("create", "--bundle", str(bundle), "--pid-file", str(pid_file), *extra, "box",
                        stdout=out, stderr=out, **options)  # fmt: skip
        assert done.returncode == 0, self.output
        return int(pid_file.read_text())

    @property
    def output(self) -> str:
        return (self.directory / "out").read_text()

    def status(self) -> str:
        return str(json.loads(self("state", "box").stdout)["status"])


@pytest.fixture(params=["kata", "runc"])
def engine(request: pytest.FixtureRequest, kata: Kata, tmp_path: Path) -> Iterator[Engine]:
    """Ours, and runc: what is tested with both is what both do."""
    argv = kata.command() if request.param == "kata" else ["runc"]
    engine = Engine([*argv, "--root", str(tmp_path / "root")], tmp_path, kata.env())
    yield engine
    engine("delete", "--force", "box")


def ended(pid: int) -> int:
    """Wait for a process that has become ours; its exit status as conmon tells it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def test_a_life(engine: Engine, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done")
    pid = engine.create(bundle)
    assert engine.status() == "created"
    assert engine("create", "--bundle", str(bundle), "box").returncode != 0
    assert engine("start", "box").returncode == 0
    assert engine("start", "box").returncode != 0
    assert engine.status() == "running"
    state = json.loads(engine("state", "box").stdout)
    assert (state["id"], state["pid"], state["bundle"]) == ("box", pid, str(bundle))
    listed = json.loads(engine("list", "--format", "json").stdout)
    assert [(entry["id"], entry["pid"], entry["status"]) for entry in listed if entry["bundle"]] == [
        ("box", pid, "running")
    ]
    assert engine("list", "-q").stdout == "box\n"
    done = engine("exec", "box", "sh", "-c", "echo in; exit 9")
    assert (done.stdout, done.returncode) == ("in\n", 9)
    process = tmp_path / "process.json"
    wanted = {"args": ["sh", "-c", "exit 8"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    process.write_text(json.dumps(wanted))
    exec_pid = tmp_path / "exec-pid"
    done = engine("exec", "--process", str(process), "--detach", "--pid-file", str(exec_pid), "box",
                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0
    assert ended(int(exec_pid.read_text())) == 8
    assert engine("delete", "box").returncode != 0
    while "up" not in engine.output:
        pass
    assert engine("kill", "box", "TERM").returncode == 0
    assert ended(pid) == 3
    assert engine.status() == "stopped"
    assert engine("kill", "box", "TERM").returncode != 0
    assert engine("delete", "box").returncode == 0
    assert engine("state", "box").returncode != 0


def test_one_that_is_never_started(engine: Engine, tmp_path: Path) -> None:
    pid = engine.create(make_bundle(tmp_path / "bundle", "sleep", "1000"))
    assert engine("delete", "--force", "box").returncode == 0
    assert ended(pid) == 137
    assert engine("state", "box").returncode != 0


def test_a_terminal_of_who_listens(engine: Engine, tmp_path: Path) -> None:
    script = "read word; echo got:$word; stty size"
    bundle = make_bundle(tmp_path / "bundle", "sh", "-c", script, process={"terminal": True})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen(1)
        pid = engine.create(bundle, arguments=["--console-socket", str(tmp_path / "console")])
        connection, _ = listener.accept()
        with connection:
            _, [master], _, _ = socket.recv_fds(connection, 100, 1)
    assert engine("start", "box").returncode == 0
    os.write(master, b"hello\n")
    seen = b""
    while b"got:hello" not in seen:
        seen += os.read(master, 4096)
    assert ended(pid) == 0
    os.close(master)


def test_who_kills_the_process_that_stands_for_it_kills_it(engine: Engine, tmp_path: Path) -> None:
    pid = engine.create(make_bundle(tmp_path / "bundle", "sleep", "1000"))
    assert engine("start", "box").returncode == 0
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == 137
    assert engine.status() == "stopped"
    assert engine("delete", "--force", "box").returncode == 0


def test_a_command_that_is_not_there(engine: Engine, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "nosuch")
    done = engine("--log", str(tmp_path / "log"), "--log-format", "json", "create", "--bundle", str(bundle), "box")
    assert done.returncode != 0
    # Where conmon and Podman look for the reason.
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert "nosuch" in last["msg"]
    assert engine("state", "box").returncode != 0
