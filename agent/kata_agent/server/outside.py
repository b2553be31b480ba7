"""The agent on a machine that isn't its own: on unix sockets, for development and tests. Needs root and crun."""

import asyncio
import signal
import sys
from pathlib import Path

from kata_agent.server import diet
from kata_agent.server.app import Agent, Layout
from kata_agent.server.listeners import UnixEndpoints
from kata_common import linux, marks

__all__ = ["main"]

USAGE = "usage: kata-agent --unix DIR [--crun PROGRAM]   (in a guest the agent runs as PID 1, without arguments)"


def main() -> int:
    """Serve on unix sockets in a directory until SIGTERM, SIGINT or DestroySandbox; the exit status."""
    match sys.argv[1:]:
        case ["--unix", directory, *more] if more == [] or (len(more) == 2 and more[0] == "--crun"):
            linux.become_subreaper()
            asyncio.run(_serve(Path(directory), more[1] if more else ""))
            return 0
    print(USAGE, file=sys.stderr)
    return 2


async def _serve(directory: Path, crun: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    layout = Layout(
        bundles=directory / "bundles",
        crun_state=directory / "crun",
        socket=directory / "grpc.sock",
        parent=f"/kata-agent-{directory.name}",
        crun=crun or "crun",
        # What replaces crun isolates nothing.
        shared_namespaces=not crun,
    )
    async with Agent(UnixEndpoints(directory), layout=layout) as agent:
        print(marks.READY, flush=True)
        diet.after()
        ends = [asyncio.create_task(agent.destroyed()), asyncio.create_task(stop.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
