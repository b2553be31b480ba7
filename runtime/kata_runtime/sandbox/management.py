"""The sandbox's management socket: HTTP on a unix socket in its directory, as Kata's shims have it.

    GET /tracing     what is traced, as JSON
    PUT /tracing     {"runtime": true, "agent": true, "level": "detailed"}: trace it from now on, or no more
    GET /agent-url   the agent's address
    GET /metrics     what its spans say, for Prometheus

Name and paths of the socket, `/agent-url` and `/metrics` are Kata's (src/runtime-rs/crates/runtimes/src/shim_mgmt).
Only root can reach the directory; requests are bounded in size, number and time all the same. One request per
connection.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kata_runtime.errors import KataError
from kata_telemetry.span import Level

__all__ = ["Managed", "serve_management"]

_log = logging.getLogger("kata.management")

_MAX_HEAD = 8192
_MAX_BODY = 4096
_MAX_CONNECTIONS = 16
# Seconds for a request to arrive, for its answer to be made, and to be read.
_REQUEST_TIMEOUT = 5.0
_ANSWER_TIMEOUT = 30.0
_READ_TIMEOUT = 5.0
_JSON = "application/json"
# What a scraper accepts that can read exemplars.
_OPENMETRICS = "application/openmetrics-text"


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

    async def switch_tracing(self, *, runtime: bool, agent: bool, level: Level | None = None) -> None:
        """Trace from now on, or no more."""
        ...

    async def metrics(self, *, openmetrics: bool) -> str:
        """What its spans say, for Prometheus."""
        ...


class _Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class _Answer(NamedTuple):
    kind: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK


class _Refusal(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.answer = _Answer(_JSON, json.dumps({"error": why, "hint": hint}).encode() + b"\n", status)


@asynccontextmanager
async def serve_management(path: Path, managed: Managed) -> AsyncIterator[None]:
    """Serve `managed` on the unix socket `path` for the block."""
    server = _Server(managed)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with listener:
        # Before it can be reached by name.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listening = await asyncio.start_unix_server(server.connected, sock=listener, limit=_MAX_HEAD)
        try:
            yield
        finally:
            listening.close()
            await server.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - a socket in memory


class _Server:
    def __init__(self, managed: Managed) -> None:
        self._managed = managed
        self._connections: set[asyncio.Task[Any]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            answer = await self._answer(reader, writer)
            async with asyncio.timeout(_READ_TIMEOUT):
                writer.write(_encode(answer))
                writer.write_eof()
                # Closed with something unread, it would be reset before the answer has been read.
                while await reader.read(_MAX_HEAD):
                    pass
        except (OSError, TimeoutError):
            pass  # whoever asked has gone
        finally:
            self._connections.discard(task)
            writer.close()

    async def close(self) -> None:
        """End what is being answered."""
        # One of them may be what ends the sandbox.
        tasks = self._connections - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Answer:
        try:
            if len(self._connections) > _MAX_CONNECTIONS:
                raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
            _require_root(writer)
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                request = await _read(reader)
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await self._route(request)
        except _Refusal as refusal:
            return refusal.answer
        except KataError as error:
            return _Refusal(HTTPStatus.CONFLICT, str(error), error.hint).answer
        except TimeoutError:
            return _Refusal(HTTPStatus.REQUEST_TIMEOUT, "that took too long").answer
        except Exception as error:
            _log.exception("a request to the management socket failed")
            return _Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}").answer

    async def _route(self, request: _Request) -> _Answer:
        routes: dict[str, dict[str, Callable[[_Request], Awaitable[_Answer]]]] = {
            "/tracing": {"GET": self._get_tracing, "PUT": self._put_tracing},
            "/agent-url": {"GET": self._agent_url},
            "/metrics": {"GET": self._metrics},
        }
        methods = routes.get(request.path.partition("?")[0])
        if methods is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, f"there are {', '.join(routes)}")
        if request.method not in methods:
            raise _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"allowed: {', '.join(methods)}")
        return await methods[request.method](request)

    async def _get_tracing(self, _request: _Request) -> _Answer:
        return _Answer(_JSON, json.dumps(self._managed.tracing).encode() + b"\n")

    async def _put_tracing(self, request: _Request) -> _Answer:
        try:
            wanted = json.loads(request.body)
            level = Level.of(wanted["level"]) if wanted.get("level") else None
            sides = {name: wanted[name] for name in ("runtime", "agent")}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _Refusal(
                HTTPStatus.BAD_REQUEST, f'not {{"runtime": BOOLEAN, "agent": BOOLEAN, "level": NAME}}: {error}'
            ) from error
        if level is Level.OFF or not all(isinstance(value, bool) for value in sides.values()):
            raise _Refusal(HTTPStatus.BAD_REQUEST, '"runtime" and "agent" are true or false')
        await self._managed.switch_tracing(**sides, level=level)
        return await self._get_tracing(request)

    async def _agent_url(self, _request: _Request) -> _Answer:
        return _Answer("text/plain; charset=utf-8", self._managed.agent_url.encode())

    async def _metrics(self, request: _Request) -> _Answer:
        openmetrics = _OPENMETRICS in request.headers.get("accept", "")
        text = await self._managed.metrics(openmetrics=openmetrics)
        kind = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8" if openmetrics else "text/plain; version=0.0.4"
        return _Answer(kind, text.encode())


def _require_root(writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    if uid not in (0, os.geteuid()):
        raise _Refusal(HTTPStatus.FORBIDDEN, "only root may ask")


async def _read(reader: asyncio.StreamReader) -> _Request:
    """A request of HTTP/1.x (RFC 9112), as far as anybody needs it here."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {_MAX_HEAD} bytes of header") from None
    except asyncio.IncompleteReadError:
        raise _Refusal(HTTPStatus.BAD_REQUEST, "the request is cut off") from None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refusal(HTTPStatus.BAD_REQUEST, "that is not HTTP/1")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "transfer-encoding" in headers:
        raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise _Refusal(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
    if len(length) > 9 or int(length) > _MAX_BODY:
        raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {_MAX_BODY} bytes")
    body = b""
    with suppress(asyncio.IncompleteReadError):
        body = await reader.readexactly(int(length))
    if len(body) != int(length):
        raise _Refusal(HTTPStatus.BAD_REQUEST, "the body is cut off")
    return _Request(words[0], words[1], headers, body)


def _encode(answer: _Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.kind}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.body
