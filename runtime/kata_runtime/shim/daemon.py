"""The shim's long life: serves containerd until it is told to end.

`start` has forked this process with a socket that listens already; containerd may be waiting in its backlog.
"""

import asyncio
import logging
import signal
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from kata_protos.containerd import sandbox_pb2, task_pb2, task_v3_pb2
from kata_runtime import loop
from kata_runtime.errors import KataError
from kata_runtime.shim import log
from kata_runtime.shim.events import Publisher
from kata_runtime.shim.funnel import CallFunnel
from kata_runtime.shim.launch import Launch
from kata_runtime.shim.service import OpenService, Shim, TaskService
from kata_runtime.shim.ttrpc.server import Server
from kata_runtime.shim.ttrpc.service import bind
from kata_telemetry.logs import log_fields

__all__ = ["main", "serve"]

_log = logging.getLogger("kata.shim")

# Seconds for calls that are running when the shim ends. Most will be Waits for what will not happen any more.
_GRACE = 0.5
# Seconds for containerd to close its connection, once it has the answer to the call that ends the shim.
_FAREWELL = 0.5

# Seconds without a connection after which a shim that holds nothing ends: time for a containerd that restarts.
_ALONE = 10.0

_TASK_SERVICES = (task_pb2.DESCRIPTOR.services_by_name["Task"], task_v3_pb2.DESCRIPTOR.services_by_name["Task"])
_SANDBOX_SERVICE = sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"]


def main(launch: Launch, listener: socket.socket, open_service: OpenService) -> int:
    """Be the daemon; returns its exit status. stderr is the log."""
    log.set_up(2, debug=launch.debug)
    path = Path(launch.address.removeprefix("unix://"))
    mine = path.stat().st_ino
    try:
        with log_fields(namespace=launch.namespace, sandbox=launch.group.sandbox_id):
            loop.run(serve(launch, listener, open_service))
    except KataError as error:
        _log.error("the shim can't go on: %s%s", error, f" ({error.hint})" if error.hint else "")
        return 1
    except Exception:
        _log.exception("the shim failed")
        return 1
    finally:
        # A new shim of a sandbox with the same id may already have put its own there.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == mine:
                path.unlink()
    return 0


async def serve(launch: Launch, listener: socket.socket, open_service: OpenService) -> None:
    """Serve until `Shim.stop`, SIGTERM or SIGINT, or until nobody is there who could say so."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # In the order in which they must end: no more calls, then the sandbox, then the last events, then the trace.
    async with AsyncExitStack() as last, AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(Publisher(launch.ttrpc_address, launch.namespace))
        service = await stack.enter_async_context(open_service(Shim(launch, publisher.publish, stop.set)))
        last.callback(service.close_trace)
        services = [bind(descriptor, service) for descriptor in _TASK_SERVICES]
        if service.sandbox is not None:
            services.append(bind(_SANDBOX_SERVICE, service.sandbox))
        funnel = CallFunnel(service.enter)
        server = await stack.enter_async_context(Server(services, funnel=funnel, grace=_GRACE, farewell=_FAREWELL))
        await server.listen(listener)
        _log.info("the shim serves %s", launch.address)
        alone = asyncio.create_task(_abandoned(server, service, stop))
        stack.callback(alone.cancel)
        await stop.wait()
        _log.info("the shim ends")


async def _abandoned(server: Server, service: TaskService, stop: asyncio.Event) -> None:
    """End a shim that nobody will ever end.

    A containerd whose client has gone cancels its own tidying up too: it closes the connection and forgets the shim,
    before or after the sandbox was made.
    """
    while True:
        await server.alone(_ALONE)
        if not service.needed:
            _log.warning("nobody has been connected for %g s, and nothing is here: the shim was abandoned", _ALONE)
            stop.set()
            return
        await server.visited()
