"""Guests that run before they are wanted, and who may have them."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_runtime.pool import wire
from support.kata import Kata
from support.pool import clear, members, wait_for, wait_for_member


def start_path(kata: Kata, sandbox: str) -> str:
    (root,) = (span for span in kata.spans(sandbox) if span.name == "rootSpan")
    return str(root.attributes["kata.start.path"])


@pytest.fixture
def pooled(kata: Kata, tmp_path: Path) -> Iterator[Kata]:
    kata.configure("factory", vm_cache_number=1, vm_cache_endpoint=str(tmp_path / "pool.sock"))
    yield kata.tracing(runtime=True, agent=True)
    clear()


@contextmanager
def serving(kata: Kata) -> Iterator["subprocess.Popen[bytes]"]:
    """A server for the block."""
    with kata.start("factory", "serve", stderr=subprocess.DEVNULL) as server:
        try:
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
    wait_for(lambda: not members())


def test_a_start_is_done_by_a_member_and_another_follows(pooled: Kata) -> None:
    with serving(pooled):
        first = wait_for_member()
        done = pooled.run("sh", "-c", "cat; echo err >&2; exit 7", options=("-i", "--name", "taken"), stdin=b"in")
        assert (done.returncode, done.stdout) == (7, b"in")
        assert done.stderr.endswith(b"err\n")
        assert start_path(pooled, "taken") == "pool"
        spans = pooled.spans("taken")
        assert len({span.trace_id for span in spans}) == 1
        assert {str(span.attributes["sandbox_id"]) for span in spans} == {"taken"}
        wait_for(lambda: members() not in ([], [first]))


def test_one_that_was_taken_outlives_the_server_and_ends_with_its_taker(pooled: Kata) -> None:
    with serving(pooled) as server:
        member = wait_for_member()
        with pooled.start("run", "--name", "outlives", "--", "sh", "-c", "echo up; sleep 1000", stdout=-1) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"up\n"
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            wait_for(lambda: members() == [member])
            assert client.poll() is None
            client.kill()
        wait_for(lambda: not members())


def test_signals_go_on_to_it(pooled: Kata) -> None:
    with serving(pooled):
        wait_for_member()
        script = "trap 'echo got it; exit 5' TERM; echo up; while :; do sleep 0.1; done"
        with pooled.start("run", "--name", "signalled", "--", "sh", "-c", script, stdout=-1) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"up\n"
            client.terminate()
            assert client.stdout.read() == b"got it\n"
            assert client.wait(60) == 5


def test_who_wants_something_else_starts_by_itself(pooled: Kata) -> None:
    """A member is taken, and does a start of another size as anybody would."""
    with serving(pooled):
        wait_for_member()
        done = pooled.run("echo", "other", options=("--name", "other", "--memory", "640M"))
        assert (done.returncode, done.stdout) == (0, b"other\n")
        assert start_path(pooled, "other") == "cold"


def test_without_a_member_the_start_goes_on(pooled: Kata, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(str(tmp_path / "pool.sock"))
        listener.listen(1)  # it never answers
        done = pooled.run("echo", "alone", options=("--name", "alone"))
    assert (done.returncode, done.stdout) == (0, b"alone\n")
    assert start_path(pooled, "alone") == "template"


def test_nonsense_harms_nobody(pooled: Kata, tmp_path: Path) -> None:
    with serving(pooled):
        member = wait_for_member()
        for message in (b"", b"{", b"[]", b'{"do": "run"}', b"x" * 4096):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(tmp_path / "pool.sock"))
                client.settimeout(20)
                if wire.receive(client) != {"taken": 0}:  # a member has listened
                    client.send(message or b"\0")
                    assert wire.receive(client) in ({"taken": 0}, None)
        wait_for(lambda: member in members())
        assert pooled.run("echo", "fine", options=("--name", "after")).stdout == b"fine\n"
        assert start_path(pooled, "after") in ("pool", "template")
