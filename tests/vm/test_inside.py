"""`exec`, `list`, `ps` and `stop` of what `kata-runtime run` started."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm


@pytest.fixture
def box(kata: Kata) -> Iterator[Kata]:
    """A sandbox `box` whose process ends with 7 when it is asked to."""
    script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"
    child = kata.start("run", "--name", "box", "--", "sh", "-c", script, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    yield kata
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    child.wait(60)
    child.stdout.close()


def test_exec(box: Kata) -> None:
    done = box("exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 9)
    data = os.urandom(1 << 20)
    assert box("exec", "-i", "box", "--", "cat", stdin=data).stdout == data
    script = "echo $MINE $GIVEN $HOSTNAME; pwd; id -u; id -g"
    options = ["-e", "MINE", "-e", "GIVEN=2", "-w", "/tmp", "-u", "3:4"]
    box.environment["MINE"] = "1"
    done = box("exec", *options, "box", "box", "--", "sh", "-c", script)
    assert done.stdout.split() == [b"1", b"2", b"box", b"/tmp", b"3", b"4"]
    assert box("exec", "box", "nosuch").returncode == 127
    assert box("exec", "box", "/etc").returncode == 126
    done = box("exec", "nobox", "--", "true")
    assert (done.returncode, b"running: box" in done.stderr) == (125, True)


def test_exec_in_a_terminal(box: Kata) -> None:
    controller, tty = pty.openpty()
    child = box.start("exec", "-it", "box", "--", "sh", "-c", "tty && read word && echo got:$word",
                      stdin=tty, stdout=tty, stderr=tty)  # fmt: skip
    seen = b""
    while b"/dev/pts/" not in seen:
        seen += os.read(controller, 4096)
    os.write(controller, b"hello\n")
    while b"got:hello" not in seen:
        seen += os.read(controller, 4096)
    assert child.wait(60) == 0
    os.close(controller)
    os.close(tty)


def test_an_exec_that_is_killed_ends_in_the_guest(box: Kata) -> None:
    child = box.start("exec", "box", "--", "sh", "-c", "echo here; exec sleep 1234", stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    child.kill()
    child.wait()
    child.stdout.close()
    # It ends within the guest's time, which is ours to wait for.
    script = "while pgrep -f 'sleep 1234' >/dev/null; do sleep 0.1; done; echo gone"
    assert box("exec", "box", "--", "sh", "-c", script.replace("'sleep 1234'", "'sleep 123[4]'")).stdout == b"gone\n"


def test_list_ps_and_stop(box: Kata) -> None:
    root = ["--root", str(box.directory / "oci")]
    [entry] = json.loads(box(*root, "list", "--json").stdout)
    assert (entry["id"], entry["sandbox"], entry["status"]) == ("box", "box", "running")
    assert Path(f"/proc/{entry['pid']}").exists()
    assert box(*root, "list", "-q").stdout == b"box\n"
    assert b"running" in box(*root, "ps").stdout
    assert len(json.loads(box("ps", "box", "--json").stdout)) >= 1
    done = box("stop", "box")
    assert (done.stdout, done.returncode) == (b"box\n", 0)
    assert box(*root, "list", "-q").stdout == b""


def test_a_detached_run_and_its_output(kata: Kata, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    kata.environment["GIVEN"] = "2"
    options = ["-d", "--rm", "--name", "beside", "-v", f"{tmp_path}:/v:ro", "-e", "GIVEN", "--workdir", "/tmp"]
    script = "cat /v/file; touch /v/new; echo $GIVEN; pwd; trap 'exit 0' TERM; while :; do sleep 0.1; done"
    done = kata.run("sh", "-c", script, options=options)
    assert (done.stdout, done.returncode) == (b"beside\n", 0), done.stderr
    written = b""
    while b"/tmp\n" not in written:
        written = kata("logs", "beside").stdout
    assert written.splitlines()[0] == b"of the host"
    assert b"Read-only file system" in written
    assert written.endswith(b"2\n/tmp\n")
    assert kata("exec", "beside", "--", "cat", "/v/file").stdout == b"of the host\n"
    assert kata("stop", "beside").returncode == 0
    while kata("logs", "beside").returncode == 0:
        pass


def test_a_detached_run_that_fails_says_so(kata: Kata) -> None:
    done = kata.run("nosuch", options=["-d", "--rm"])
    assert (done.stdout, done.returncode) == (b"", 127)
    assert b"nosuch" in done.stderr
