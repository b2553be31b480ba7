"""Who is in a guest may put what he likes into what people read of it; a terminal must not obey it.

Each way on which the host's programs tell something, with each kind of such text. The views of a trace have the same
test where the rest of them is tested (tests/unit/traces).
"""

import argparse
import ast
import io
import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from kata_protos.containerd import ttrpc_pb2
from kata_runtime.cli import main as cli
from kata_runtime.errors import AgentError, BootError, KataError, ProcessError
from kata_runtime.helper_log import readable
from kata_runtime.shim import main as shim
from kata_runtime.shim.failures import to_status
from kata_runtime.shim.ttrpc.server import _ServerConnection
from kata_telemetry import logs
from kata_traces.forwarder import main as forwarder
from kata_traces.send.settings import SettingsError

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x1b\\",
    "8 bits": "\x9b2J\x90\x9d",
    "direction": "\u202egnp.exe\u2066",
    "lines": "a\u2028b\u2029c\x85d\x0bd\x0c",
    "overwritten": "bad\rgood\b\b",
    "nul": "a\0b\x7f",
    "surrogate": "\udc1b[31m",
    "another message": "x\nkata-runtime: WARNING: all is well\n",
}


def cli_error(error: KataError) -> str:
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:

        def fail(*_: object) -> int:
            raise error

        patch.setattr(cli, "_configure_log", lambda _: None)
        patch.setattr(cli, "_dispatch", fail)
        cli.main(["version"])
    return said.getvalue()


def on_a_terminal(text: str) -> str:
    """A warning, as a person sees it who runs a container."""
    root, stream = logging.getLogger(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(stream):
        patch.setattr(root, "handlers", [])
        cli._configure_log(argparse.Namespace(log=None))
        logging.getLogger("kata.sandbox").warning("the guest says %s", text)
    return stream.getvalue()


def in_a_log(style: str) -> Callable[[str], str]:
    def write(text: str) -> str:
        record = logging.LogRecord("kata.agent", logging.INFO, "", 0, "%s", (text,), None)
        record.__dict__["exec"] = text
        return logs.Formatter(style, "runtime").format(record)

    return write


def shim_error(text: str) -> str:
    reading, writing = os.pipe()
    saved = os.dup(2)
    try:
        os.dup2(writing, 2)
        shim._fail(text, 1)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(writing)
    with os.fdopen(reading, "rb") as file:
        return file.read().decode()


def status(text: str) -> str:
    """What ctr and crictl print."""
    sent: list[bytes] = []
    connection = _ServerConnection.__new__(_ServerConnection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_send", lambda *arguments: sent.append(arguments[-1]), raising=False)
        connection._respond(1, to_status(AgentError("CreateContainer", "INTERNAL", text, hint=text)))
    return str(ttrpc_pb2.Response.FromString(sent[0]).status.message)


def forwarder_error(text: str) -> str:
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:

        def fail(*_: object) -> None:
            raise SettingsError(text)

        patch.setattr(forwarder, "plan", fail)
        patch.setattr(logs, "configure", lambda *_, **__: logging.NullHandler())
        forwarder.main([])
    return said.getvalue()


WAYS: dict[str, Callable[[str], str]] = {
    "agent's error": lambda text: cli_error(AgentError("ExecProcess", "UNKNOWN", text)),
    "hint": lambda text: cli_error(KataError("no", hint=text)),
    "boot": lambda text: cli_error(
        BootError(text, stage="kernel", console=[text], hypervisor="QEMU", output=text, cause=text)
    ),
    "helper's words": lambda text: cli_error(ProcessError(["umoci"], 1, text)),
    "warning": on_a_terminal,
    "logfmt": in_a_log("logfmt"),
    "json": in_a_log("json"),
    "console": lambda text: readable(text.encode(errors="replace")),
    "shim": shim_error,
    "status": status,
    "forwarder": forwarder_error,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("way", WAYS)
def test_a_terminal_does_not_obey(way: str, kind: str) -> None:
    said = WAYS[way](HOSTILE[kind]).removesuffix("\n")
    lines = said.split("\n")
    assert said
    assert all(line.isprintable() for line in lines)
    # Of several lines only the first may look like the beginning of a message, and a hint.
    assert all(re.match("  |kata-runtime: $", line) for line in lines[1:])


def test_one_record_is_one_line() -> None:
    line = in_a_log("json")(HOSTILE["another message"])
    assert json.loads(line)["msg"] == HOSTILE["another message"]
    assert "\n" not in line


def test_every_error_that_is_printed_goes_that_way() -> None:
    """Calls that put out something with an error in it name what makes it fit to be printed."""
    found, wrong = 0, []
    for path in [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "telemetry").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "os.write", "sys.stderr.write")):
                continue
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if names & {"error", "message", "why"}:
                found += 1
                if not names & {"told", "printable"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []
    assert found > 5
