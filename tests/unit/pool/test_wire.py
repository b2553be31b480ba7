"""What is said between those who start, the pool's server and its members."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.pool import client, wire


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def test_a_message_and_its_files(pair: tuple[socket.socket, socket.socket]) -> None:
    reading, writing = os.pipe()
    assert wire.send(pair[0], {"do": "run"}, (writing,))
    message, files = wire.receive_with_files(pair[1])
    assert message == {"do": "run"}
    os.write(files[0], b"through")
    assert os.read(reading, 10) == b"through"
    for fd in (reading, writing, *files):
        os.close(fd)


@pytest.mark.parametrize("data", [b"{", b"[]", b"7", b"\xff", b"null"])
def test_what_is_no_message_brings_no_files(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    socket.send_fds(pair[0], [data], [0, 1])
    assert wire.receive_with_files(pair[1]) == (None, [])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_too_long_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    assert not wire.send(pair[0], {"environment": "x" * wire.MAX_MESSAGE})
    pair[1].close()
    assert not wire.send(pair[0], {"do": "run"})
    assert wire.receive(pair[0]) is None


def serve(path: Path, *answers: dict[str, object]) -> "threading.Thread":
    """Answer one client in turn, each answer but the first after something has come."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(1)

    def work() -> None:
        with listener:
            stream, _ = listener.accept()
            with stream:
                for number, answer in enumerate(answers):
                    if number:
                        _, files = wire.receive_with_files(stream)
                        for fd in files:
                            os.close(fd)
                    wire.send(stream, answer)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_member_that_takes_it(tmp_path: Path) -> None:
    thread = serve(tmp_path / "pool", {"here": 7}, {"taken": 7})
    lent = client.lend(str(tmp_path / "pool"), {"do": "run"}, (0,))
    assert lent is not None
    assert lent[1] == 7
    lent[0].close()
    thread.join()


@pytest.mark.parametrize(
    "answers", [({"taken": 0},), ({"here": 7}, {"taken": 0}), ({"here": 7}, {"taken": "x"}), ({"nothing": 1},)]
)
def test_nobody_takes_it(tmp_path: Path, answers: tuple[dict[str, object], ...]) -> None:
    thread = serve(tmp_path / "pool", *answers)
    assert client.lend(str(tmp_path / "pool"), {"do": "run"}, (0,)) is None
    thread.join()


def test_nobody_is_there(tmp_path: Path) -> None:
    assert client.lend(str(tmp_path / "pool"), {"do": "run"}, (0,)) is None
    (tmp_path / "pool").write_text("no socket")
    assert client.lend(str(tmp_path / "pool"), {"do": "run"}, (0,)) is None


def test_who_does_not_answer_gets_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PATIENCE", 0.05)
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "pool"))
        listener.listen(1)
        assert client.lend(str(tmp_path / "pool"), {"do": "run"}, (writing,)) is None
        os.close(writing)
        assert os.read(reading, 1) == b""  # nobody else has it open
    os.close(reading)
