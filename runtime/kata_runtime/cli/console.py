"""`kata-runtime console SANDBOX`: a shell of the guest's own, where [agent.kata] debug_console_enabled is set."""

import argparse
import os
import selectors
import socket
import sys
from contextlib import nullcontext

from kata_common.contract import Port
from kata_runtime.cli import terminal
from kata_runtime.errors import SandboxError
from kata_runtime.sandbox import reach

__all__ = ["add_arguments", "attach"]

_CHUNK = 16 << 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `console`."""
    parser.add_argument("sandbox", metavar="SANDBOX", help="id of the sandbox, or of a container in it")
    parser.add_argument("--port", type=int, default=int(Port.CONSOLE), help="the guest's port (default: %(default)s)")
    parser.set_defaults(run=lambda options: attach(options.sandbox, options.port))


def attach(name: str, port: int) -> int:
    """Be at the console until the shell ends; the exit code."""
    reach.require_root()
    sandbox = reach.find_sandbox(name)
    try:
        with reach.Connection.open(sandbox) as connection:
            stream = connection.stream({"op": "console", "port": port})
    except SandboxError as error:
        raise SandboxError(
            f"sandbox {sandbox} has no debug console: {error}",
            hint="set [agent.kata] debug_console_enabled for new sandboxes; for a container's command write "
            "exec SANDBOX -- COMMAND",
        ) from error
    with stream, terminal.raw_mode(0) if os.isatty(0) else nullcontext():
        _talk(stream)
    return 0


def _talk(stream: socket.socket) -> None:
    """Until the shell's end: what is typed goes there, what it says is shown."""
    stream.setblocking(True)
    output = sys.stdout.buffer
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        try:
            selector.register(0, selectors.EVENT_READ)
        except PermissionError:  # a file, which epoll(7) does not take: it is always ready
            stream.sendall(sys.stdin.buffer.read())
            stream.shutdown(socket.SHUT_WR)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if stream.fileno() in ready:
                data = stream.recv(_CHUNK)
                if not data:
                    return
                output.write(data)
                output.flush()
            if 0 in ready:
                typed = os.read(0, _CHUNK)
                if typed:
                    stream.sendall(typed)
                else:
                    selector.unregister(0)
                    stream.shutdown(socket.SHUT_WR)
