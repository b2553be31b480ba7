"""The vsock backend's command line.

    python -m kata_runtime.hypervisor.vsock.device --vhost-fd N --guest-cid C
        [--hybrid-fd N --uds-path PATH] [--forward GUESTPORT:FD ...] [--hold-timeout SECONDS] [--log-level LEVEL]
        [--user UID:GID]

All sockets are made by the parent before this process starts, so there is nothing to wait for: --vhost-fd is one end of
a socketpair whose other end QEMU has, the others listen already. What the guest connects to is the socket PATH_<port>;
the directory of PATH becomes the working directory. With --user that directory then becomes all that it sees, and it
becomes that user, without groups and capabilities. With or without it system calls are filtered (`confine`). All that
is done before it reads a byte of QEMU's or the guest's. Exit status: 0 when QEMU hung up or on SIGTERM or SIGINT, 1 if
QEMU broke the protocol, 2 for a wrong command line; the reason is one line on stderr.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from kata_common.ids import MAX_SOCKET_PATH
from kata_common.text import printable
from kata_runtime.hypervisor.vsock.device.confine import become, restrict_calls
from kata_runtime.hypervisor.vsock.device.message import FrontendError
from kata_runtime.hypervisor.vsock.device.server import Server

LEVELS: Final = ("error", "warning", "info", "debug")
# "_4294967295" follows it; the directory before it becomes the working directory.
MAX_NAME: Final = MAX_SOCKET_PATH - len("_4294967295")
# fds besides connections: listeners, rings, standard streams, memory.
_OTHER_FDS: Final = 64
_WANTED_FDS: Final = 1000 + _OTHER_FDS


class UsageError(Exception):
    """The command line is wrong."""


def main(argv: list[str] | None = None) -> int:
    """Run the backend; returns the exit status."""
    level = "info"

    def log(at: str, text: str) -> None:
        if LEVELS.index(at) <= LEVELS.index(level):
            print(printable(f"vsock backend: {at}: {text}"), file=sys.stderr, flush=True)

    try:
        options = _parse(sys.argv[1:] if argv is None else argv)
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


class _Options:
    """The command line. Not argparse's: importing that takes as long as everything else here."""

    vhost_fd = -1
    guest_cid = -1
    hybrid_fd = -1
    uds_path = ""
    hold_timeout = 60.0
    log_level = "info"
    user: tuple[int, int] | None = None

    def __init__(self) -> None:
        self.forwards: list[tuple[int, int]] = []


def _parse(argv: list[str]) -> _Options:
    options = _Options()
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("-h", "--help"):
            print(__doc__)
            sys.exit(0)
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise UsageError(f"{name} needs a value, or is unknown; see --help") from None
        _set(options, name, value)
    if options.vhost_fd < 0 or options.guest_cid < 0:
        raise UsageError("--vhost-fd and --guest-cid are needed; see --help")
    if (options.hybrid_fd >= 0) != bool(options.uds_path):
        raise UsageError("--hybrid-fd and --uds-path belong together")
    return options


def _set(options: _Options, name: str, value: str) -> None:
    match name:
        case "--vhost-fd":
            options.vhost_fd = _number(name, value, 0, 1 << 20)
        case "--guest-cid":
            # 0, 1 and 2 are reserved, as is 2^32 - 1 (virtio 1.2, 5.10.4).
            options.guest_cid = _number(name, value, 3, 0xFFFF_FFFE)
        case "--hybrid-fd":
            options.hybrid_fd = _number(name, value, 0, 1 << 20)
        case "--uds-path":
            if len(os.fsencode(os.path.basename(value))) > MAX_NAME:  # noqa: PTH119 - pathlib is not imported here
                raise UsageError(f"--uds-path has a name longer than {MAX_NAME} bytes, which leaves no room for a port")
            options.uds_path = value
        case "--forward":
            port, _, fd = value.partition(":")
            options.forwards.append((_number(name, port, 0, 0xFFFF_FFFE), _number(name, fd, 0, 1 << 20)))
        case "--hold-timeout":
            options.hold_timeout = _seconds(name, value)
        case "--user":
            uid, _, gid = value.partition(":")
            # 0 would be no drop at all, 2^32 - 1 is setresuid's "leave as it is".
            options.user = _number(name, uid, 1, 0xFFFF_FFFE), _number(name, gid, 1, 0xFFFF_FFFE)
        case "--log-level":
            if value not in LEVELS:
                _bad(name, value)
            options.log_level = value
        case _:
            raise UsageError(f"unknown option {name}; see --help")


def _number(name: str, value: str, low: int, high: int) -> int:
    if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
        _bad(name, value)
    return int(value)


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        _bad(name, value)
    if not 0 < seconds <= 86400:
        _bad(name, value)
    return seconds


def _bad(name: str, value: str) -> NoReturn:
    raise UsageError(f"{name} can't be {value!r}; see --help")


def _enter(uds_path: str) -> None:
    """Work in the directory of what the guest connects to: the way there may be closed to whom we become."""
    directory = os.path.dirname(uds_path)  # noqa: PTH120 - pathlib is not imported here
    try:
        if directory:
            os.chdir(directory)
    except OSError as error:
        raise UsageError(f"--uds-path: can't enter {directory}: {error.strerror}") from error


def _become(uid: int, gid: int) -> None:
    """Drop root for good; a process that isn't root can't."""
    try:
        become(uid, gid)
    except OSError as error:
        raise UsageError(f"--user: can't become {uid}:{gid}: {error.strerror}") from error


def _server(options: _Options, log: Callable[[str, str], None]) -> Server:
    machine = os.uname().machine
    if machine != "x86_64":
        # Other machines reorder stores, and Python has no fence; see `ring`.
        raise UsageError(f"this backend runs on x86_64 only, this machine is {machine}; use the kernel's vhost-vsock")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FDS if hard == resource.RLIM_INFINITY else min(_WANTED_FDS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    wanted_sockets = [("--vhost-fd", options.vhost_fd), *(("--forward", fd) for _, fd in options.forwards)]
    if options.hybrid_fd >= 0:
        wanted_sockets.append(("--hybrid-fd", options.hybrid_fd))
    sockets: dict[int, socket.socket] = {}
    try:
        for name, fd in wanted_sockets:
            if fd in sockets:
                raise UsageError(f"{name}: fd {fd} is given twice")
            sockets[fd] = _socket(fd, name, listening=name != "--vhost-fd")
    except UsageError:
        for found in sockets.values():
            found.detach()
        raise
    return Server(
        sockets[options.vhost_fd],
        options.guest_cid,
        log=log,
        hybrid=sockets.get(options.hybrid_fd),
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
