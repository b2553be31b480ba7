"""What is said on the host's sockets, and on its files: QMP, HTTP, ttrpc, calls, the pool, configuration."""

import asyncio
import json
import socket
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kata_agent.server.calls import CallServer
from kata_agent.server.funnel import Plain
from kata_common.contract import CALL_REPLY
from kata_protos import agent_pb2 as pb
from kata_protos.containerd.ttrpc_pb2 import Request, Response
from kata_runtime import http
from kata_runtime.config.load import load
from kata_runtime.errors import ConfigError, HypervisorError, KataError, SandboxError
from kata_runtime.guest.call import request_of
from kata_runtime.hypervisor.qemu.qmp import Qmp, Transcript
from kata_runtime.pool import wire
from kata_runtime.sandbox import control, management
from kata_runtime.sandbox.guest_calls import GuestCalls
from kata_runtime.sandbox.process import Exit
from kata_runtime.shim import arguments, bootstrap
from kata_runtime.shim.ttrpc import frames
from kata_runtime.shim.ttrpc.frames import Frame
from kata_runtime.shim.ttrpc.server import Server
from kata_runtime.shim.ttrpc.service import bind
from kata_telemetry.span import NO_SPAN, Level
from support.fuzz.loop import run, talked
from support.fuzz.oci import wrote
from support.fuzz.target import Shape, Target, text_of
from support.ttrpc_echo import DESCRIPTOR, Echo

__all__ = ["TARGETS"]


def _ttrpc_frames(data: bytes) -> None:
    whole = frames.Decoder().feed(data)
    decoder, parts = frames.Decoder(), []
    step = max(1, len(data) // 9)
    for at in range(0, len(data), step):
        parts += decoder.feed(data[at : at + step])
    assert parts == whole
    back = b"".join(frames.encode(frame) for frame in whole if isinstance(frame, Frame))
    assert len(back) <= len(data)
    if all(isinstance(frame, Frame) for frame in whole):
        assert data.startswith(back)


def _ttrpc_server(data: bytes) -> None:
    """Each frame that comes back is a response or data."""

    async def talk() -> bytes:
        async with Server([bind(DESCRIPTOR, Echo())], grace=0) as server:
            ours, theirs = socket.socketpair()
            await server.adopt(theirs)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            writer.write(data)
            writer.write_eof()
            said = b""
            try:
                while chunk := await reader.read(1 << 16):
                    said += chunk
            except ConnectionError:
                pass  # it went with something unread
            writer.close()
            return said

    for frame in frames.Decoder().feed(run(talk())):
        assert isinstance(frame, Frame)
        if frame.kind == frames.RESPONSE:
            Response.FromString(frame.data)


def _qmp(data: bytes) -> None:
    """A line for each command; in it `@ID` is the command's id (the first one has none), `@NL` the end of a message."""

    async def serve(end: socket.socket) -> None:
        loop, lines = asyncio.get_running_loop(), data.split(b"\n")
        end.setblocking(False)
        with end:
            await loop.sock_sendall(end, lines[0] + b"\r\n")
            for number, line in enumerate(lines[1:]):
                if not await loop.sock_recv(end, 1 << 16):
                    return
                await loop.sock_sendall(
                    end, line.replace(b"@NL", b"\r\n").replace(b"@ID", b"__qmp#%05d" % max(number - 1, 0)) + b"\r\n"
                )

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        serving = asyncio.create_task(serve(theirs))
        transcript = Transcript()
        try:
            async with Qmp.connected(ours, name="vm", transcript=transcript, timeout=0.05) as qmp:
                with qmp.expecting("DEVICE_DELETED", lambda event: event.get("device") == "x"):
                    for command in ("query-status", "query-kvm"):
                        await qmp.execute(command, timeout=0.05)
        finally:
            serving.cancel()
            transcript.save(Path("/dev/null"))

    run(talk())


class _Managed:
    agent_url = "vsock://3:1024"
    tracing: dict[str, object] = {"runtime": False}  # noqa: RUF012 - nobody changes it

    async def switch_tracing(self, *, runtime: bool, agent: bool, level: Level | None = None) -> None:
        assert isinstance(runtime, bool)
        assert isinstance(agent, bool)
        assert level is None or level in Level

    @property
    def guest(self) -> GuestCalls:
        raise SandboxError("there is no guest")

    async def volume_stats(self, volume: str) -> dict[str, object]:
        assert isinstance(volume, str)
        return {}

    async def resize_volume(self, volume: str, size: int) -> None:
        assert isinstance(volume, str)
        assert size > 0

    async def metrics(self, *, openmetrics: bool) -> str:
        return "# EOF\n"


class _Writer:
    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def get_extra_info(self, _: str) -> socket.socket:
        return self._peer


def _management(data: bytes) -> None:
    """Whatever is asked, the answer is HTTP, and not that something went wrong inside."""

    async def talk() -> http.Answer:
        reader = asyncio.StreamReader(limit=http.MAX_HEAD)
        reader.feed_data(data)
        reader.feed_eof()
        with talked(b"") as peer:
            server = http.Server(management._routes(_Managed()))
            return await server._answer(reader, _Writer(peer))  # type: ignore[arg-type]

    answer = run(talk())
    assert answer.status is not HTTPStatus.INTERNAL_SERVER_ERROR, answer.body
    assert http._encode(answer).count(b"\r\n\r\n") >= 1
    if answer.kind == "application/json":
        json.loads(answer.body)


class _Process:
    """Of a container that does whatever is wanted."""

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self.known.set()
        self.end = Exit(0, 1)

    async def exec(self, spec: Mapping[str, Any], _: object) -> None:
        json.dumps(spec)

    async def done(self, *_: object, **__: object) -> Exit:
        return self.end

    drain = close = wait = resize = signal = done
    exec_id = "e"


class _Container:
    id = "c"
    state, created_ns = "running", 1
    process_spec: dict[str, Any] = {"args": ["sh"], "cwd": "/", "env": ["A=b"], "user": {"uid": 1}}  # noqa: RUF012

    def __init__(self) -> None:
        self.init = _Process()

    def process(self, _: str) -> _Process:
        return self.init

    async def pids(self) -> list[int]:
        return [1]

    async def signal(self, *_: object, **__: object) -> None:
        pass


class _Sandbox:
    id, pid = "s", 7

    def __init__(self) -> None:
        self.containers = {"c": _Container()}

    @property
    def guest(self) -> GuestCalls:
        raise SandboxError("there is no guest")

    async def wait_process(self, process: _Process) -> Exit:
        await asyncio.sleep(0)
        return process.end


def _control(data: bytes) -> None:
    async def talk() -> None:
        peer = control._Peer(talked(data))
        try:
            await control._Server(_Sandbox(), NO_SPAN)._answer(peer)  # type: ignore[arg-type] # all that it needs
        finally:
            peer.close()

    run(talk())


def _pool(data: bytes) -> None:
    message = wire._parse(data)
    assert message is None or isinstance(message, dict)


def _agent_calls(data: bytes) -> None:
    """The agent's side of a call: an answer of the form that the host reads, or none."""

    async def answer(request: pb.CreateContainerRequest, context: Any) -> pb.Empty:
        assert all(isinstance(word, str) for pair in context.invocation_metadata() for word in pair)
        return pb.Empty()

    async def talk() -> bytes:
        method = Plain(pb.CreateContainerRequest.FromString, answer, pb.Empty.SerializeToString)
        server, (ours, theirs) = CallServer({"CreateContainer": method}), socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setblocking(False)
        with ours:
            ours.send(data)
            serving = asyncio.create_task(server._serve(theirs))
            loop, said = asyncio.get_running_loop(), b""
            await asyncio.sleep(0)
            ours.shutdown(socket.SHUT_WR)
            try:
                while chunk := await loop.sock_recv(ours, 1 << 16):
                    said += chunk
            except ConnectionResetError:
                pass  # it did not read it all
            await serving
        return said

    said = run(talk())
    if said:
        size, _ = CALL_REPLY.unpack_from(said)
        assert size == len(said) - CALL_REPLY.size


def _stdin(data: bytes) -> None:
    found = bootstrap.parse_input(data, container_id="c", namespace="n")
    assert all(kind for kind, _ in found.options)


def _arguments(data: bytes) -> None:
    found = arguments.parse([word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")])
    if not (found.info or found.version or found.help):
        assert "/" not in found.id


def _configuration(data: bytes) -> None:
    # No place for a cache, so that it is read.
    load(wrote("configuration.toml", data), environ={}, cache=Path("/proc/none"))


def _call(stream: int, method: str, payload: bytes = b"", flags: int = 0) -> bytes:
    request = Request(service="kata.test.Echo", method=method, payload=payload, timeout_nano=10**9)
    request.metadata.add(key="traceparent", value="00-1-2-3")
    return frames.encode(Frame(stream, frames.REQUEST, flags, request.SerializeToString()))


_HELLO = b"\x0a\x05hello"
_TTRPC = (
    _call(1, "Unary", _HELLO) + _call(3, "Count", _HELLO),
    _call(1, "Collect", flags=frames.REMOTE_OPEN)
    + frames.encode(Frame(1, frames.DATA, 0, _HELLO))
    + frames.encode(Frame(1, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, b"")),
)
_GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}'
_EVENT = b'{"event": "DEVICE_DELETED", "data": {"device": "x"}, "timestamp": {"seconds": 1, "microseconds": 2}}'
_QMP = (
    b"\n".join(
        (
            _GREETING,
            b'{"return": {}, "id": "@ID"}',
            b'{"return": {"status": "x"}, "id": "@ID"}',
            b'{"return": {}, "id": "@ID"}',
        )
    ),
    b"\n".join(
        (
            _GREETING,
            b'{"return": {}, "id": "@ID"}',
            _EVENT + b'@NL{"return": [], "id": "@ID"}',
            b'{"return": {}, "id": "@ID"}',
        )
    ),
)
_PUT = b'PUT /tracing HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"runtime": true, "agent": true, "level":"normal"}'
_HTTP = (
    b"GET /metrics?x HTTP/1.1\r\nAccept: application/openmetrics-text\r\nHost: x\r\n\r\n",
    _PUT,
    b"GET /agent-url HTTP/1.0\r\n\r\n",
)
_ASKED = tuple(
    b"\n".join(json.dumps(line).encode() for line in lines) + b"\n"
    for lines in (
        [{"op": "containers"}],
        [{"op": "pids", "container": "c"}],
        [{"op": "attach", "container": "c", "stands": True}, {"resize": [1, 2]}, {"signal": 9, "all": True}],
        [{"op": "exec", "container": "c", "process": {"args": ["true"], "cwd": "/"}, "stdio": []}],
        [{"op": "exec", "process": {"args": ["true"], "env": ["B=c"]}, "stdio": [], "complete": False}],
    )
)
_CREATE = pb.CreateContainerRequest(container_id="c", oci=b"{}").SerializeToString()
_ANY = b"\x0a\x04type\x12\x02xy"
_BOOT = b"\x0a\x01c\x12\x01n\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01\x22\x012\x2a\x02/a\x42\x0c\x0a\x0a" + _ANY
_TOML = Path(__file__).parents[3].joinpath("configuration.toml").read_bytes()
TARGETS = (
    Target("ttrpc-frames", "shim.ttrpc.frames.Decoder", _ttrpc_frames, _TTRPC, ()),
    Target("ttrpc-server", "shim.ttrpc.server.Server", _ttrpc_server, _TTRPC, (), words=(b"kata.test.Echo", b"Chat")),
    Target(
        "qmp",
        "hypervisor.qemu.qmp.Qmp",
        _qmp,
        _QMP,
        (HypervisorError,),
        Shape.TEXT,
        text_of(('"id": "@ID"', '{"return": ', '{"event": ', '"error": ', "null", "[]")),
    ),
    Target(
        "management-http",
        "http, sandbox.management",
        _management,
        _HTTP,
        (),
        Shape.TEXT,
        text_of(("Content-Length: ", "\r\n\r\n", "Transfer-Encoding: x\r\n", "/tracing", "GET ", "HTTP/1.1")),
    ),
    Target(
        "control-socket",
        "sandbox.control",
        _control,
        _ASKED,
        (KataError,),
        Shape.TEXT,
        text_of(('"stdio": ["stdin"]', '{"op": ', "null", "[]", "{}", '"process": ')),
    ),
    Target("pool", "pool.wire", _pool, (b'{"taken": 3}', b'{"here": 1}'), (), Shape.JSON),
    Target(
        "agent-calls",
        "kata_agent.server.calls",
        _agent_calls,
        (request_of("CreateContainer", [("a", "b")], _CREATE),),
        (),
    ),
    Target("shim-stdin", "shim.bootstrap.parse_input", _stdin, (_ANY, _BOOT), (arguments.UsageError,)),
    Target(
        "shim-arguments",
        "shim.arguments.parse",
        _arguments,
        text_of(("-namespace\0n\0-id\0c\0-address=/x\0start", "--version")),
        (arguments.UsageError,),
        Shape.TEXT,
        text_of(("\0", "-id\0", "=", "delete")),
    ),
    Target(
        "configuration",
        "config.load, config.validate",
        _configuration,
        (
            _TOML,
            b'[hypervisor.qemu]\ndefault_memory = 128\n[runtime]\notlp_headers = {a = "b"}\n',
        ),
        (ConfigError,),
        Shape.TEXT,
        text_of(("[", "[[", "]\n", "= ", "'''", "1979-05-27", "0x", "inf", "enable_tracing = 1\n", "[factory]\n")),
    ),
)
