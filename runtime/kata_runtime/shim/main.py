"""`containerd-shim-kata-v2`: the program that containerd runs.

    containerd-shim-kata-v2 -namespace NS -id ID -address SOCKET … start|delete
    containerd-shim-kata-v2 -info | -v

This module and what it imports at its top is all that `start` loads before containerd has its answer.
"""

import os
import sys
import time

from kata_common import descriptors
from kata_runtime.shim.arguments import FLAGS, Arguments, UsageError, parse

__all__ = ["NAME", "main"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from kata_runtime.shim.delete import Cleanup
    from kata_runtime.shim.launch import Launch
    from kata_runtime.shim.start import Daemon

NAME = "containerd-shim-kata-v2"
# What containerd's configuration and `ctr run --runtime` call it.
RUNTIME = "io.containerd.kata.v2"


def main(argv: "list[str] | None" = None, *, daemon: "Daemon | None" = None, cleanup: "Cleanup | None" = None) -> int:
    """Run the shim; returns the exit status. `daemon` and `cleanup` are the sandbox's side (default: Kata's)."""
    started = time.monotonic_ns()
    descriptors.fill()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        return _fail(str(error), 2)
    try:
        if arguments.help:
            _say(_help())
        elif arguments.version:
            _say(_version())
        elif arguments.info:
            os.write(1, _info())
        elif arguments.action == "start":
            _say(_start(arguments, daemon, started))
        else:
            from kata_runtime.shim import delete
            from kata_runtime.shim.cleanup import KataCleanup

            os.write(1, delete.delete(arguments, cleanup or KataCleanup()))
    except (UsageError, OSError) as error:
        return _fail(str(error), 1)
    except ExceptionGroup as group:
        return _fail(f"{group.message}: {'; '.join(str(error) for error in group.exceptions)}", 1)
    return 0


def _start(arguments: Arguments, daemon: "Daemon | None", started: int) -> str:
    # containerd 1.6 takes stdout and stderr together for the address: no warning of Python's may get there.
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    os.set_inheritable(stderr, False)
    try:
        from kata_runtime.shim.pooled import lend
        from kata_runtime.shim.start import start

        return start(arguments, daemon or _kata, started=started, lend=None if daemon else lend)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _kata(launch: "Launch", listener: "socket") -> int:
    """The daemon with Kata's sandbox behind it."""
    from kata_runtime.mount import private_mount_namespace

    # While there is one thread only. Nothing that is mounted for a container outlives the shim, however it ends;
    # containerd unmounts its own in its own.
    private_mount_namespace()
    from kata_runtime.shim import memory

    memory.spare()
    from kata_runtime.shim import daemon, tasks

    return daemon.main(launch, listener, tasks.open_service)


def _help() -> str:
    flags = "".join(f"  -{f'{name} {value}'.strip():21} {says}\n" for name, value, says in FLAGS)
    return f"{__doc__}\nFlags:\n{flags}"


def _version() -> str:
    return f"{NAME}:\n  Version:  {_release()}\n  Python:   {sys.version.split()[0]}\n"


def _release() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kata-python")
    except PackageNotFoundError:
        return "not installed"


def _info() -> bytes:
    """containerd.types.RuntimeInfo, with the runtime options from stdin given back as they are."""
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import DecodeError

    from kata_protos.containerd.types_pb2 import RuntimeInfo

    info = RuntimeInfo(name=RUNTIME)
    info.version.version = _release()
    given = b"" if os.isatty(0) else sys.stdin.buffer.read()
    if given:
        try:
            info.options.CopyFrom(Any.FromString(given))
        except DecodeError as error:
            raise UsageError(f"{len(given)} bytes on stdin are not runtime options (google.protobuf.Any)") from error
    return info.SerializeToString()


def _say(text: str) -> None:
    os.write(1, text.encode())


def _fail(message: str, status: int) -> int:
    from kata_common.text import told

    os.write(2, told(f"{NAME}: {message}").encode() + b"\n")
    return status
