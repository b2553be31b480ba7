"""Runs our vhost-user vsock backend, where the kernel has no vhost-vsock."""

import dataclasses
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_common.contract import Port
from kata_common.interpreter import python_module
from kata_common.places import AGENT_SOCKET, PORTS, VSOCK_SOCKET
from kata_runtime.cage import Cage
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.hypervisor.vsock.device.settings import Settings
from kata_runtime.process import Child, Privileges, launch
from kata_telemetry.span import Level, Site, use

__all__ = ["GUEST_CID", "VsockBackend", "start_vsock_backend"]

_trace = Site(package="virtcontainers", subsystem="vsock")

# Each VM has a backend of its own, so all may have the same CID; 3 is the first that is nobody's (vsock(7)).
GUEST_CID = 3


# To leave root, its bounding set and the rest of the file system behind.
_CAPABILITIES = ("setuid", "setgid", "setpcap", "sys_admin")


@dataclass(frozen=True)
class VsockBackend:
    """What QEMU and clients need: the device's chardev (the caller's to close) and the unix sockets into the guest."""

    child: Child
    chardev: socket.socket
    hybrid_path: Path
    agent_path: Path
    start: HelperStart


@asynccontextmanager
async def start_vsock_backend(
    directory: Path,
    *,
    privileges: Privileges | None,
    cage: Cage = Cage(),  # noqa: B008 - it is frozen
    log_path: Path | None = None,
) -> AsyncIterator[VsockBackend]:
    """Run the backend for the block, with its sockets in `directory`. They accept before it has started."""
    hybrid_path, agent_path = directory / VSOCK_SOCKET, directory / AGENT_SOCKET
    async with AsyncExitStack() as stack:
        span = _trace.start("startVsockBackend", level=Level.ESSENTIAL)
        start = HelperStart(span, "vsock backend: info: serving")
        stack.callback(start.over)
        with use(span), ExitStack() as handed_over:
            ports = _make_ports(directory, privileges)
            stack.callback(_remove, ports, hybrid_path, agent_path)
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)  # closed twice is closed
            handed_over.enter_context(theirs)
            hybrid, agent = (handed_over.enter_context(_listen(path)) for path in (hybrid_path, agent_path))
            settings = Settings(
                vhost_fd=theirs.fileno(),
                guest_cid=GUEST_CID,
                hybrid_fd=hybrid.fileno(),
                uds_path=str(ports / hybrid_path.name),
                forwards=((Port.AGENT, agent.fileno()),),
                user=(privileges.uid, privileges.gid) if privileges is not None else None,
            )
            if privileges is not None:
                # Interpreter and modules may be where only root can read, as below /root: the backend imports them
                # before it becomes nobody. That loses PR_SET_PDEATHSIG (its man page); the backend ends all the same
                # when QEMU's end of its socket closes.
                privileges = dataclasses.replace(privileges, by_child=True)
            argv = [*python_module("kata_runtime.hypervisor.vsock.device"), settings.to_json()]
            fds = [theirs.fileno(), hybrid.fileno(), agent.fileno()]
            # It becomes somebody else itself, and gives these up then; sockets that it connects to have paths.
            cage = dataclasses.replace(cage, capabilities=_CAPABILITIES, namespaces=("net", "ipc", "uts"))
            launched = launch(
                argv,
                pass_fds=fds,
                privileges=privileges,
                cage=cage,
                log_path=log_path,
                on_line=start.on_line,
                name="the vsock backend",
            )
            child = await stack.enter_async_context(launched)
        yield VsockBackend(child, ours, hybrid_path, agent_path, start)


def _make_ports(directory: Path, privileges: Privileges | None) -> Path:
    """The directory for what listens on ports of the host: port N is the socket `vsock.sock_N` in it.

    Everything above it is root's alone, so the backend makes it its working directory while it is still root. Of the
    directory itself the backend may only reach names in it; group and setgid bit give it, and nobody else, what listens
    there and is writable for the group.
    """
    # Under another name at first: whoever waits for it makes its socket at once, and that must get the right group.
    unfinished, ports = directory / f".{PORTS}", directory / PORTS
    unfinished.mkdir(mode=0o700)
    if privileges is not None:
        os.chown(unfinished, 0, privileges.gid)
        unfinished.chmod(0o2710)
    return unfinished.rename(ports)


def _remove(ports: Path, *listeners: Path) -> None:
    """Leave the names free for another one."""
    shutil.rmtree(ports, ignore_errors=True)
    for path in listeners:
        path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    return listener
