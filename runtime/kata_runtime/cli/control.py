"""`kata-runtime trace on|off`: asks a running sandbox, by its management socket."""

import argparse
import json
import os
import socket
from http import HTTPStatus
from typing import Any

from kata_common import places
from kata_common.documents import parse_json
from kata_runtime.errors import HostError, SandboxError
from kata_runtime.sandbox.state import Directories, valid_id

__all__ = ["add_arguments", "ask", "chosen"]

# Seconds for an answer; switching waits up to five for the guest's spans.
_TIMEOUT = 30.0
_MAX_ANSWER = 4 << 20


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `on` and `off` to the commands of `trace`."""
    on = commands.add_parser("on", help="trace a running sandbox from now on")
    on.add_argument("sandbox", nargs="?", default="", help="sandbox id (default: the only one that runs)")
    on.add_argument(
        "--level", choices=("essential", "normal", "detailed"), default="", help="how much (default: as is)"
    )
    on.add_argument("--no-agent", action="store_true", help="the runtime alone")
    on.set_defaults(run=_switch, sides=True)
    off = commands.add_parser("off", help="trace a running sandbox no more; its trace stays")
    off.add_argument("sandbox", nargs="?", default="", help="sandbox id (default: the only one that runs)")
    off.set_defaults(run=_switch, sides=False, level="", no_agent=False)


def _switch(options: argparse.Namespace) -> int:
    sandbox = chosen(options.sandbox)
    wanted = {"runtime": options.sides, "agent": options.sides and not options.no_agent, "level": options.level}
    state = parse_json(ask(sandbox, "PUT", "/tracing", body=json.dumps(wanted).encode()))
    sides = [name for name in ("runtime", "agent") if state[name]]
    print(
        f"{sandbox}: tracing {' and '.join(sides) or 'neither side'}, level {state['level']}; {state['store'] or '-'}"
    )
    return 0


def _running() -> list[str]:
    try:
        return sorted(path.parent.name for path in Directories().run.glob(f"*/{places.MANAGEMENT_SOCKET}"))
    except OSError:
        return []


def chosen(sandbox: str) -> str:
    """The sandbox that is meant: the only one, unless it is named.

    Raises:
        HostError, SandboxError: there is not one, or who asks is not root.
    """
    if os.geteuid() != 0:
        raise HostError("only root can ask a sandbox", hint="sudo kata-runtime …")
    if sandbox:
        return valid_id(sandbox)
    running = _running()
    if len(running) != 1:
        names = f": {', '.join(running[:10])}{', …' if len(running) > 10 else ''}" if running else ""
        raise SandboxError(f"{len(running) or 'no'} sandboxes are running{names}", hint="name one")
    return running[0]


def ask(
    sandbox: str, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> bytes:
    """The answer of a sandbox's management socket to a request.

    Raises:
        SandboxError: it does not run, does not answer, or refuses.
    """
    import http.client  # brings half of the library along

    connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_TIMEOUT)
        connection.sock.connect(str(Directories().run / sandbox / places.MANAGEMENT_SOCKET))
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        content = answer.read(_MAX_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise SandboxError(
            f"no sandbox {sandbox!r} is running", hint=f"running: {', '.join(_running()[:10]) or 'none'}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise SandboxError(f"sandbox {sandbox} does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status == HTTPStatus.OK:
        return content
    said = _said(content)
    raise SandboxError(f"sandbox {sandbox}: {said.get('error') or answer.reason}", hint=str(said.get("hint") or ""))


def _said(content: bytes) -> dict[str, Any]:
    try:
        said = parse_json(content)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {}
