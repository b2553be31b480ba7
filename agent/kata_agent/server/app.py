"""The agent as a whole: everything it owns, from the listeners to the last byte before the power goes."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import grpc

from kata_agent.container.container import Tools
from kata_agent.container.crun import Crun
from kata_agent.container.sandbox import Sandbox
from kata_agent.errors import SetupError
from kata_agent.process.pump import PumpThread
from kata_agent.process.reaper import Reaper
from kata_agent.process.sockets import SocketRoom
from kata_agent.process.streams import StreamRoom
from kata_agent.server.boot import Boot
from kata_agent.server.calls import CallServer
from kata_agent.server.clock import ClockServer
from kata_agent.server.funnel import Funnel
from kata_agent.server.listeners import Acceptor, Endpoints
from kata_agent.server.policy import ALLOW_ALL, parse_policy
from kata_agent.server.ports import PortServer
from kata_agent.server.relay import Relay
from kata_agent.server.tracing import Tracing
from kata_agent.services.agent import AgentService
from kata_agent.services.health import Health
from kata_common.contract import Port
from kata_protos import agent_pb2

if TYPE_CHECKING:
    from kata_agent.server.console import Console

__all__ = ["Agent", "Layout"]

# Seconds that calls in flight get when the sandbox has ended: StreamSpans sends its last batches.
GRACE: Final = 30.0
MAX_MESSAGE: Final = 16 << 20


class Layout(NamedTuple):
    """Where things are; the defaults are a guest's."""

    bundles: Path = Path("/run/kata-containers/bundles")
    crun_state: Path = Path("/run/crun")
    socket: Path = Path("/run/kata-agent/grpc.sock")
    cgroups: Path = Path("/sys/fs/cgroup")
    parent: str = "/kata"
    resolv_conf: Path = Path("/etc/resolv.conf")
    crun: str = "crun"
    shared_namespaces: bool = True


class _Doors:
    """See `kata_agent.services.guest.Doors`."""

    def __init__(self, endpoints: Endpoints, reaper: Reaper, funnel: Funnel) -> None:
        self._endpoints = endpoints
        self._reaper = reaper
        self._funnel = funnel
        self._console: Console | None = None
        # The port of one that the kernel's command line wants, which no sandbox can forget.
        self.always = 0

    def set_policy(self, text: str) -> None:
        self._funnel.policy = parse_policy(text)

    def open_console(self, port: int = Port.CONSOLE) -> None:
        from kata_agent.server.console import Console

        self._console = self._console or Console(self._endpoints, self._reaper)
        try:
            self._console.open(port)
        except OSError as error:
            raise SetupError(f"the debug console can't listen on port {port:d}: {error.strerror}") from error

    def forget(self) -> None:
        self._funnel.policy = ALLOW_ALL
        self.close()
        if self.always:
            self.open_console(self.always)

    def close(self) -> None:
        """End who is at the console, if it is open."""
        if self._console is not None:
            self._console.close()


class Agent:
    """An async context manager: entered it listens, left it has ended everything.

    `orphans` says that every child that ends is the agent's to collect (PID 1, subreaper).
    """

    def __init__(
        self, endpoints: Endpoints, *, layout: Layout | None = None, orphans: bool = True, boot: Boot | None = None
    ) -> None:
        self._endpoints = endpoints
        self._layout = layout or Layout()
        self._orphans = orphans
        self._stack = AsyncExitStack()
        self._destroyed = asyncio.Event()
        self.tracing = Tracing(boot.record if boot else None, lambda: endpoints.dial(Port.FORWARDER))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            layout = self._layout
            for directory in (layout.bundles, layout.crun_state, layout.socket.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            reaper = await stack.enter_async_context(Reaper(orphans=self._orphans))
            crun = Crun(reaper, layout.crun_state, program=layout.crun)
            stack.callback(crun.close)
            room = StreamRoom()
            stack.callback(room.close)
            pumps = PumpThread()
            stack.callback(pumps.close)
            sockets = SocketRoom()
            stack.callback(sockets.close)
            tools = Tools(reaper, crun, room, pumps, layout.bundles, layout.cgroups, layout.parent, sockets, set())
            stack.push_async_callback(tools.undone)
            self._sandbox = Sandbox(tools, resolv_conf=layout.resolv_conf, shared=layout.shared_namespaces)
            clock = ClockServer()
            stack.callback(clock.close)
            ports = PortServer()
            stack.callback(ports.close)
            served = (
                (Port.STDIO, room.add),
                (Port.CLOCK, clock.accepted),
                (Port.LOCALHOST, ports.accepted),
                (Port.SOCKETS, sockets.accepted),
            )
            for port, accepted in served:
                stack.callback(Acceptor(self._endpoints, port, accepted).close)
            await self._serve(stack, reaper)
            self._stack = stack.pop_all()
        return self

    async def _serve(self, stack: AsyncExitStack, reaper: Reaper) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.so_reuseport", 0),
            )
        )
        funnel = Funnel(self.tracing)
        self._doors = _Doors(self._endpoints, reaper, funnel)
        stack.callback(self._doors.close)
        service = AgentService(self._sandbox, self.tracing, self._doors, self._destroyed.set)
        self._server.add_generic_rpc_handlers(
            (
                funnel.service(agent_pb2, "AgentService", service),
                funnel.service(agent_pb2, "Health", Health()),
            )
        )
        self._relay: Relay | None = None
        self._layout.socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._layout.socket}")
        self._relay = Relay(str(self._layout.socket))
        await self._server.start()
        stack.push_async_callback(self._server.stop, 0)
        stack.callback(self._relay.close)
        health = Health()
        calls = funnel.plain(agent_pb2, "AgentService", service) | funnel.plain(agent_pb2, "Health", health)
        self._calls = CallServer(calls)
        stack.callback(self._calls.close)
        stack.callback(Acceptor(self._endpoints, Port.CALLS, self._calls.accepted).close)
        # Last: whoever gets through is served.
        self._acceptor = Acceptor(self._endpoints, Port.AGENT, self._relay.accepted)
        stack.callback(self._acceptor.close)

    def open_console(self, port: int) -> None:
        """Let the host have a shell at `port` from the start on. Raises SetupError."""
        self._doors.always = port
        self._doors.open_console(port)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._stack:
            await self._sandbox.destroy()
            await self._finish()
            await self._sandbox.close()

    async def destroyed(self) -> None:
        """Return when DestroySandbox has ended the sandbox and its answer has been handed to the host."""
        await self._destroyed.wait()
        await self._finish()

    async def _finish(self) -> None:
        """The end of every call: spans flushed, answers on their way."""
        self._acceptor.close()
        # Spans that ended with the call itself are in; no more will come.
        self.tracing.close()
        await self._calls.drained()
        await self._server.stop(GRACE)
        if self._relay:
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._relay.drained()
