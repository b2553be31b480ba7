"""A process that stands for one in a guest: those who start it get its process id and wait for its end.

An engine's monitor (conmon) reads the id from --pid-file, is the process's parent once that has lost its own (it is a
subreaper), and takes its exit status for the container's.
"""

import fcntl
import os
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable
from pathlib import Path

from kata_common.files import write_atomically
from kata_runtime.complaint import complain
from kata_runtime.errors import HostError, KataError

__all__ = ["Console", "Started", "stand_in"]

# Tells the parent that all is well: it, or its monitor, may go on.
Started = Callable[[], None]
# What runc sends along with a terminal (its utils/cmsg.go); receivers do not look at it.
_CONSOLE_NAME = b"/dev/ptmx"
_TIMEOUT = 10.0


class Console:
    """A new terminal whose master went to who listens at a --console-socket."""

    def __init__(self, path: str) -> None:
        """Make it and send it.

        Raises:
            HostError: nobody listens there.
        """
        master, self.descriptor = os.openpty()
        try:
            # Echo and keys are the business of the guest's terminal.
            tty.setraw(self.descriptor)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_TIMEOUT)
                client.connect(path)
                socket.send_fds(client, [_CONSOLE_NAME], [master])
        except OSError as error:
            os.close(self.descriptor)
            raise HostError(f"--console-socket {path}: {error.strerror or error}") from error
        finally:
            os.close(master)

    def control(self) -> None:
        """Have this process be told when the terminal's size changes; it must lead its session."""
        fcntl.ioctl(self.descriptor, termios.TIOCSCTTY, 0)


def stand_in(body: Callable[[Started], int], *, pid_file: str = "", foreground: bool = False) -> int:
    """Fork a process that does `body` and ends with its result; return when that says that it has started (0), or with
    its result if that comes first. `pid_file` gets the process's id. With `foreground` nothing is forked.

    Raises:
        HostError: `pid_file` can't be written; nothing is left then.
    """
    if foreground:
        return body(lambda: _write_pid(pid_file, os.getpid()))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(body, writing)
    os.close(writing)
    with open(reading, "rb") as file:
        started = file.read()
    if not started:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) & 0xFF
    try:
        _write_pid(pid_file, pid)
    except HostError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return 0


def _child(body: Callable[[Started], int], writing: int) -> None:
    status = KataError.exit_code
    try:
        os.setsid()

        def started() -> None:
            os.write(writing, b"\1")
            os.close(writing)
            # Who waits for the end of our output must not wait for us.
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            os.close(null)

        status = body(started)
    except KataError as error:
        status = complain(error)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _write_pid(path: str, pid: int) -> None:
    if path:
        try:
            write_atomically(Path(path), b"%d" % pid)
        except OSError as error:
            raise HostError(f"--pid-file {path} can't be written: {error.strerror}") from error
