"""Debian's Podman with `--runtime kata-runtime`, beside runc."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kata import Kata
from support.podman import BUSY, Podman, missing

pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(missing()), reason=missing())]
RUN = ("run", "--network", "none")


@pytest.fixture
def podman(kata: Kata, tmp_path: Path) -> Iterator[Podman]:
    podman = Podman(tmp_path / "podman", kata)
    podman.prepare()
    yield podman
    podman.close()


def test_a_container_s_life(podman: Podman) -> None:
    """Detached: exec, logs, inspect, top, pause, stop, rm."""
    script = "trap 'exit 3' TERM; echo started; while :; do sleep 0.1; done"
    done = podman(*RUN, "-d", "--name", "w", BUSY, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    done = podman("exec", "w", "sh", "-c", "echo in; echo err >&2; exit 9")
    assert (done.stdout, done.stderr.splitlines()[0], done.returncode) == ("in\n", "err", 9)
    assert podman("exec", "-i", "w", "cat", stdin=b"data").stdout == "data"
    assert podman("exec", "w", "nosuch").returncode == 127
    assert podman(
        "exec", "-e", "A=7", "-w", "/tmp", "-u", "1:2", "w", "sh", "-c", "echo $A; pwd; id -u; id -g"
    ).stdout.split() == ["7", "/tmp", "1", "2"]
    assert "sleep 0.1" in podman("top", "w", "-ef").stdout
    assert podman("inspect", "w", "--format", "{{.State.Status}}").stdout == "running\n"
    assert podman("pause", "w").returncode == 0
    assert podman("inspect", "w", "--format", "{{.State.Status}}").stdout == "paused\n"
    assert podman("unpause", "w").returncode == 0
    assert podman("stop", "-t", "20", "w").returncode == 0
    assert podman("inspect", "w", "--format", "{{.State.ExitCode}}").stdout == "3\n"
    assert podman("logs", "w").stdout == "started\n"
    assert podman("rm", "w").returncode == 0
    assert list(podman.root.iterdir()) == []


def test_a_run_in_the_foreground(podman: Podman, tmp_path: Path) -> None:
    """stdin, limits, a read-only volume, the exit status; all gone afterwards."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/file").write_text("of the host\n")
    script = "cat; cat /v/file /sys/fs/cgroup/memory.max; touch /v/new; exit 4"
    options = ("--rm", "-i", "--memory", "64m", "-v", f"{tmp_path}/volume:/v:ro")
    done = podman(*RUN, *options, BUSY, "sh", "-c", script, stdin=b"of the caller\n")
    assert done.stdout == "of the caller\nof the host\n67108864\n"
    assert "Read-only file system" in done.stderr
    assert done.returncode == 4
    assert list(podman.root.iterdir()) == []


def test_a_command_that_is_not_there_and_one_that_fails(podman: Podman) -> None:
    for argv, status, said in ((("nosuch",), 127, "not found in $PATH"), (("sh", "-c", "exit 7"), 7, "")):
        ours, its = (podman(*RUN, "--rm", BUSY, *argv, runtime=runtime) for runtime in ("", "runc"))
        assert (ours.returncode, its.returncode) == (status, status)
        assert said in ours.stderr
        assert said in its.stderr


def test_a_pod_is_one_sandbox_and_one_trace(podman: Podman) -> None:
    podman.kata.tracing(runtime=True, agent=True)
    podman.kata.command()
    done = podman("pod", "create", "--name", "p", "--network", "none", "--infra-command", "/bin/sleep 1000")
    assert done.returncode == 0, done.stderr
    done = podman("run", "-d", "--pod", "p", "--name", "a", BUSY, "sh", "-c", "while :; do sleep 0.1; done")
    assert done.returncode == 0, done.stderr
    done = podman("run", "--rm", "--pod", "p", BUSY, "sh", "-c", "hostname; exit 6")
    assert (done.stdout, done.returncode) == ("p\n", 6)
    assert podman("exec", "a", "hostname").stdout == "p\n"
    listed = json.loads(podman.kata("--root", str(podman.root), "list", "--json").stdout)
    assert len(listed) == 2
    [sandbox] = {entry["sandbox"] for entry in listed}
    assert podman("pod", "stop", "-t", "1", "p").returncode == 0
    assert podman("pod", "rm", "p").returncode == 0
    assert list(podman.root.iterdir()) == []
    spans = podman.kata.spans(sandbox)
    assert len({span.trace_id for span in spans}) == 1
    assert len([span for span in spans if span.name == "start_container"]) == 3
    assert len([span for span in spans if span.name == "rootSpan"]) == 1
