"""The shim's outer half under Debian's containerd: bootstrap, ttrpc, events, delete. The inner half is the host's."""

import os
import re
import signal
from pathlib import Path

import pytest

from support.containerd import IMAGE, Containerd, eventually, shim_pid, task, watched

pytestmark = [pytest.mark.containerd, pytest.mark.slow]

RUNTIME = ("--runtime", "io.containerd.host.v2")


def run(containerd: Containerd, name: str, *command: str, check: bool = True) -> tuple[int, str, str]:
    done = containerd.ctr("run", "--rm", *RUNTIME, IMAGE, name, *command, check=check)
    # ctr 2.x warns on hosts with cgroup v1, as this may be one.
    said = [line for line in done.stderr.decode().splitlines(keepends=True) if "DEPRECATION" not in line]
    return done.returncode, done.stdout.decode(), "".join(said)


def detached(containerd: Containerd, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
    containerd.ctr("run", "--detach", *RUNTIME, *options, IMAGE, name, *command)


def remains(containerd: Containerd) -> list[str]:
    """What a container may not leave behind."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(containerd.directory) in line]
    found += [str(path) for path in (containerd.state / "io.containerd.runtime.v2.task" / "default").glob("*")]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"host_shim.py" in command and str(containerd.address).encode() in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_run(containerd: Containerd) -> None:
    assert run(containerd, "one", "echo", "hello") == (0, "hello\n", "")
    code, output, said = run(containerd, "two", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (code, output) == (7, "out\n")
    assert "err" in said
    eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")


def test_stdin(containerd: Containerd) -> None:
    done = containerd.ctr("run", "--rm", *RUNTIME, IMAGE, "in", "cat", data=b"0123456789" * 10000)
    assert done.stdout == b"0123456789" * 10000


def test_life_of_a_detached_container(containerd: Containerd) -> None:
    with watched(containerd) as events:
        detached(containerd, "box", "sleep", "1000")
        pid, state = task(containerd, "box") or (0, "")
        assert state == "RUNNING"
        assert b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()

        done = containerd.ctr("tasks", "exec", "--exec-id", "e1", "box", "sh", "-c", "echo inside; exit 3", check=False)
        assert (done.returncode, done.stdout) == (3, b"inside\n")
        assert str(pid) in containerd.ctr("tasks", "ps", "box").stdout.decode()
        assert "pids.current" in containerd.ctr("tasks", "metrics", "box").stdout.decode()

        containerd.ctr("tasks", "pause", "box")
        assert task(containerd, "box") == (pid, "PAUSED")
        containerd.ctr("tasks", "resume", "box")
        assert task(containerd, "box") == (pid, "RUNNING")

        assert b"exists" in containerd.ctr("tasks", "start", "box", check=False).stderr
        assert b"can't be checkpointed" in containerd.ctr("tasks", "checkpoint", "box", check=False).stderr

        containerd.ctr("tasks", "kill", "--signal", "SIGKILL", "box")
        eventually(lambda: task(containerd, "box") == (pid, "STOPPED"), "the killed container goes on")
        done = containerd.ctr("tasks", "delete", "box", check=False)
        assert b"exit code 137" in done.stderr
        assert task(containerd, "box") is None
        assert b"not found" in containerd.ctr("tasks", "kill", "box", check=False).stderr
        eventually(lambda: events() and events()[-1][0] == "/tasks/delete", f"no delete event: {events()}")

        topics = [topic.removeprefix("/tasks/") for topic, _ in events()]
        assert " ".join(topics) == (
            "create start exec-added exec-started exit paused resumed "
            "paused resumed "  # containerd does that around a checkpoint
            "exit delete"
        )
        exits = [content for topic, content in events() if topic == "/tasks/exit"]
        assert [(content["id"], content["exit_status"]) for content in exits] == [("e1", 3), ("box", 137)]
    eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")


def test_containers_of_a_pod_share_a_shim(containerd: Containerd) -> None:
    kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"

    def member(name: str, role: str) -> None:
        options = ("--annotation", f"{kind}={role}", "--annotation", f"{sandbox}=pod")
        detached(containerd, name, "sleep", "1000", options=options)

    member("pod", "sandbox")
    member("a", "container")
    member("b", "container")
    shim = shim_pid(containerd, "pod")
    for name in ("a", "b"):
        pid, state = task(containerd, name) or (0, "")
        assert state == "RUNNING"
        assert f"PPid:\t{shim}\n" in Path(f"/proc/{pid}/status").read_text()
    containerd.ctr("tasks", "delete", "--force", "a")
    # containerd has called `delete` for a by now; the others must not have felt it.
    eventually(lambda: len(remains(containerd)) == 2 * 2 + 1, f"unexpected: {remains(containerd)}")
    assert task(containerd, "b") is not None
    for name in ("b", "pod"):
        containerd.ctr("tasks", "delete", "--force", name)
    eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")


def test_a_container_without_its_sandbox_is_refused(containerd: Containerd) -> None:
    options = ("--annotation", "io.kubernetes.cri.container-type=container",
               "--annotation", "io.kubernetes.cri.sandbox-id=nowhere")  # fmt: skip
    done = containerd.ctr("run", "--detach", *RUNTIME, *options, IMAGE, "orphan", "true", check=False)
    assert done.returncode != 0
    assert b"sandbox nowhere of container orphan has no shim at unix:///" in done.stderr
    eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")


def test_containerd_restarts(containerd: Containerd) -> None:
    detached(containerd, "survivor", "sh", "-c", "while :; do sleep 1; done")
    before = task(containerd, "survivor")
    pid, _ = before or (0, "")
    containerd.stop()
    containerd.start()
    assert task(containerd, "survivor") == before
    done = containerd.ctr("tasks", "exec", "--exec-id", "again", "survivor", "echo", "still here")
    assert done.stdout == b"still here\n"
    # It ends while containerd is away: the event has to wait.
    containerd.stop()
    os.kill(pid, signal.SIGKILL)
    seen = len(containerd.log.read_text())
    containerd.start()
    if containerd.version < 2:
        arrived = 'msg="event forwarded" ns=default topic=/tasks/exit'
        eventually(lambda: arrived in containerd.log.read_text()[seen:], "the exit was lost")
        assert task(containerd, "survivor") == (pid, "STOPPED")
        containerd.ctr("tasks", "delete", "survivor", check=False)
    else:
        # It takes a task without processes for a leak, and removes it while it starts.
        assert task(containerd, "survivor") is None
    eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")


def test_a_killed_shim_is_cleaned_up(containerd: Containerd) -> None:
    with watched(containerd) as events:
        detached(containerd, "victim", "sleep", "1000")
        pid, _ = task(containerd, "victim") or (0, "")
        os.kill(shim_pid(containerd, "victim"), signal.SIGKILL)
        eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")
        eventually(lambda: events() and events()[-1][0] == "/tasks/delete", f"no delete event: {events()}")
        exits = [content for topic, content in events() if topic == "/tasks/exit"]
        assert [content["exit_status"] for content in exits] == [137]
        os.kill(pid, signal.SIGKILL)  # only a VM would have died with its shim
    assert task(containerd, "victim") is None


def test_many_one_after_the_other_and_at_once(containerd: Containerd) -> None:
    for number in range(10):
        assert run(containerd, f"seq{number}", "true") == (0, "", "")
    running = [containerd.popen("run", "--rm", *RUNTIME, IMAGE, f"par{number}", "true") for number in range(10)]
    for process in running:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    eventually(lambda: not remains(containerd), f"left behind: {remains(containerd)}")


def test_the_log_reaches_containerd(containerd: Containerd) -> None:
    run(containerd, "talker", "true")
    log = containerd.log.read_text()
    for said in ("the shim serves unix:///run/", "the shim ends"):
        assert re.search(
            rf'level=info source=runtime name=kata.shim msg="{said}.*" namespace=default sandbox=talker', log
        )
