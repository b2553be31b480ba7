"""virtiofsd: shares one host directory with the guest. Two programs go by that name; both are understood."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kata_runtime.cage import Cage
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.process import Child, ask, find_program, launch
from kata_telemetry.span import Level, Site, use

__all__ = ["PROGRAMS", "find_virtiofsd", "is_c_program", "start_virtiofsd", "to_argv"]

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


_FILES = 1_000_000
# What only QEMU's own says of its version.
_C_VERSION = "FUSE kernel interface"
# Flags of the Rust one that the C one has as well, by its own names.
_C_FLAGS = (
    "announce-submounts",
    "writeback",
    "posix-acl",
    "security-label",
    "allow-direct-io",
    "no-readdirplus",
    "xattr",
)
# The Rust one's caches (its --help), in the C one's terms: it has no name for "metadata", but all that makes one of it:
# contents are not cached, attributes for as long as the Rust one does.
_C_CACHES = {
    "never": ["cache=none"],
    "metadata": ["cache=none", "timeout=86400"],
    "auto": ["cache=auto"],
    "always": ["cache=always"],
}


async def is_c_program(program: str) -> bool:
    """Whether it is QEMU's own: it is asked, for wherever it lies it may be either."""
    return _C_VERSION in await ask([program, "--version"])


def to_argv(
    program: str, fd: int, shared: Path, *, cache: str, extra: Sequence[str], c: bool | None = None
) -> list[str]:
    """Command line of either program; `fd` is a listening socket, `c` whether it is the C one (None: by its place).

    `extra` may be for the other one, as Kata's configuration has it: what both can do is put in the one's terms.

    Without the capability for it, virtiofsd makes no device nodes on the host, whoever asks in the guest; `extra` may
    give it back by a `modcaps` of its own.
    """
    modcaps = [] if any("modcaps" in word for word in extra) else ["modcaps=-mknod"]
    if Path(program).resolve() == Path(_C_PROGRAM) if c is None else c:
        # -f: stay in the foreground, so that we own it. xattr and flock as the Rust one has them.
        given = [f"source={shared}", *_C_CACHES[cache], "sandbox=namespace", "xattr", "announce_submounts"]
        given += ["log_level=info", *modcaps]
        options = ["-f", *(word for option in given for word in ("-o", option))]
        extra = [word for option in extra for word in _c_words(option)]
    else:
        options = ["--shared-dir", str(shared), "--cache", cache, "--sandbox", "namespace"]
        options += [f"--{option}" for option in modcaps]
        # It takes each once only.
        options += [flag for flag in ("--xattr", "--announce-submounts") if flag not in extra]
    if not any(option.startswith("--thread-pool-size") for option in extra):
        options.append("--thread-pool-size=1")
    return [program, f"--fd={fd}", *options, *extra]


def _c_words(option: str) -> list[str]:
    name = option.removeprefix("--")
    return ["-o", name.replace("-", "_")] if option.startswith("--") and name in _C_FLAGS else [option]


def find_virtiofsd(program: str) -> str:
    """The path of the configured `program`; empty means wherever the distribution has it. Raises HostError."""
    return find_program(program or "virtiofsd", package="virtiofsd", also=PROGRAMS)


def _most_files() -> int:
    """How many descriptors it may have: each file that the guest knows is one. Both programs want as many.

    Without the capability they can't raise it themselves.
    """
    return min(_FILES, *(int(Path(f"/proc/sys/fs/{name}").read_text()) for name in ("file-max", "nr_open")))


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
    path = find_virtiofsd(program)
    async with AsyncExitStack() as stack:
        span = _trace.start("startVirtiofsd", level=Level.ESSENTIAL, program=path)
        start = HelperStart(span, _SERVES)
        stack.callback(start.over)
        with use(span), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_path))
            stack.callback(socket_path.unlink, missing_ok=True)
            listener.listen(1)
            c = await is_c_program(path)
            argv = to_argv(path, listener.fileno(), shared, cache=cache, extra=extra, c=c)
            cage = replace(cage, capabilities=_CAPABILITIES, files=_most_files())
            launched = launch(
                argv,
                pass_fds=[listener.fileno()],
                cage=cage,
                log_path=log_path,
                on_line=start.on_line,
                name="virtiofsd",  # whatever the configuration calls it
            )
            child = await stack.enter_async_context(launched)
            end = stack.enter_context(socket.socket(socket.AF_UNIX))
            end.connect(str(socket_path))
        yield child, end, start
