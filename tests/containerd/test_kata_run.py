"""`ctr run --runtime io.containerd.kata.v2` with Debian's containerd and real guests."""

import hashlib
import json
import os
import pty
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from kata_runtime.shim.launch import socket_address
from support import leaks
from support.containerd import IMAGE, eventually, shim_pid, task, watched
from support.kata_containers import RUNTIME, KataContainers, ancestors, vm_pids

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]


def topics(events: list[tuple[str, dict[str, object]]]) -> str:
    return " ".join(topic.removeprefix("/tasks/") for topic, _ in events)


def test_run_in_the_foreground(kata: KataContainers) -> None:
    done = kata.run("one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    data = os.urandom(1 << 20)
    done = kata.run("two", "sh", "-c", "cat; head -c 8388608 /dev/zero", data=data)
    assert done.returncode == 0
    assert len(done.stdout) == len(data) + (8 << 20)
    assert hashlib.sha256(done.stdout[: len(data)]).digest() == hashlib.sha256(data).digest()
    kata.nothing_remains()


def test_the_guest_is_a_guest(kata: KataContainers) -> None:
    done = kata.run("box", "cat", "/proc/version", "/proc/1/comm")
    assert done.returncode == 0, done.stderr
    version, comm = done.stdout.splitlines()
    assert version != Path("/proc/version").read_bytes().strip()
    assert comm == b"cat"


def test_a_command_that_is_not_there(kata: KataContainers) -> None:
    done = kata.run("nothing", "no-such-command")
    assert done.returncode != 0
    assert b"no-such-command" in done.stderr
    kata.nothing_remains()


def test_life_of_a_detached_container(kata: KataContainers) -> None:
    containerd = kata.containerd
    with watched(containerd) as events:
        kata.detached("box", "sleep", "1000")
        pid, state = task(containerd, "box") or (0, "")
        assert state == "RUNNING"
        assert vm_pids("box") == [pid]

        done = kata.exec("box", "e1", "sh", "-c", "echo inside; echo why >&2; exit 3")
        assert (done.returncode, done.stdout, done.stderr) == (3, b"inside\n", b"why\n")
        done = kata.exec("box", "e2", "no-such-command")
        assert done.returncode != 0
        assert b"no-such-command" in done.stderr
        assert len(kata.tasks("ps", "box").stdout.splitlines()) == 2

        kata.tasks("pause", "box")
        assert task(containerd, "box") == (pid, "PAUSED")
        kata.tasks("resume", "box")
        assert task(containerd, "box") == (pid, "RUNNING")

        assert b"exists" in kata.tasks("start", "box", check=False).stderr
        assert b"can't be checkpointed" in kata.tasks("checkpoint", "box", check=False).stderr
        assert b"no exec nowhere" in kata.tasks("kill", "--exec-id", "nowhere", "box", check=False).stderr
        assert kata.tasks("delete", "box", check=False).returncode != 0

        kata.tasks("kill", "--signal", "SIGKILL", "box")
        eventually(lambda: task(containerd, "box") == (pid, "STOPPED"), "the killed container goes on")
        assert b"exit code 137" in kata.tasks("delete", "box", check=False).stderr
        assert task(containerd, "box") is None
        eventually(lambda: events() and events()[-1][0] == "/tasks/delete", f"no delete event: {events()}")
        assert topics(events()) == (
            "create start exec-added exec-started exit exec-added paused resumed "
            "paused resumed "  # containerd does that around a checkpoint
            "exit delete"
        )
        exits = [content for topic, content in events() if topic == "/tasks/exit"]
        assert [(content["id"], content["exit_status"]) for content in exits] == [("e1", 3), ("box", 137)]
    kata.nothing_remains()


def test_numbers(kata: KataContainers) -> None:
    kata.detached("box", "sh", "-c", "while :; do :; done", options=("--memory-limit", "268435456"))
    metrics = json.loads(kata.tasks("metrics", "--format", "json", "box").stdout)
    found = json.dumps(metrics)
    assert '"usage_limit": 268435456' in found, found
    cpu = metrics["cpu"]
    assert cpu["usage_usec"] > 0
    assert abs(cpu["user_usec"] + cpu["system_usec"] - cpu["usage_usec"]) < 10
    assert metrics["pids"]["current"] == 1
    kata.tasks("delete", "--force", "box")


def test_out_of_memory(kata: KataContainers) -> None:
    with watched(kata.containerd) as events:
        done = kata.run("hungry", "sh", "-c", "x=x; while :; do x=$x$x; done", options=("--memory-limit", "33554432"))
        assert done.returncode == 137
        eventually(lambda: events() and events()[-1][0] == "/tasks/delete", f"no delete event: {events()}")
        assert sorted(topics(events()).split()) == ["create", "delete", "exit", "oom", "start"]


def test_a_terminal(kata: KataContainers) -> None:
    master, slave = pty.openpty()
    command: list[str | Path] = ["ctr", "--address", kata.containerd.address, "run", "--rm", "--tty", *RUNTIME,
               f"--fifo-dir={kata.containerd.directory}/fifo", IMAGE, "tty", "sh"]  # fmt: skip
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    os.write(master, b"test -t 0 && echo termi''nal; exit 5\n")
    said = b""
    with suppress(OSError):  # EIO: its last user has gone
        while chunk := os.read(master, 4096):
            said += chunk
    os.close(master)
    assert child.wait(60) == 5, said
    assert b"\nterminal\r" in said


def test_containers_of_a_pod(kata: KataContainers) -> None:
    kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"

    def member(name: str, role: str, *command: str) -> None:
        kata.detached(name, *command, options=("--annotation", f"{kind}={role}", "--annotation", f"{sandbox}=pod"))

    member("pod", "sandbox", "sleep", "1000")
    member("a", "container", "sleep", "1000")
    for _ in range(50):  # it ends, and comes again in the living pod
        member("b", "container", "sh", "-c", "echo here > /dev/shm/mark; sleep 1000")
        assert kata.exec("b", "e", "cat", "/dev/shm/mark").stdout == b"here\n"
        kata.tasks("delete", "--force", "b")
        kata.containerd.ctr("containers", "delete", "b")
    assert task(kata.containerd, "a") == task(kata.containerd, "pod")
    assert len(vm_pids("pod")) == 1
    # With the sandbox's own container the VM goes, and nobody in it is said to have succeeded.
    with watched(kata.containerd) as events:
        kata.tasks("delete", "--force", "pod")
        eventually(lambda: (task(kata.containerd, "a") or (0, "STOPPED"))[1] == "STOPPED", "a container without a VM")
        exits = {content["id"]: content["exit_status"] for topic, content in events() if topic == "/tasks/exit"}
        assert exits == {"pod": 137, "a": 137}
    kata.tasks("delete", "a", check=False)
    kata.nothing_remains()


def test_containerd_restarts(kata: KataContainers) -> None:
    containerd = kata.containerd
    kata.detached("survivor", "sh", "-c", "while :; do sleep 1; done")
    before = task(containerd, "survivor")
    containerd.stop()
    containerd.start()
    assert task(containerd, "survivor") == before
    assert kata.exec("survivor", "again", "echo", "still here").stdout == b"still here\n"
    kata.tasks("kill", "--signal", "SIGKILL", "survivor")
    eventually(lambda: (task(containerd, "survivor") or (0, ""))[1] == "STOPPED", "the killed container goes on")
    kata.tasks("delete", "survivor", check=False)
    kata.nothing_remains()


def test_a_killed_shim_is_cleaned_up(kata: KataContainers) -> None:
    with watched(kata.containerd) as events:
        kata.detached("victim", "sleep", "1000")
        os.kill(shim_pid(kata.containerd, "victim"), signal.SIGKILL)
        kata.nothing_remains()
        eventually(lambda: not vm_pids("victim"), "the VM goes on without its shim")
        eventually(lambda: events() and events()[-1][0] == "/tasks/delete", f"no delete event: {events()}")
        exits = [content for topic, content in events() if topic == "/tasks/exit"]
        assert [content["exit_status"] for content in exits] == [137]
    assert task(kata.containerd, "victim") is None
    assert not Path("/run/kata/victim").exists()


def test_a_vm_that_dies_is_a_failed_container(kata: KataContainers) -> None:
    kata.detached("doomed", "sleep", "1000")
    (pid,) = vm_pids("doomed")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: (task(kata.containerd, "doomed") or (0, ""))[1] == "STOPPED", "a container without its VM")
    assert b"exit code 255" in kata.tasks("delete", "doomed", check=False).stderr
    assert "doomed is lost: the VM ended while a container was running" in kata.containerd.log.read_text()
    kata.nothing_remains()


def test_the_trace(kata: KataContainers) -> None:
    kata.tracing("detailed")  # all that there is, as Kata's own oracle counts
    assert kata.run("traced", "true").returncode == 0
    kata.nothing_remains()
    trace = kata.trace("traced")
    assert trace.root.name == "rootSpan"
    assert len(trace.spans) >= 125
    for name, service, above in (
        ("StartVM", "kata", ["createSandboxFromConfig", "create", "rootSpan"]),
        ("setup_shared_namespaces", "kata-agent", ["StartVM", "createSandboxFromConfig", "create", "rootSpan"]),
        ("start_container", "kata-agent", ["Start", "rootSpan"]),
        ("stopSandbox", "kata", ["Stop", "rootSpan"]),
    ):
        found = [span for span in trace.spans if (span.name, span.service) == (name, service)]
        assert found, name
        for span in found:
            assert [ancestor for ancestor in ancestors(span) if ancestor in above] == above, name
    assert trace.meta.outcome == "exit 0"


def test_ctr_goes_and_another_one_comes(kata: KataContainers) -> None:
    first = kata.containerd.popen("run", *RUNTIME, IMAGE, "kept", "sh", "-c", "while read line; do echo =$line; done")
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write(b"one\n")
    first.stdin.flush()
    assert first.stdout.readline() == b"=one\n"
    first.kill()
    first.communicate()
    second = kata.containerd.popen("tasks", "attach", "kept")
    assert second.stdin is not None
    assert second.stdout is not None
    second.stdin.write(b"two\n")
    second.stdin.flush()
    assert second.stdout.readline() == b"=two\n"
    kata.tasks("kill", "--signal", "SIGKILL", "kept")
    second.communicate(timeout=60)
    kata.tasks("delete", "kept", check=False)
    kata.nothing_remains()


def test_output_goes_to_a_file(kata: KataContainers) -> None:
    log = kata.artifacts / "output.log"
    kata.detached("writer", "sh", "-c", "echo out; echo err >&2", options=("--log-uri", f"file://{log}"))
    eventually(lambda: (task(kata.containerd, "writer") or (0, ""))[1] == "STOPPED", "it goes on")
    kata.tasks("delete", "writer")
    assert sorted(log.read_bytes().splitlines()) == [b"err", b"out"]


def test_a_reader_that_stops_does_not_stop_the_shim(kata: KataContainers) -> None:
    run = kata.containerd.popen("run", *RUNTIME, IMAGE, "flood", "sh", "-c", "while :; do echo yyyyyyyyyyyyyyyy; done")
    assert run.stdout is not None
    assert run.stdout.readline() == b"yyyyyyyyyyyyyyyy\n"
    run.kill()  # its fifos are full in no time
    run.communicate()
    assert kata.exec("flood", "e", "echo", "well").stdout == b"well\n"
    kata.tasks("kill", "--signal", "SIGKILL", "flood")
    eventually(lambda: (task(kata.containerd, "flood") or (0, ""))[1] == "STOPPED", "it goes on")
    kata.tasks("delete", "flood", check=False)
    assert not vm_pids("flood")
    kata.nothing_remains()


@pytest.mark.timeout(900)
def test_fifty_one_after_the_other_and_ten_at_once(kata: KataContainers) -> None:
    # Two cores emulate ten guests, and each must get its turn.
    (kata.artifacts / "configuration.toml").write_text("[agent.kata]\ndial_timeout = 240\n")
    mark = f"many{os.getpid()}-"
    before, counted = leaks.look(), leaks.census(mark)
    for number in range(50):
        done = kata.run(f"{mark}{number}", "true")
        assert done.returncode == 0, (number, done.stderr)
    at_once = [f"{mark}p{number}" for number in range(10)]
    running = [kata.containerd.popen("run", "--rm", *RUNTIME, IMAGE, name, "true") for name in at_once]
    seen = ("shim", "qemu-system", "virtiofsd", "mounts")
    eventually(lambda: all(leaks.census(mark)[kind] > counted[kind] for kind in seen), "the census does not see them")
    for process in running:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    kata.nothing_remains()
    assert leaks.look(before).left_since(before) == []
    assert leaks.census(mark) == counted
    addresses = [socket_address(launch) for launch in (kata.launch(f"{mark}{number}") for number in range(50))]
    assert not [address for address in addresses if Path(address.removeprefix("unix://")).exists()]
