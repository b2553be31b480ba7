"""Takes a process of the pool, for those who start. Imported before anything heavy, so it imports nothing heavy."""

import os
import signal
import socket
from collections.abc import Mapping, Sequence

from kata_runtime.pool import wire

__all__ = ["FORWARDED", "lend", "run_elsewhere"]

# Seconds for a member to say that it has taken the request; it waits for nothing else.
_PATIENCE = 1.0
FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip


def lend(endpoint: str, request: Mapping[str, object], files: Sequence[int]) -> tuple[socket.socket, int] | None:
    """Have a member of the pool at this socket do `request`: the connection to it and its pid, or None.

    After None nothing has happened, and the caller starts by itself.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        stream.settimeout(_PATIENCE)
        stream.connect(endpoint)
        # Not before somebody is there: files on the way to nobody would be open until that ends.
        here = "here" in (wire.receive(stream) or {})
        if here and wire.send(stream, {**request, "namespace": _mount_namespace()}, files):
            answer = wire.receive(stream) or {}
            if pid := int(answer.get("taken", 0)):
                stream.settimeout(None)
                return stream, pid
    except (OSError, ValueError, TypeError):
        pass
    stream.close()
    return None


def _mount_namespace() -> str:
    """Whoever sees other mounts than the pool's server would get another one's files."""
    return os.readlink("/proc/self/ns/mnt")  # noqa: PTH115 - a name of the kernel's


def run_elsewhere(endpoint: str, argv: Sequence[str], started: int) -> int | None:
    """Let a member be `kata-runtime ARGV`: its exit code, or None where there is none to take.

    Our standard streams, working directory and environment are its own; signals go on to it. Our end is its end.
    """
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        request = {"do": "run", "argv": list(argv), "environment": dict(os.environ), "started": started}
        lent = lend(endpoint, request, (0, 1, 2, directory))
    except OSError:
        return None  # a standard stream that is closed
    finally:
        os.close(directory)
    if lent is None:
        return None
    stream, _ = lent
    with stream:
        for number in FORWARDED:
            signal.signal(number, lambda number, _: wire.send(stream, {"signal": number}) and None)
        while True:
            answer = wire.receive(stream)
            if answer is None:
                # It was killed, and its VM with it.
                return 128 + signal.SIGKILL
            if "status" in answer:
                return int(answer["status"])
