"""Sandboxes that run here, whoever started them, and the way into their containers: by their control sockets.

Without asyncio and protobuf: this is what `exec` does before anything happens, and what a process that stands for a
container holds in memory for as long as that lives.
"""

import fcntl
import json
import os
import select
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kata_common import places
from kata_common.documents import parse_json
from kata_common.ids import is_id
from kata_runtime.errors import HostError, SandboxError

__all__ = ["Connection", "Life", "Target", "find", "find_sandbox", "require_root", "running"]

RUN_DIR = Path(places.RUN_DIR)
# Seconds for an answer of a sandbox that has nothing else to do for it.
_TIMEOUT = 30.0
# Passed on to a process for which this one stands.
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_MAX_ANSWER = 4 << 20


def require_root() -> None:
    """Raise HostError unless we are root."""
    if os.geteuid() != 0:
        raise HostError("only root can ask a sandbox", hint="sudo kata-runtime …")


class Connection:
    """One request to a sandbox, and its answers."""

    def __init__(self, sandbox: str, connection: socket.socket, run_dir: Path = RUN_DIR) -> None:
        self.sandbox = sandbox
        self._path = run_dir / sandbox / places.CONTROL_SOCKET
        self._socket = connection
        self._buffer = b""

    @classmethod
    def open(cls, sandbox: str, run_dir: Path = RUN_DIR) -> Self:
        """Connect to a sandbox.

        Raises:
            SandboxError: it does not run.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT)
        try:
            connection.connect(str(run_dir / sandbox / places.CONTROL_SOCKET))
        except OSError as error:
            connection.close()
            known = ", ".join(running(run_dir)[:10]) or "none"
            raise SandboxError(f"no sandbox {sandbox!r} is running", hint=f"running: {known}") from error
        return cls(sandbox, connection, run_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message, with descriptors."""
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else 0
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise SandboxError(f"sandbox {self.sandbox} does not answer: {error}") from error

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            SandboxError: a refusal, or the sandbox has ended.
        """
        while b"\n" not in self._buffer:
            try:
                chunk = self._socket.recv(1 << 16)
            except OSError as error:
                raise SandboxError(f"sandbox {self.sandbox} does not answer: {error}") from error
            if not chunk or len(self._buffer) > _MAX_ANSWER:
                raise SandboxError(f"sandbox {self.sandbox} has ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = parse_json(line)
        if "error" in message:
            refusal = SandboxError(message["error"], hint=message.get("hint") or "")
            refusal.exit_code = message.get("exit_code") or SandboxError.exit_code
            raise refusal
        return message

    def stream(self, message: Mapping[str, object]) -> socket.socket:
        """Send a message that is answered by a stream: the stream.

        Raises:
            SandboxError: a refusal, or the sandbox has ended.
        """
        self.send(message)
        try:
            self._buffer, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
        except OSError as error:
            raise SandboxError(f"sandbox {self.sandbox} does not answer: {error}") from error
        streams = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        self.receive()
        return streams[0]

    def ask(self, message: Mapping[str, object]) -> dict[str, Any]:
        """Send a message; its answer."""
        self.send(message)
        return self.receive()

    def follow(self, terminal: int | None = None) -> int:
        """Stand for the process that was asked for until its end: pass on signals, and the size of a terminal.

        Its exit status.
        """
        self._socket.settimeout(None)
        with _signals() as caught, selectors.DefaultSelector() as selector:
            if terminal is not None:
                self._resize(terminal)
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(caught, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if caught in ready:
                    for number in os.read(caught, 64):
                        if number == signal.SIGWINCH:
                            if terminal is not None:
                                self._resize(terminal)
                        else:
                            self.send({"signal": number, "all": False})
                if self._socket.fileno() in ready:
                    answer = self.receive()
                    if "exit" in answer:
                        return int(answer["exit"])

    def ended(self, deadline: float) -> bool:
        """Wait until the process has ended, or its sandbox; whether it has by `deadline` (time.monotonic)."""
        while (left := deadline - time.monotonic()) > 0:
            if b"\n" not in self._buffer and not select.select([self._socket], [], [], left)[0]:
                return False
            try:
                if "exit" in self.receive():
                    return True
            except SandboxError:
                if not self._path.exists():
                    return True
                raise
        return False

    def _resize(self, terminal: int) -> None:
        with suppress(OSError):  # it has gone, as its user has
            columns, rows = os.get_terminal_size(terminal)
            self.send({"resize": [rows, columns]})


@contextmanager
def _signals() -> Iterator[int]:
    """For the block: a descriptor that gives the numbers of signals that come; who ignores one goes on to."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _nothing) for number in (*numbers, signal.SIGWINCH)}
    old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _nothing(*_: object) -> None:
    """The descriptor tells."""


class Life:
    """The life of a sandbox, by the lock that it holds on its directory; open it while it lives."""

    def __init__(self, sandbox: str, run_dir: Path = RUN_DIR) -> None:
        try:
            self._directory = os.open(run_dir / sandbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxError(f"no sandbox {sandbox!r} is running") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)

    def over(self, patience: float) -> bool:
        """Wait for its end; whether it came within `patience` seconds."""
        # Of its own, for who waits in vain still holds it when ours is closed.
        descriptor = os.dup(self._directory)

        def wait() -> None:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.close(descriptor)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        waiter.join(patience)
        return not waiter.is_alive()


def running(run_dir: Path = RUN_DIR) -> list[str]:
    """The ids of the sandboxes that have a control socket."""
    try:
        return sorted(path.parent.name for path in run_dir.glob(f"*/{places.CONTROL_SOCKET}"))
    except OSError:
        return []


@dataclass(frozen=True)
class Target:
    """A container of a sandbox."""

    sandbox: str
    container: str


def find_sandbox(name: str, run_dir: Path = RUN_DIR) -> str:
    """The sandbox that a person means, by its id or by that of a container in it, or by an id's beginning.

    Raises:
        SandboxError: nothing of that name runs, or several do.
    """
    return _match(name, running(run_dir)) or find(name, run_dir=run_dir).sandbox


def find(name: str, container: str = "", run_dir: Path = RUN_DIR) -> Target:
    """The container that a person means: one of a sandbox (its only one, unless named), or one by its own id.

    The beginning of an id is enough where no other begins so.

    Raises:
        SandboxError: nothing of that name runs, or several do.
    """
    everything = containers(run_dir)
    sandbox = _match(name, list(everything))
    if sandbox is None:
        owners = {found: owner for owner, listed in everything.items() for found in listed}
        found = _match(name, list(owners))
        if found is None or container:
            known = ", ".join(list(everything)[:10]) or "none"
            raise SandboxError(f"no sandbox {name[:100]!r} is running", hint=f"running: {known}")
        return Target(owners[found], found)
    inside = everything[sandbox]
    listed = ", ".join(inside[:10]) or "none"
    if container:
        wanted = _match(container, inside)
        if wanted is None:
            raise SandboxError(
                f"sandbox {sandbox} has no container {container[:100]!r}", hint=f"its containers: {listed}"
            )
        return Target(sandbox, wanted)
    if sandbox in inside:  # the one that it is for
        return Target(sandbox, sandbox)
    if len(inside) != 1:
        raise SandboxError(f"sandbox {sandbox} has {len(inside)} containers: {listed}", hint="name one")
    return Target(sandbox, inside[0])


def containers(run_dir: Path = RUN_DIR) -> dict[str, list[str]]:
    """The containers of each sandbox that answers."""
    return {name: [entry["id"] for entry in said["containers"]] for name, said in states(run_dir).items()}


def states(run_dir: Path = RUN_DIR) -> dict[str, dict[str, Any]]:
    """What each sandbox that answers says of itself (see `kata_runtime.sandbox.control`)."""
    found = {}
    for name in running(run_dir):
        with suppress(SandboxError), Connection.open(name, run_dir) as connection:
            found[name] = connection.ask({"op": "containers"})
    return found


def _match(wanted: str, names: Sequence[str]) -> str | None:
    """The name itself, or the only one that begins so."""
    if wanted in names:
        return wanted
    if not is_id(wanted):
        return None
    near = [name for name in names if name.startswith(wanted)]
    if len(near) > 1:
        raise SandboxError(f"{wanted!r} begins {len(near)} ids: {', '.join(near[:10])}", hint="write more of it")
    return near[0] if near else None
