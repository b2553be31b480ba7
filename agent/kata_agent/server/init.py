"""The agent as PID 1: prepares the guest, serves until the sandbox has ended, and says why it ends."""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kata_agent.guest import machine
from kata_agent.server import diet
from kata_agent.server.app import Agent
from kata_agent.server.boot import Boot, kmsg
from kata_agent.server.listeners import VsockEndpoints
from kata_common import marks
from kata_common.contract import Port
from kata_telemetry import logs

__all__ = ["console_port", "main"]

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(boot: Boot) -> str:
    """Run to the end; the reason of the end. Raises what nothing can be done about."""
    boot.mark("imports")
    machine.prepare(lambda step: boot.mark_within("mounts", step))
    faulthandler.enable()
    os.environ.setdefault("PATH", PATH)
    logs.configure("logfmt", _log_level(), sys.stderr, source="agent")
    boot.mark("mounts")
    return asyncio.run(_serve(boot))


async def _serve(boot: Boot) -> str:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def stopped(reason: str) -> None:
        if not stop.done():
            stop.set_result(reason)

    # Ctrl-Alt-Del comes as SIGINT (linux.ctrl_alt_del_as_signal).
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPWR):
        loop.add_signal_handler(number, stopped, f"signal {signal.Signals(number).name}")
    async with Agent(VsockEndpoints(), boot=boot) as agent:
        if port := console_port(_command_line()):
            agent.open_console(port)
        boot.mark("listen")
        kmsg(marks.AGENT_LISTENS)
        _console(f"{marks.READY}\n".encode())
        diet.after()
        destroyed = asyncio.create_task(agent.destroyed())
        destroyed.add_done_callback(lambda _: stopped("the sandbox was destroyed"))
        reason = await stop
        if destroyed.done():
            # Nothing of the sandbox is left and the host waits for the power: no tidying up.
            os.sync()
            from kata_common.linux import power_off

            power_off()
        destroyed.cancel()
        logging.getLogger("kata.agent").warning("ending: %s", reason)
    return reason


def _log_level() -> str:
    """What agent.log= says on the kernel's command line, as with Kata's agent; the host has checked it."""
    asked = next((word.partition("=")[2] for word in _command_line() if word.startswith("agent.log=")), "info")
    named = {"trace": "debug", "warn": "warning", "critical": "error"}.get(asked, asked)
    return named if named in ("debug", "info", "warning", "error") else "info"


def console_port(words: Iterable[str]) -> int:
    """The port that a kernel's command line wants the console at; 0 where it wants none."""
    wanted, port = False, int(Port.CONSOLE)
    for word in words:
        name, _, value = word.partition("=")
        if name == "agent.debug_console":
            wanted = value in ("", "true", "1")
        elif name == "agent.debug_console_vport" and value.isascii() and value.isdecimal():
            wanted, port = True, int(value)
    return port if wanted else 0


def _command_line() -> list[str]:
    """The words of the kernel's command line."""
    return Path("/proc/cmdline").read_text(errors="replace").split()


def _console(line: bytes) -> None:
    # Not sys.stderr: one write, so that no line of the kernel's gets into it.
    os.write(2, line)
