"""The sandbox's management socket: HTTP on a unix socket in its directory, as Kata's shims have it.

    GET /tracing     what is traced, as JSON
    PUT /tracing     {"runtime": true, "agent": true, "level": "detailed"}: trace it from now on, or no more
    GET /agent-url   the agent's address
    GET /metrics     what its processes, its guest and its spans say, for Prometheus
    GET /iptables    the guest's rules, as iptables-save writes them; /ip6tables those of IPv6
    PUT /iptables    rules in their place, as iptables-restore reads them; what that says
    PUT /policy      which calls the agent answers from now on
    GET /direct-volume/stats?path=PATH                             what a direct volume has and uses
    POST /direct-volume/resize {"VolumePath": PATH, "Size": BYTES}  its device has grown: so does its file system

Name and paths of the socket are Kata's, but for `/tracing` (src/runtime-rs/crates/runtimes/src/shim_mgmt).
Only root can reach the directory; requests are bounded in size, number and time all the same. One request per
connection.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn, Protocol

from kata_common.documents import parse_json
from kata_runtime.errors import KataError
from kata_runtime.http import JSON, MAX_HEAD, TEXT, Answer, Refusal, Request, Routes, Server, metrics_answer
from kata_runtime.sandbox.guest_calls import MAX_RULES, GuestCalls
from kata_telemetry.span import Level

__all__ = ["Managed", "serve_management"]

_log = logging.getLogger("kata.management")

# Bytes of what is larger than other requests.
_BODIES = {"/iptables": MAX_RULES, "/ip6tables": MAX_RULES, "/policy": 1 << 20}
# What Kata's shims have besides, and why it is not here.
_REFUSED = {
    "/debug/pprof": "pprof is of programs in Go: kata-runtime trace shows where the time goes",
}


class Managed(Protocol):
    """What the socket shows of a sandbox."""

    @property
    def agent_url(self) -> str:
        """The agent's address."""
        ...

    @property
    def tracing(self) -> dict[str, object]:
        """What is traced."""
        ...

    @property
    def guest(self) -> GuestCalls:
        """What its guest can be asked."""
        ...

    async def switch_tracing(self, *, runtime: bool, agent: bool, level: Level | None = None) -> None:
        """Trace from now on, or no more."""
        ...

    async def metrics(self, *, openmetrics: bool) -> str:
        """What its processes, its guest and its spans say, for Prometheus."""
        ...

    async def volume_stats(self, volume: str) -> dict[str, object]:
        """What a direct volume has and uses."""
        ...

    async def resize_volume(self, volume: str, size: int) -> None:
        """The device behind a direct volume has so many bytes."""
        ...


@asynccontextmanager
async def serve_management(path: Path, managed: Managed) -> AsyncIterator[None]:
    """Serve `managed` on the unix socket `path` for the block."""
    server = Server({**_routes(managed), **_guest_routes(managed)}, _require_root, bodies=_BODIES)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with listener:
        # Before it can be reached by name.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listening = await asyncio.start_unix_server(server.connected, sock=listener, limit=MAX_HEAD)
        try:
            yield
        finally:
            listening.close()
            await server.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - a socket in memory


def _routes(managed: Managed) -> Routes:
    async def get_tracing(_request: Request) -> Answer:
        return Answer(JSON, json.dumps(managed.tracing).encode() + b"\n")

    async def put_tracing(request: Request) -> Answer:
        try:
            wanted = parse_json(request.body)
            level = Level.of(wanted["level"]) if wanted.get("level") else None
            sides = {name: wanted[name] for name in ("runtime", "agent")}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refusal(
                HTTPStatus.BAD_REQUEST, f'not {{"runtime": BOOLEAN, "agent": BOOLEAN, "level": NAME}}: {error}'
            ) from error
        if level is Level.OFF or not all(isinstance(value, bool) for value in sides.values()):
            raise Refusal(HTTPStatus.BAD_REQUEST, '"runtime" and "agent" are true or false')
        await managed.switch_tracing(**sides, level=level)
        return await get_tracing(request)

    async def agent_url(_request: Request) -> Answer:
        return Answer(TEXT, managed.agent_url.encode())

    async def metrics(request: Request) -> Answer:
        # OpenMetrics ends with this line.
        text = (await managed.metrics(openmetrics=request.openmetrics)).removesuffix("# EOF\n")
        text += await _guest_metrics(managed) + ("# EOF\n" if request.openmetrics else "")
        return metrics_answer(text, openmetrics=request.openmetrics)

    async def refused(request: Request) -> NoReturn:
        raise Refusal(HTTPStatus.NOT_IMPLEMENTED, f"{request.path}: {_REFUSED[request.path]}")

    return {
        "/tracing": {"GET": get_tracing, "PUT": put_tracing},
        "/agent-url": {"GET": agent_url},
        "/metrics": {"GET": metrics},
        **_volume_routes(managed),
        **{path: dict.fromkeys(("GET", "PUT", "POST"), refused) for path in _REFUSED},
    }


def _guest_routes(managed: Managed) -> Routes:
    """What is asked of the guest itself."""

    async def get_iptables(request: Request) -> Answer:
        return Answer(TEXT, await managed.guest.iptables(v6=request.path == "/ip6tables"))

    async def put_iptables(request: Request) -> Answer:
        return Answer(TEXT, await managed.guest.set_iptables(request.body, v6=request.path == "/ip6tables"))

    async def put_policy(request: Request) -> Answer:
        try:
            text = request.body.decode()
        except UnicodeDecodeError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"a policy that is no text: {error}") from error
        await managed.guest.set_policy(text)
        return Answer(TEXT, b"")

    firewall = {"GET": get_iptables, "PUT": put_iptables}
    return {"/iptables": firewall, "/ip6tables": firewall, "/policy": {"PUT": put_policy}}


async def _guest_metrics(managed: Managed) -> str:
    """None of a guest that does not answer: the host's are worth something without."""
    try:
        return await managed.guest.metrics()
    except KataError as error:
        _log.info("the guest tells no metrics: %s", error)
        return ""


def _volume_routes(managed: Managed) -> Routes:
    async def volume_stats(request: Request) -> Answer:
        if not request.asked("path"):
            raise Refusal(HTTPStatus.BAD_REQUEST, "path= names a volume")
        return Answer(JSON, json.dumps(await managed.volume_stats(request.asked("path"))).encode() + b"\n")

    async def resize_volume(request: Request) -> Answer:
        try:
            wanted = parse_json(request.body)
            volume, size = wanted["VolumePath"], wanted["Size"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f'not {{"VolumePath": PATH, "Size": BYTES}}: {error}') from error
        if not isinstance(volume, str) or not isinstance(size, int) or not 0 < size < 1 << 62:
            raise Refusal(HTTPStatus.BAD_REQUEST, '"VolumePath" is a path, "Size" a number of bytes')
        await managed.resize_volume(volume, size)
        return Answer(JSON, b"{}\n")

    return {"/direct-volume/stats": {"GET": volume_stats}, "/direct-volume/resize": {"POST": resize_volume}}


def _require_root(writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    if uid not in (0, os.geteuid()):
        raise Refusal(HTTPStatus.FORBIDDEN, "only root may ask")
