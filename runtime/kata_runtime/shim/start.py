"""`start`: make the socket, leave a daemon behind that serves it, say where it is.

containerd waits for this process and then dials at once. It finds a socket that listens; the daemon takes the
connection from the backlog when its imports are done.
"""

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from kata_common.files import write_atomically
from kata_runtime.shim import bootstrap, grouping
from kata_runtime.shim.arguments import Arguments, UsageError
from kata_runtime.shim.launch import ADDRESS_FILE, LOG_FIFO, PID_FILE, Launch, socket_address

__all__ = ["Daemon", "Lend", "redirect", "start"]

# Runs in the daemon's process and returns its exit status.
Daemon = Callable[[Launch, socket.socket], int]
# Has a process that is there already be the daemon: its id, 0 where there is none.
Lend = Callable[[Launch, socket.socket], int]

_BACKLOG = 128
# How long (seconds) to wait for somebody to take our connection; a shim that lives takes it from the backlog.
_CONNECT_TIMEOUT = 2.0


def start(arguments: Arguments, daemon: Daemon, *, started: int, lend: Lend | None = None) -> str:
    """Answer containerd's `start`; returns what to print. In the daemon's process this never returns.

    `started` is the CLOCK_MONOTONIC reading (ns) at which the process began its work. `lend` is asked for a daemon
    before one is made.

    Raises:
        UsageError, OSError: it can't be done; nothing is left behind.
    """
    launch, version_3 = _prepare(arguments, started)
    listener = None
    if launch.group.kind == grouping.CONTAINER:
        if not _listens(launch.address):
            sandbox = launch.group.sandbox_id
            raise UsageError(
                f"sandbox {sandbox} of container {launch.id} has no shim at {launch.address}; start it first"
            )
    else:
        listener = _listen(launch.address)
    pid = 0
    try:
        write_atomically(f"{launch.bundle}/{ADDRESS_FILE}", launch.address.encode())
        if listener is not None:
            pid = (lend(launch, listener) if lend else 0) or _daemonise(launch, listener, daemon)
            write_atomically(f"{launch.bundle}/{PID_FILE}", b"%d" % pid)
    except OSError:
        if pid:
            os.kill(pid, 9)  # SIGKILL; the module signal has nothing else for us and costs a millisecond
        if listener is not None:
            os.unlink(launch.address.removeprefix("unix://"))
        raise
    if pid:
        _more_expendable_than_parent(pid)
    return bootstrap.reply(launch.address, version_3=version_3)


def _prepare(arguments: Arguments, started: int) -> tuple[Launch, bool]:
    given = bootstrap.parse_input(_stdin(), container_id=arguments.id, namespace=arguments.namespace)
    bundle = os.path.abspath(arguments.bundle or os.getcwd())
    launch = Launch(
        namespace=arguments.namespace,
        container_id=arguments.id,
        bundle=bundle,
        group=grouping.read_group(bundle, arguments.id),
    )
    launch.containerd = arguments.address
    launch.ttrpc_address = given.ttrpc_address or os.environ.get("TTRPC_ADDRESS", "")
    launch.publish_binary = arguments.publish_binary
    launch.containerd_version = given.version
    launch.debug = arguments.debug or given.debug
    launch.options = given.options
    launch.started = started
    launch.traceparent = os.environ.get("TRACEPARENT", "")
    launch.address = socket_address(launch, given.socket_dir)
    return launch, given.parameters


def _stdin() -> bytes:
    if os.isatty(0):
        return b""  # somebody tries the shim by hand
    data = b""
    while len(data) <= bootstrap.MAX_INPUT:
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return data
        data += chunk
    raise UsageError(f"more than {bootstrap.MAX_INPUT} bytes on stdin")


def _listen(address: str) -> socket.socket | None:
    """A listening socket; None where a shim of the same sandbox already has it."""
    path = address.removeprefix("unix://")
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    for _ in range(2):
        listener = socket.socket(socket.AF_UNIX)
        try:
            # Before it can be reached by name, so that nobody else gets a chance to connect.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(path)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"can't make the shim's socket: {error.strerror}", path) from error
            if _listens(address):
                return None
            os.unlink(path)  # left by a shim that was killed
        else:
            return listener
    raise OSError(f"somebody else makes {path} at the same time")


def _listens(address: str) -> bool:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(_CONNECT_TIMEOUT)
    try:
        client.connect(address.removeprefix("unix://"))
    except OSError:
        return False
    finally:
        client.close()
    return True


def _daemonise(launch: Launch, listener: socket.socket, daemon: Daemon) -> int:
    """Fork the daemon and return its process id.

    One fork: containerd started us, so there is no terminal to get away from, and the daemon opens none as its own
    (O_NOCTTY). It must hold neither stdout nor stderr: containerd reads both to their end.
    """
    _share_core_with_nobody()
    pid = os.fork()
    if pid:
        listener.close()
        return pid
    status = 1
    try:
        launch.forked = time.monotonic_ns()
        os.setsid()
        redirect(launch)
        # Whatever else containerd, or `main`, has left open: an end of containerd's pipes would let it wait for ever.
        os.closerange(3, listener.fileno())
        os.closerange(listener.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        status = daemon(launch, listener)
    except BaseException:
        # The one place that must not let anything out: above is the code of the process that containerd waits for.
        import traceback

        from kata_common.text import told

        os.write(2, told(traceback.format_exc()).encode() + b"\n")
    finally:
        os._exit(status)


def redirect(launch: Launch) -> None:
    """Have the streams of a shim, and be `containerd-shim` in lists of processes, as all are, not `python3`."""
    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write("containerd-shim")
    null = os.open(os.devnull, os.O_RDWR)
    try:
        # Both ways, or the end of containerd would be the end of every write; and never waiting for a reader.
        log = os.open(f"{launch.bundle}/{LOG_FIFO}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        log = null
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(log, 2)
    for descriptor in {null, log}:
        os.close(descriptor)


def _more_expendable_than_parent(pid: int) -> None:
    """When memory is short the kernel shall take a shim before containerd (as containerd's AdjustOOMScore)."""
    # Where it is not allowed the shim works without.
    with suppress(OSError):
        with open(f"/proc/{os.getppid()}/oom_score_adj") as file:
            score = int(file.read())
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(min(score + 1, 1000)))


def _share_core_with_nobody() -> None:
    """containerd's `enable core scheduling`: the process group gets a cookie of its own (prctl(2), PR_SCHED_CORE)."""
    if not os.environ.get("SCHED_CORE"):
        return
    from kata_common.linux import prctl

    try:
        prctl(62, 1, 0, 2, 0)
    except OSError as error:
        raise OSError(error.errno, "SCHED_CORE is set, but the kernel refuses core scheduling") from error
