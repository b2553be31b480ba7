"""`kata-runtime run -t`: a terminal from end to end."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm


class Terminal:
    """The user's side of a pty."""

    def __init__(self, controller: int, tty: int) -> None:
        self.controller = controller
        self.tty = tty
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.controller, text)

    def expect(self, text: bytes) -> None:
        """Read until `text` has come since the last expectation."""
        while text not in self.seen:
            try:
                self.seen += os.read(self.controller, 4096)
            except OSError as error:
                raise AssertionError(f"the terminal ended after {self.seen!r}") from error
        self.seen = self.seen.partition(text)[2]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    controller, tty = pty.openpty()
    yield Terminal(controller, tty)
    os.close(controller)
    os.close(tty)


def start(kata: Kata, terminal: Terminal, *argv: str) -> "subprocess.Popen[bytes]":
    fd = terminal.tty
    return kata.start("run", "-it", "--", *argv, stdin=fd, stdout=fd, stderr=fd, start_new_session=True)


def test_a_shell_in_a_terminal_that_is_resized(kata: Kata, terminal: Terminal) -> None:
    terminal.resize(30, 100)
    before = termios.tcgetattr(terminal.tty)
    child = start(kata, terminal, "sh")
    terminal.expect(b"# ")
    terminal.type(b"stty size; tty\n")
    terminal.expect(b"30 100\r\n/dev/pts/")
    terminal.resize(40, 120)
    child.send_signal(signal.SIGWINCH)
    # The size arrives on its own way: the shell is told by the kernel, and says so here.
    terminal.type(b"while [ \"$(stty size)\" != '40 120' ]; do :; done; echo re''sized\n")
    terminal.expect(b"resized")
    terminal.type(b"exit 5\n")
    assert child.wait(30) == 5
    assert termios.tcgetattr(terminal.tty) == before


def test_ctrl_c_goes_to_the_guests_terminal(kata: Kata, terminal: Terminal) -> None:
    child = start(
        kata, terminal, "sh", "-c", "trap 'echo inter''rupted; exit 4' INT; echo up; while :; do sleep 1; done"
    )
    terminal.expect(b"up\r\n")
    terminal.type(b"\x03")
    terminal.expect(b"interrupted")
    assert child.wait(30) == 4


def test_a_terminal_is_needed_for_one(kata: Kata) -> None:
    done = kata.run("true", options=["-it"])
    assert done.returncode == 125
    assert b"terminal" in done.stderr
