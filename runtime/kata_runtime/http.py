"""As much of HTTP/1.x (RFC 9112) as a few questions need: one request per connection, everything bounded."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from kata_runtime.errors import KataError

__all__ = [
    "JSON",
    "MAX_HEAD",
    "OPENMETRICS",
    "TEXT",
    "Answer",
    "Refusal",
    "Request",
    "Routes",
    "Server",
    "metrics_answer",
]

_log = logging.getLogger("kata.http")

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
# What a scraper accepts that can read exemplars.
OPENMETRICS = "application/openmetrics-text"
MAX_HEAD = 8192
_MAX_BODY = 4096
_MAX_CONNECTIONS = 16
_MAX_WORDS = 20
# Seconds for a request to arrive, for its answer to be made, and to be read.
_REQUEST_TIMEOUT = 5.0
_ANSWER_TIMEOUT = 30.0
_READ_TIMEOUT = 5.0


class Request(NamedTuple):
    """What was asked; names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def asked(self, name: str) -> str:
        """The first value of a word of the query, or ""."""
        return self.query.get(name, [""])[0]

    @property
    def openmetrics(self) -> bool:
        """Whether whoever asks can read OpenMetrics."""
        return OPENMETRICS in self.headers.get("accept", "")


class Answer(NamedTuple):
    """What is answered."""

    kind: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK


class Refusal(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.answer = Answer(JSON, json.dumps({"error": why, "hint": hint}).encode() + b"\n", status)


Routes = Mapping[str, Mapping[str, Callable[[Request], Awaitable[Answer]]]]


def metrics_answer(text: str, *, openmetrics: bool) -> Answer:
    """Metrics in the format that was asked for."""
    kind = f"{OPENMETRICS}; version=1.0.0; charset=utf-8" if openmetrics else "text/plain; version=0.0.4"
    return Answer(kind, text.encode())


class Server:
    """Answers by a table of paths and methods; `connected` is for asyncio's servers, whose limit is MAX_HEAD.

    `allow` raises Refusal for whom it does not want; `bodies` are paths whose requests may be larger, in bytes.
    """

    def __init__(
        self,
        routes: Routes,
        allow: Callable[[asyncio.StreamWriter], None] = lambda _: None,
        bodies: Mapping[str, int] | None = None,
    ) -> None:
        self._bodies = bodies or {}
        self._routes = routes
        self._allow = allow
        self._connections: set[asyncio.Task[Any]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            answer = await self._answer(reader, writer)
            async with asyncio.timeout(_READ_TIMEOUT):
                writer.write(_encode(answer))
                writer.write_eof()
                # Closed with something unread, it would be reset before the answer has been read.
                while await reader.read(MAX_HEAD):
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

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        try:
            if len(self._connections) > _MAX_CONNECTIONS:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
            self._allow(writer)
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                request = await _read(reader, self._bodies)
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await self._route(request)
        except Refusal as refusal:
            return refusal.answer
        except KataError as error:
            return Refusal(HTTPStatus.CONFLICT, str(error), error.hint).answer
        except TimeoutError:
            return Refusal(HTTPStatus.REQUEST_TIMEOUT, "that took too long").answer
        except Exception as error:
            _log.exception("a request failed")
            return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}").answer

    async def _route(self, request: Request) -> Answer:
        methods = self._routes.get(request.path)
        if methods is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._routes)}")
        if request.method not in methods:
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"allowed: {', '.join(methods)}")
        return await methods[request.method](request)


async def _read(reader: asyncio.StreamReader, bodies: Mapping[str, int]) -> Request:
    """A request, as far as anybody needs it here."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD} bytes of header") from None
    except asyncio.IncompleteReadError:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the request is cut off") from None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refusal(HTTPStatus.BAD_REQUEST, "that is not HTTP/1")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "transfer-encoding" in headers:
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise Refusal(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
    path, _, query = words[1].partition("?")
    most = bodies.get(path, _MAX_BODY)
    if len(length) > 9 or int(length) > most:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most} bytes")
    body = b""
    with suppress(asyncio.IncompleteReadError):
        body = await reader.readexactly(int(length))
    if len(body) != int(length):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is cut off")
    try:
        asked = parse_qs(query, max_num_fields=_MAX_WORDS)
    except ValueError:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"a query of more than {_MAX_WORDS} words") from None
    return Request(words[0], path, asked, headers, body)


def _encode(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.kind}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.body
