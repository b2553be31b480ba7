"""The vsock backend's command line.

    python -P -m kata_runtime.hypervisor.vsock.device SETTINGS

SETTINGS is a JSON object with the fields of `settings.Settings`.

All sockets are made by the parent before this process starts, so there is nothing to wait for: vhost_fd is one end of
a socketpair whose other end QEMU has, the others listen already. What the guest connects to is the socket
uds_path_<port>; its directory becomes the working directory. With `user` that directory then becomes all that it sees,
and it becomes that user, without groups and capabilities. With or without it system calls are filtered (`confine`). All
that is done before it reads a byte of QEMU's or the guest's. Exit status: 0 when QEMU hung up or on SIGTERM or SIGINT,
1 if QEMU broke the protocol, 2 for wrong settings; the reason is one line on stderr.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

from kata_common.text import printable
from kata_runtime.hypervisor.vsock.device.confine import become, restrict_calls
from kata_runtime.hypervisor.vsock.device.message import FrontendError
from kata_runtime.hypervisor.vsock.device.server import Server
from kata_runtime.hypervisor.vsock.device.settings import LEVELS, Settings, UsageError

# fds besides connections: listeners, rings, standard streams, memory.
_OTHER_FDS: Final = 64
_WANTED_FDS: Final = 1000 + _OTHER_FDS


def main(argv: list[str] | None = None) -> int:
    """Run the backend; returns the exit status."""
    level = "info"

    def log(at: str, text: str) -> None:
        if LEVELS.index(at) <= LEVELS.index(level):
            print(printable(f"vsock backend: {at}: {text}"), file=sys.stderr, flush=True)

    try:
        given = sys.argv[1:] if argv is None else argv
        if len(given) != 1:
            raise UsageError("one argument is needed: the settings, as JSON")
        options = Settings.from_json(given[0])
        level = options.log_level
        server = _server(options, log)
        _enter(options.uds_path)
        if options.user is not None:
            _become(*options.user)
    except UsageError as error:
        log("error", str(error))
        return 2
    # The handler itself does nothing: signals arrive as bytes at the loop, between two events.
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    try:
        restrict_calls()
        log("info", "serving")
        server.serve(wake_read)
    except FrontendError as error:
        log("error", f"QEMU: {error}")
        return 1
    finally:
        signal.set_wakeup_fd(-1)
        server.close()
        os.close(wake_read)
        os.close(wake_write)
    return 0


def _enter(uds_path: str) -> None:
    """Work in the directory of what the guest connects to: the way there may be closed to whom we become."""
    directory = os.path.dirname(uds_path)  # noqa: PTH120 - pathlib is not imported here
    try:
        if directory:
            os.chdir(directory)
    except OSError as error:
        raise UsageError(f"uds_path: can't enter {directory}: {error.strerror}") from error


def _become(uid: int, gid: int) -> None:
    """Drop root for good; a process that isn't root can't."""
    try:
        become(uid, gid)
    except OSError as error:
        raise UsageError(f"user: can't become {uid}:{gid}: {error.strerror}") from error


def _server(options: Settings, log: Callable[[str, str], None]) -> Server:
    machine = os.uname().machine
    if machine != "x86_64":
        # Other machines reorder stores, and Python has no fence; see `ring`.
        raise UsageError(f"this backend runs on x86_64 only, this machine is {machine}; use the kernel's vhost-vsock")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FDS if hard == resource.RLIM_INFINITY else min(_WANTED_FDS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    wanted_sockets = [("vhost_fd", options.vhost_fd), *(("forwards", fd) for _, fd in options.forwards)]
    if options.hybrid_fd is not None:
        wanted_sockets.append(("hybrid_fd", options.hybrid_fd))
    sockets: dict[int, socket.socket] = {}
    try:
        for name, fd in wanted_sockets:
            if fd in sockets:
                raise UsageError(f"{name}: fd {fd} is given twice")
            sockets[fd] = _socket(fd, name, listening=name != "vhost_fd")
    except UsageError:
        for found in sockets.values():
            found.detach()
        raise
    return Server(
        sockets[options.vhost_fd],
        options.guest_cid,
        log=log,
        hybrid=None if options.hybrid_fd is None else sockets[options.hybrid_fd],
        uds_path=os.path.basename(options.uds_path) or None,  # noqa: PTH119 - pathlib is not imported here
        forwards=[(sockets[fd], port) for port, fd in options.forwards],
        hold_timeout=options.hold_timeout,
        max_connections=max(min(_WANTED_FDS, soft) - _OTHER_FDS, 1),
    )


def _socket(fd: int, name: str, *, listening: bool) -> socket.socket:
    """The unix stream socket that the parent left at `fd`."""
    try:
        found = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(f"{name}: fd {fd} is no socket: {error.strerror}") from error
    kind = "listening" if listening else "connected"
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or listening != bool(
        found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        found.detach()
        raise UsageError(f"{name}: fd {fd} is not a {kind} unix stream socket")
    return found


if __name__ == "__main__":
    sys.exit(main())
