"""`kata-runtime exec`: one more process in a container that runs, whoever started it.

For people as docker has it, `exec -it SANDBOX [CONTAINER] -- COMMAND`, and as Kata has it, `exec SANDBOX` for a shell
of the guest's own; for engines as runc has it,
`exec --process FILE --detach --pid-file FILE --console-socket PATH CONTAINER`.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_common.contract import Port
from kata_common.documents import parse_json
from kata_runtime.cli import console, terminal
from kata_runtime.cli.options import absolute, environment
from kata_runtime.engine.standin import Console, Started, stand_in
from kata_runtime.errors import HostError, KataError, RootfsError, SandboxError
from kata_runtime.sandbox import reach

__all__ = ["add_arguments"]

_USAGE = "kata-runtime exec [OPTIONS] SANDBOX [CONTAINER] -- COMMAND [ARG...]"
# A process's JSON; as long as the control socket takes it.
_MAX_PROCESS = 1 << 20
_MAX_ID = 0xFFFF_FFFE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `exec`."""
    parser.usage = _USAGE
    parser.add_argument("-i", "--interactive", action="store_true", help="pass stdin to the command")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="return when the command has been started")
    parser.add_argument(
        "-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable; K alone: ours"
    )
    parser.add_argument(
        "-w", "--cwd", "--workdir", metavar="DIR", type=absolute, help="working directory in the container"
    )
    parser.add_argument("-u", "--user", metavar="UID[:GID]", default="", help="user in the container")
    parser.add_argument("-p", "--process", metavar="FILE", help="OCI process (JSON), instead of a command and options")
    parser.add_argument("--pid-file", metavar="FILE", default="", help="write the id of the process that stands for it")
    parser.add_argument("--console-socket", metavar="PATH", default="", help="send the terminal to who listens there")
    parser.add_argument(
        "--preserve-fds", metavar="N", type=int, default=0, help="only 0: a guest has no descriptors of ours"
    )
    parser.add_argument(
        "--kata-debug-port", metavar="PORT", type=int, default=int(Port.CONSOLE), help=argparse.SUPPRESS
    )
    parser.add_argument(
        "words", metavar="SANDBOX [CONTAINER] -- COMMAND", nargs=argparse.REMAINDER, help="where, and what"
    )
    parser.set_defaults(run=run, usage=_USAGE)


@dataclass(frozen=True)
class _Wanted:
    """What to run: OCI's process, whether that is all of it, and who gets its stdin."""

    process: dict[str, Any]
    complete: bool
    stdin: bool

    @property
    def terminal(self) -> bool:
        return bool(self.process.get("terminal"))


def run(options: argparse.Namespace) -> int:
    """Handler of the command; the exit code is the process's."""
    if len(options.words) == 1 and options.words[0] != "--" and not (options.process or options.detach):
        return _console(options)
    where, argv = _split(options.words, process=bool(options.process))
    if options.preserve_fds:
        raise KataError("--preserve-fds: a process in a VM can't have descriptors of the host", hint="leave it out")
    wanted = _wanted(options, argv)
    if wanted.terminal and not (options.console_socket or os.isatty(0)):
        raise HostError("-t needs a terminal on stdin", hint="leave out -t, or run it from a terminal")
    if options.console_socket and not wanted.terminal:
        raise KataError("--console-socket is for a process with a terminal", hint="-t, or terminal in --process")
    if wanted.terminal and options.detach and not options.console_socket:
        raise KataError("a terminal of a detached process needs somebody to have it", hint="--console-socket PATH")
    reach.require_root()
    target = reach.find(where[0], where[1] if len(where) > 1 else "")

    def body(started: Started) -> int:
        return _stand(options, target, wanted, started)

    return stand_in(body, pid_file=options.pid_file, foreground=not options.detach)


def _console(options: argparse.Namespace) -> int:
    """Kata's own `exec`."""
    name = options.words[0]
    try:
        reach.find_sandbox(name)
    except SandboxError as error:
        raise KataError("exec needs a command", hint=f"{_USAGE}; for the debug console of a sandbox: {error}") from None
    return console.attach(name, options.kata_debug_port)


def _split(words: Sequence[str], *, process: bool) -> tuple[list[str], list[str]]:
    """SANDBOX [CONTAINER] and the command; without "--" the command follows the first word, as with runc."""
    before, argv = (
        (list(words[: words.index("--")]), list(words[words.index("--") + 1 :]))
        if "--" in words[:3]
        else (
            list(words[:1]),
            list(words[1:]),
        )
    )
    if not 1 <= len(before) <= 2:
        raise KataError("exec needs a sandbox", hint=_USAGE)
    if process and argv:
        raise KataError("--process has the command already", hint=_USAGE)
    if not process and not argv:
        raise KataError("exec needs a command", hint=_USAGE)
    return before, argv


def _wanted(options: argparse.Namespace, argv: Sequence[str]) -> _Wanted:
    if options.process:
        return _Wanted(_read_process(Path(options.process)), complete=True, stdin=True)
    process: dict[str, Any] = {"args": list(argv), "terminal": options.tty}
    process["env"] = [*(["TERM=xterm"] if options.tty else []), *environment(options.env)]
    if options.cwd:
        process["cwd"] = options.cwd
    if options.user:
        process["user"] = _user(options.user)
    return _Wanted(process, complete=False, stdin=options.interactive)


def _read_process(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PROCESS)
        process = parse_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise RootfsError(f"--process {path} can't be read: {error}") from error
    if not isinstance(process, dict):
        raise RootfsError(f"--process {path}: expected an object")
    return process


def _user(text: str) -> dict[str, int]:
    numbers = text.split(":")
    if len(numbers) > 2 or not all(n.isascii() and n.isdecimal() and int(n) <= _MAX_ID for n in numbers):
        raise KataError(
            f"--user {text!r}: exec takes numbers, UID or UID:GID",
            hint="names are in files of the container, which its processes may have changed",
        )
    return {"uid": int(numbers[0]), "gid": int(numbers[1]) if len(numbers) == 2 else 0}


def _stand(options: argparse.Namespace, target: reach.Target, wanted: _Wanted, started: Started) -> int:
    with ExitStack() as stack:
        console = Console(options.console_socket) if options.console_socket else None
        if console is not None:
            stack.callback(os.close, console.descriptor)
            if options.detach:
                console.control()
        stdio = _descriptors(wanted, console)
        connection = stack.enter_context(reach.Connection.open(target.sandbox))
        request = {
            "op": "exec",
            "container": target.container,
            "process": wanted.process,
            "complete": wanted.complete,
            "stdio": list(stdio),
        }
        connection.send(request, list(stdio.values()))
        connection.receive()
        started()
        if not wanted.terminal:
            return connection.follow()
        if console is not None:
            return connection.follow(console.descriptor)
        with terminal.raw_mode(0):
            return connection.follow(0)


def _descriptors(wanted: _Wanted, console: Console | None) -> dict[str, int]:
    if console is not None:
        return {"stdin": console.descriptor, "stdout": console.descriptor}
    outputs = {"stdout": 1} if wanted.terminal else {"stdout": 1, "stderr": 2}
    return {"stdin": 0, **outputs} if wanted.stdin else outputs
