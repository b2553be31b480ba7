"""The HTTP server of `trace serve`: 127.0.0.1 only, behind a token, and nothing that it serves changes a store."""

import contextlib
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from kata_traces.read.compare import compare, run_of
from kata_traces.read.foreign import UnknownFormatError, otlp_lines
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store
from kata_traces.views import comparison, html
from kata_traces.views.serve.index import Index
from kata_traces.views.serve.query import parse

__all__ = ["Server", "serving"]

# What may be dropped on the page, bytes.
MAX_DROP: Final = 64 * 1024 * 1024
# Rows of a list that are sent, and traces of a side of a comparison.
MAX_ROWS: Final = 5000
MAX_COMPARED: Final = 200
# How long (s) a browser that follows a live trace hears nothing, at most, and how calm it is told.
PULSE: Final = 15
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A request that is answered by a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Server(ThreadingHTTPServer):
    """One store. `token` opens it: `url` has it, once, and then the browser has a cookie."""

    daemon_threads = True
    # One that still follows a live trace is not waited for.
    block_on_close = False

    def __init__(self, index: Index, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.index = index
        self.token = secrets.token_urlsafe(24)
        self.cookie = f"kata_trace_{self.server_port}"
        # Names by which this machine calls itself; any other in Host is another site's page (DNS rebinding).
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def url(self) -> str:
        """What to open."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away is no error."""


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve in a thread for the block."""
    server.index.start()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="trace-serve", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        server.index.close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Pages, and JSON below /api."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Files that are dropped on the page."""
        self._answer(self._post)

    def log_message(self, *args: object) -> None:
        """Nobody needs to know."""

    def _answer(self, action: Callable[[], None]) -> None:
        try:
            if self.headers.get("Host", "") not in self.server.hosts:
                raise RefusedError(HTTPStatus.FORBIDDEN, "this is served to this machine's own browser only")
            action()
        except RefusedError as error:
            self._send(error.status, "application/json", json.dumps({"error": str(error)}).encode())
        except StoreError as error:
            self._send(HTTPStatus.NOT_FOUND, "application/json", json.dumps({"error": str(error)}).encode())
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _get(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        given = query.get("token", [""])[0]
        if given and url.path == "/":
            self._let_in(given)
            return
        self._check()
        if url.path == "/":
            self._page(html.site())
        elif url.path.startswith("/trace/"):
            identity = unquote(url.path.removeprefix("/trace/"))
            self._page(html.page(self.server.index.load(identity), served=identity))
        elif url.path == "/api/traces":
            self._send(HTTPStatus.OK, "application/json", self._traces(query.get("q", [""])[0]).encode())
        elif url.path.startswith("/api/trace/"):
            identity = unquote(url.path.removeprefix("/api/trace/"))
            self._json(html.to_page_model(self.server.index.load(identity)))
        elif url.path.startswith("/api/changes/"):
            self._changes(unquote(url.path.removeprefix("/api/changes/")))
        elif url.path == "/api/compare":
            self._json(self._compare(query))
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self) -> None:
        self._check()
        if urlsplit(self.path).path != "/api/drop":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")
        # Forms of other sites can't set it, and a browser tells its own site by it.
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise RefusedError(HTTPStatus.FORBIDDEN, "only this page may give traces")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_DROP:
            self.close_connection = True
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a file of at most {MAX_DROP >> 20} MiB, please")
        content = self.rfile.read(int(length))
        try:
            lines = otlp_lines(content)
        except UnknownFormatError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        identity = f"file-{hashlib.sha256(content).hexdigest()[:12]}"
        with contextlib.suppress(StoreError):
            self.server.index.load(identity)
            self._json({"id": identity})
            return
        self.server.index.add(identity, lines)
        self._json({"id": identity})

    def _let_in(self, given: str) -> None:
        """Exchange the token of the address for a cookie, so that no link that is passed on has it."""
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            raise RefusedError(HTTPStatus.FORBIDDEN, "a wrong token: open the address that `trace serve` printed")
        self.send_response(HTTPStatus.SEE_OTHER)
        attributes = "HttpOnly; SameSite=Strict; Path=/"
        self.send_header("Set-Cookie", f"{self.server.cookie}={self.server.token}; {attributes}")
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def _check(self) -> None:
        with contextlib.suppress(CookieError):
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
            if cookie is not None and hmac.compare_digest(cookie.value.encode(), self.server.token.encode()):
                return
        raise RefusedError(HTTPStatus.FORBIDDEN, "open the address with the token that `trace serve` printed")

    def _traces(self, query: str) -> str:
        summaries, unread = self.server.index.all()
        test = parse(query)
        found = [summary for summary in summaries if test(summary)]
        rows = ",".join(summary.row for summary in found[:MAX_ROWS])
        counts = {"found": len(found), "all": len(summaries), "unread": unread}
        return f'{{"rows":[{rows}],{json.dumps(counts)[1:]}'

    def _compare(self, query: dict[str, list[str]]) -> dict[str, Any]:
        sides = []
        for side in ("a", "b"):
            names = [name for name in query.get(side, [""])[0].split(",") if name]
            if not 1 <= len(names) <= MAX_COMPARED:
                raise RefusedError(
                    HTTPStatus.BAD_REQUEST, f"side {side} has {len(names)} traces, not 1 to {MAX_COMPARED}"
                )
            sides.append([run_of(self.server.index.load(name)) for name in names])
        return comparison.to_json(compare(*sides))

    def _changes(self, identity: str) -> None:
        """Server-sent events: one for each change of a live trace, until it has ended."""
        from asyncinotify import Inotify, Mask

        self.server.index.load(identity)
        store = Store(self.server.index.trace_dir / identity)
        self.close_connection = True
        with Inotify(sync_timeout=PULSE) as inotify:
            # Before the answer: what changes after it is not missed.
            if store.directory.is_dir():
                inotify.add_watch(store.directory, Mask.MODIFY | Mask.MOVED_TO | Mask.ATTRIB)
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            while store.live:
                event = inotify.sync_get()
                self.wfile.write(b"data: changed\n\n" if event is not None else b": pulse\n\n")
                self.wfile.flush()
        self.wfile.write(b"event: ended\ndata: ended\n\n")

    def _page(self, page: html.Page) -> None:
        body = page.text.encode("utf-8", "backslashreplace")
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", body, page.policy)

    def _json(self, content: object) -> None:
        body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        self._send(HTTPStatus.OK, "application/json", body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def trace_url(server: Server, identity: str) -> str:
    """The address of one trace."""
    return f"http://127.0.0.1:{server.server_port}/trace/{quote(identity, safe='')}"
