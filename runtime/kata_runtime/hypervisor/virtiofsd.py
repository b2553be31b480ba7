"""virtiofsd: shares one host directory with the guest. Two programs go by that name; both are understood."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kata_runtime.cage import Cage
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.process import Child, find_program, launch
from kata_telemetry.span import Level, Site, use

__all__ = ["PROGRAMS", "start_virtiofsd", "to_argv"]

_trace = Site(package="virtcontainers", subsystem="virtiofsd")

# QEMU's own (C, Debian 12) and the Rust one (Debian 13, Ubuntu 24.04, upstream).
_C_PROGRAM = "/usr/lib/qemu/virtiofsd"
_RUST_PROGRAM = "/usr/libexec/virtiofsd"
# Where distributions have it, off PATH.
PROGRAMS = (_RUST_PROGRAM, _C_PROGRAM)
# What it does for a guest's processes, whoever they are, and what it needs to shut itself in and raise its limits.
_CAPABILITIES = (
    *("chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "setfcap", "mknod"),
    *("sys_admin", "sys_resource", "setpcap", "dac_read_search"),
)
# What both say, at their level "info", when QEMU may connect.
_SERVES = "Waiting for vhost-user socket connection"


def to_argv(program: str, fd: int, shared: Path, *, cache: str, extra: Sequence[str]) -> list[str]:
    """Command line of either program; `fd` is a listening socket.

    Without the capability for it, virtiofsd makes no device nodes on the host, whoever asks in the guest; `extra` may
    give it back by a `modcaps` of its own.
    """
    modcaps = [] if any("modcaps" in word for word in extra) else ["modcaps=-mknod"]
    if Path(program).resolve() == Path(_C_PROGRAM):
        # -f: stay in the foreground, so that we own it. xattr and flock as the Rust one has them.
        options = ["-f", "-o", f"source={shared}", "-o", f"cache={cache}", "-o", "sandbox=namespace", "-o", "xattr"]
        options += ["-o", "log_level=info", *(word for option in modcaps for word in ("-o", option))]
    else:
        options = ["--shared-dir", str(shared), "--cache", cache, "--sandbox", "namespace", "--xattr"]
        options += [f"--{option}" for option in modcaps]
    return [program, f"--fd={fd}", *options, "--thread-pool-size=1", *extra]


@asynccontextmanager
async def start_virtiofsd(
    program: str,
    shared: Path,
    socket_path: Path,
    *,
    cache: str,
    extra: Sequence[str] = (),
    cage: Cage = Cage(),  # noqa: B008 - it is frozen
    log_path: Path | None = None,
) -> AsyncIterator[tuple[Child, socket.socket, HelperStart]]:
    """Run virtiofsd for the block; yields it, a socket connected to it, for QEMU to inherit, and its start.

    The socket is listening before virtiofsd starts, so that there is nothing to wait for.

    Raises:
        HostError: virtiofsd is not installed.
    """
    path = find_program(program or "virtiofsd", package="virtiofsd", also=PROGRAMS)
    async with AsyncExitStack() as stack:
        span = _trace.start("startVirtiofsd", level=Level.ESSENTIAL, program=path)
        start = HelperStart(span, _SERVES)
        stack.callback(start.over)
        with use(span), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_path))
            listener.listen(1)
            argv = to_argv(path, listener.fileno(), shared, cache=cache, extra=extra)
            cage = replace(cage, capabilities=_CAPABILITIES)
            launched = launch(argv, pass_fds=[listener.fileno()], cage=cage, log_path=log_path, on_line=start.on_line)
            child = await stack.enter_async_context(launched)
            end = stack.enter_context(socket.socket(socket.AF_UNIX))
            end.connect(str(socket_path))
        yield child, end, start
