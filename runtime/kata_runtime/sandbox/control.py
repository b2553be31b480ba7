"""The sandbox's control socket: who is there, and further processes in its containers, on the caller's descriptors.

A connection is one request: a line of JSON, with descriptors (SCM_RIGHTS) where it says so, and lines of JSON back.

    {"op": "containers"}          {"sandbox", "pid", "containers": [{"id", "state", "created", "args"}]}
    {"op": "pids", "container"}   {"pids": [...]}, as the guest numbers them
    {"op": "console", "port"}     {"console": true}, with a descriptor: a stream to a shell of the guest's own
    {"op": "attach", "container"} {"exit": STATUS}, when its first process has ended. Where "stands" is true the
                                  container ends with whoever asked
    {"op": "exec", "container",   {"started": true}, then {"exit": STATUS}; descriptors are those of "stdio" (a list of
     "process", "stdio"}          stdin, stdout, stderr), in its order. "process" is OCI's: what is not in it is the
                                  container's own, unless "complete" is true

While a process runs whoever asked may send {"resize": [ROWS, COLUMNS]} and {"signal": NUMBER, "all": BOOLEAN}. An exec
whose caller goes away is killed, as if the caller were the process. A refusal is {"error", "hint", "exit_code"}.

Root's alone, like the management socket (which is HTTP, as Kata's is: descriptors have no place in it).
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from kata_common.contract import Port
from kata_common.documents import parse_json
from kata_runtime.errors import AgentError, KataError, SandboxError
from kata_runtime.oci.bundle import read_process
from kata_runtime.oci.spec import guest_process, merge_env
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.guest_calls import GuestCalls
from kata_runtime.sandbox.process import Exit, Process
from kata_runtime.sandbox.streams import Stdio, own_descriptor
from kata_runtime.sandbox.workload import tell
from kata_telemetry.span import Site, Span, use

__all__ = ["Controlled", "serve_control"]

_trace = Site(package="containerdshim", subsystem="control")
_log = logging.getLogger("kata.control")

_MAX_REQUEST = 1 << 20
_MAX_CONNECTIONS = 64
_MAX_DESCRIPTORS = 3
_CHUNK = 64 << 10
# Seconds for a request to arrive; for output that nobody reads, once its process has ended; for last answers.
_REQUEST_TIMEOUT = 5.0
_DRAIN_TIMEOUT = 5.0
_FAREWELL = 1.0


class Controlled(Protocol):
    """What the socket needs of a sandbox."""

    id: str
    containers: dict[str, Container]

    @property
    def pid(self) -> int:
        """The VM's process."""
        ...

    @property
    def guest(self) -> GuestCalls:
        """What its guest can be asked."""
        ...

    async def wait_process(self, process: Process) -> Exit:
        """Wait for the end of a process."""
        ...


@asynccontextmanager
async def serve_control(path: Path, sandbox: Controlled, root: Span) -> AsyncIterator[None]:
    """Serve `sandbox` on the unix socket `path` for the block; what is done belongs to the trace's `root`."""
    server = _Server(sandbox, root)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(_MAX_CONNECTIONS)
        accepting = asyncio.create_task(server.accept(listener), name="control socket")
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait({accepting})
            await server.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - a socket in memory


class _Peer:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self.descriptors: list[int] = []

    async def read(self) -> Mapping[str, Any] | None:
        """The next message, None at the end.

        Raises:
            SandboxError: it is none.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MAX_REQUEST:
                raise SandboxError(f"a request of more than {_MAX_REQUEST} bytes")
            chunk = await self._receive()
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise SandboxError(f"a request that is not JSON: {error}") from error
        if not isinstance(message, dict):
            raise SandboxError("a request that is no object")
        return message

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                chunk, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK, _MAX_DESCRIPTORS)
            except BlockingIOError:
                readable: asyncio.Future[None] = loop.create_future()
                loop.add_reader(self._socket, _set, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._socket)
                continue
            except OSError:
                return b""
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self.descriptors += descriptors
            return chunk

    async def write(self, message: Mapping[str, object]) -> None:
        """Send a message; who has gone does not get it."""
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._socket, json.dumps(message).encode() + b"\n")

    async def hand_over(self, message: Mapping[str, object], stream: socket.socket) -> None:
        """Send a message with a descriptor."""
        data = json.dumps(message).encode() + b"\n"
        with suppress(OSError):
            sent = socket.send_fds(self._socket, [data], [stream.fileno()])
            await asyncio.get_running_loop().sock_sendall(self._socket, data[sent:])

    def check_root(self) -> None:
        """Raise unless root is at the other end."""
        size = struct.calcsize("3i")
        _, uid, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid not in (0, os.geteuid()):
            raise SandboxError("only root may ask")

    def close(self) -> None:
        """Close it, and the descriptors that came by it and belong to nobody."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self._socket.close()


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class _Server:
    def __init__(self, sandbox: Controlled, root: Span) -> None:
        self._sandbox = sandbox
        self._root = root
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            connection.setblocking(False)
            if len(self._tasks) >= _MAX_CONNECTIONS:
                connection.close()
                continue
            task = asyncio.create_task(self._serve(_Peer(connection)), name="control connection")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give those that know their answer a moment to say it, and end the others."""
        # One of them may be what ends the sandbox.
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            _, waiting = await asyncio.wait(tasks, timeout=_FAREWELL)
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)

    async def _serve(self, peer: _Peer) -> None:
        try:
            with use(self._root):
                await self._answer(peer)
        except KataError as error:
            code = error.code if isinstance(error, AgentError) else ""
            await peer.write({"error": str(error), "hint": error.hint, "code": code, "exit_code": error.exit_code})
        except TimeoutError:
            await peer.write({"error": "the request did not arrive in time"})
        except Exception as error:
            _log.exception("a request to the control socket failed")
            await peer.write({"error": f"{type(error).__name__}: {error}"})
        finally:
            peer.close()

    async def _answer(self, peer: _Peer) -> None:
        peer.check_root()
        async with asyncio.timeout(_REQUEST_TIMEOUT):
            request = await peer.read()
        if request is None:
            return
        match request.get("op"):
            case "containers":
                await peer.write(self._containers())
            case "pids":
                await peer.write({"pids": await self._container(request).pids()})
            case "console":
                await self._console(peer, request)
            case "attach":
                await self._attach(peer, self._container(request), stands=request.get("stands") is True)
            case "exec":
                await self._exec(peer, self._container(request), request)
            case other:
                raise SandboxError(f"no request is called {str(other)[:100]!r}")

    def _containers(self) -> dict[str, object]:
        found = [
            {
                "id": container.id,
                "state": container.state,
                "created": container.created_ns,
                "args": container.process_spec.get("args", []),
            }
            for container in self._sandbox.containers.values()
        ]
        return {"sandbox": self._sandbox.id, "pid": self._sandbox.pid, "containers": found}

    def _container(self, request: Mapping[str, Any]) -> Container:
        containers = self._sandbox.containers
        wanted = request.get("container")
        if isinstance(wanted, str) and wanted in containers:
            return containers[wanted]
        names = ", ".join(list(containers)[:10]) or "none"
        if wanted or len(containers) != 1:
            what = f"no container {str(wanted)[:100]!r}" if wanted else f"{len(containers)} containers"
            raise SandboxError(f"there is {what} in sandbox {self._sandbox.id}", hint=f"containers: {names}")
        return next(iter(containers.values()))

    async def _console(self, peer: _Peer, request: Mapping[str, Any]) -> None:
        port = request.get("port", int(Port.CONSOLE))
        if not isinstance(port, int) or not 0 < port < 1 << 32:
            raise SandboxError('"port" is no port')
        with await self._sandbox.guest.console(port) as stream:
            await peer.hand_over({"console": True}, stream)

    async def _attach(self, peer: _Peer, container: Container, *, stands: bool) -> None:
        async def ended() -> None:
            await container.init.known.wait()

        if await _until(ended(), peer, container.init):
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_TIMEOUT):
                    await container.init.drain()
            await _tell(peer, container.init.end)
        elif stands:
            with suppress(AgentError):
                await container.signal(signal.SIGKILL, everything=True)

    async def _exec(self, peer: _Peer, container: Container, request: Mapping[str, Any]) -> None:
        spec = _process_of(container, request)
        process = container.process(f"kata-{secrets.token_hex(8)}")
        # In this order: nothing is copied any more when they are closed.
        with ExitStack() as stack:
            stdio = _stdio(request.get("stdio"), peer, stack)
            with _trace.stage("exec", container_id=container.id, exec_id=process.exec_id):
                await process.exec(spec, stdio)
            try:
                await peer.write({"started": True})

                async def ended() -> None:
                    await self._sandbox.wait_process(process)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_DRAIN_TIMEOUT):
                            await process.drain()

                if await _until(ended(), peer, process):
                    await _tell(peer, process.end)
                else:
                    await _kill(process)
            finally:
                await process.close()


async def _until(end: Any, peer: _Peer, process: Process) -> bool:  # noqa: ANN401 - a coroutine
    """Do what the peer says until `end` is over (True) or the peer has gone (False)."""
    ending = asyncio.ensure_future(end)
    listening = asyncio.ensure_future(_obey(peer, process))
    try:
        await asyncio.wait({ending, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            listening.result()
            return False
        ending.result()
        return True
    finally:
        for task in (ending, listening):
            task.cancel()
        await asyncio.wait({ending, listening})


async def _obey(peer: _Peer, process: Process) -> None:
    """Until the peer closes its end."""
    while (message := await peer.read()) is not None:
        with suppress(AgentError):  # it has ended meanwhile
            match message:
                case {"resize": [int(rows), int(columns)]} if 0 <= rows < 1 << 16 and 0 <= columns < 1 << 16:
                    await process.resize(rows, columns)
                case {"signal": int(number), **rest} if 0 < number <= signal.NSIG:
                    await process.signal(number, everything=bool(rest.get("all")))
                case _:
                    raise SandboxError("neither a size nor a signal")


async def _kill(process: Process) -> None:
    with suppress(AgentError):
        await process.signal(signal.SIGKILL)
        await process.wait()


async def _tell(peer: _Peer, end: Exit | None) -> None:
    assert end is not None
    await peer.write({"exit": end.status, "reason": end.reason})


def _process_of(container: Container, request: Mapping[str, Any]) -> dict[str, Any]:
    """The process that is asked for, complete or as changes of the container's own; `env` adds to its own."""
    given = request.get("process")
    if not isinstance(given, dict):
        raise SandboxError('"process" is no object')
    if not request.get("complete"):
        own = {key: value for key, value in container.process_spec.items() if key not in ("args", "terminal")}
        kept, more = own.get("env"), given.get("env")
        layers = [layer for layer in (kept, more) if isinstance(layer, list)]
        given = {**own, **given, "env": list(merge_env(*layers))}
    checked, notes = guest_process(read_process(json.dumps(given).encode()))
    tell(notes)
    return checked


def _stdio(names: object, peer: _Peer, stack: ExitStack) -> Stdio:
    known = ("stdin", "stdout", "stderr")
    if not isinstance(names, list) or not all(name in known for name in names) or len({*names}) != len(names):
        raise SandboxError('"stdio" is no list of stdin, stdout, stderr')
    given: list[str] = names
    if len(given) != len(peer.descriptors):
        raise SandboxError(f'"stdio" names {len(given)} descriptors, and {len(peer.descriptors)} came')
    found = {}
    for name in given:
        descriptor = peer.descriptors.pop(0)
        stack.callback(os.close, descriptor)
        found[name] = own_descriptor(descriptor, stack.callback, writing=name != "stdin")
    return Stdio(**found)
