"""`trace serve`: who may ask, what is found, and what is taken from outside."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from kata_telemetry import otlp
from kata_traces.read.trace import load
from kata_traces.store.store import Store
from kata_traces.views import jaeger, perfetto
from kata_traces.views.serve.index import Index, Summary
from kata_traces.views.serve.query import parse
from kata_traces.views.serve.receiver import receiving
from kata_traces.views.serve.server import MAX_DROP, Server, serving
from support.odd_traces import HOSTILE, trace_of
from support.traces import SANDBOX, TRACE, container_start, fill, write_store


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """A browser that has the cookie, as far as HTTP goes."""

    server: Server

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        given = {"Cookie": f"{self.server.cookie}={self.server.token}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def found(self, query: str) -> list[str]:
        """Ids, once everything was read."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.ask(f"/api/traces?q={quote(query)}").content
            if not answer["unread"]:
                return [row["id"] for row in answer["rows"]]
        raise AssertionError("it is still reading")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(Server(Index(tmp_path))) as server:
        yield Client(server)


# --- who may ask


@pytest.mark.parametrize("cookie", ["", "kata_trace=x", "{name}=", "{name}=wrong", "\x80=\xff"])
def test_nothing_without_the_token(client: Client, tmp_path: Path, cookie: str) -> None:
    write_store(tmp_path)
    for path in ("/", "/api/traces", f"/trace/{SANDBOX}", f"/api/trace/{SANDBOX}", "/api/changes/x"):
        answer = client.ask(path, Cookie=cookie.format(name=client.server.cookie))
        assert answer.status == 403
        assert b"the token that `trace serve` printed" in answer.body


def test_the_address_lets_in_once_and_is_not_passed_on(client: Client) -> None:
    url = urlsplit(client.server.url)
    assert (url.hostname, url.port) == ("127.0.0.1", client.server.server_port)
    answer = client.ask(f"/?{url.query}", Cookie="")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
    assert client.ask("/?token=wrong", Cookie="").status == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "localhost", "127.0.0.1.evil.example:80", ""])
def test_another_sites_page_gets_nothing(client: Client, host: str) -> None:
    assert client.ask("/api/traces", Host=host).status == 403


def test_it_listens_to_this_machine_only(client: Client) -> None:
    assert client.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/api/traces", f"/api/trace/{SANDBOX}"])
def test_nothing_can_be_changed(client: Client, tmp_path: Path, method: str, path: str) -> None:
    directory = write_store(tmp_path)
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    assert client.ask(path, method, b"{}").status in (404, 501)
    client.ask(f"/trace/{SANDBOX}")
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before


def test_a_policy_goes_with_every_answer(client: Client, tmp_path: Path) -> None:
    write_store(tmp_path)
    for path in ("/", f"/trace/{SANDBOX}", "/api/traces", "/nowhere"):
        headers = client.ask(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "name", ["..", "../../etc/passwd", "%2e%2e%2fx", ".removing-x", "", "nope", "a\0b", "x" * 5000]
)
def test_no_path_leads_out_of_the_store(client: Client, tmp_path: Path, name: str) -> None:
    (tmp_path / ".removing-x").mkdir()
    (tmp_path / ".removing-x" / "meta.json").write_text("{}")
    assert client.ask(f"/api/trace/{quote(name, safe='%')}").status == 404


# --- what is found


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", True),
        ("boot.kernel", True),
        ("BOOT.kernel virtiofs", True),
        ("no-such-thing", False),
        ("-no-such-thing", True),
        ("pod:shop/web", True),
        ("pod:other", False),
        ("image:nginx", True),
        ("name:web", True),
        ("command:sh", True),
        ("state:7", True),
        ("state:failed", False),
        ("-state:failed", True),
        ("module=module7", True),
        ("module=module70", False),
        (">3s", True),
        (">4s", False),
        ("<4s", True),
        ("kernel>1s", True),
        ("kernel<1s", False),
        ("boot.initramfs>200ms", True),
        ("host_setup>1s", False),
        ("since:2025-12-17", True),
        ("until:2025-12-01", False),
        ("since:1h", False),
        ('"boot.kernel', True),
        (">", True),
        (">soon", True),
        ("since:soon", True),
    ],
)
def test_search(client: Client, tmp_path: Path, query: str, expected: bool) -> None:
    labels = {"k8s.pod.name": "web-1", "k8s.namespace.name": "shop", "container.image.name": "nginx:1"}
    write_store(tmp_path, labels=labels)
    assert client.found(query) == ([SANDBOX] if expected else [])


def test_before_a_trace_was_read_its_meta_is_searched(tmp_path: Path) -> None:
    write_store(tmp_path)
    [summary], unread = Index(tmp_path).all()
    assert unread == 1
    assert (summary.state, summary.command) == ("exit 7", "sh")
    assert parse("web")(summary)


def test_what_changes_is_read_again(client: Client, tmp_path: Path) -> None:
    directory = write_store(tmp_path)
    assert client.found("later") == []
    make = container_start()
    make.add("later", 1, 2, f"{1:016x}")
    (directory / "spans.jsonl").write_text("".join(line + "\n" for line in make.lines()))
    assert client.found("later") == [SANDBOX]
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    assert client.found("") == []


@pytest.mark.slow
def test_a_thousand_traces_are_searched_in_time(tmp_path: Path) -> None:
    """Without the network and the browser, which tests/browser has: a fifth of what they may take together."""
    fill(tmp_path, 1000)
    with serving(Server(Index(tmp_path))) as server:
        client = Client(server)
        assert len(client.found("")) == 1000
        took = []
        for query in ("imports", "kernel>3s", "state:failed", "pod:shop/web virtiofs"):
            begun = time.perf_counter()
            client.ask(f"/api/traces?q={quote(query)}")
            took.append(time.perf_counter() - begun)
        # The best of them: others may have the processor meanwhile.
        assert min(took) < 0.2
        assert len(client.found("kernel>3s")) == 20
        assert len(client.found("state:failed")) == 25


def test_a_row_has_its_stages(client: Client, tmp_path: Path) -> None:
    write_store(tmp_path)
    client.found("")
    [row] = client.ask("/api/traces").content["rows"]
    assert sum(row["stages"]) == pytest.approx(2_760_000_000, rel=0.01)
    assert row["started"] == pytest.approx(2_760_000_000, rel=0.01)


# --- comparing


def test_comparing_groups(client: Client, tmp_path: Path) -> None:
    fill(tmp_path, 8)
    ids = client.found("")
    answer = client.ask(f"/api/compare?a={','.join(ids[:3])}&b={','.join(ids[3:5])}").content
    assert (answer["baseline"], answer["candidate"]) == (ids[:3], ids[3:5])
    assert client.ask(f"/api/compare?a={ids[0]}").status == 400
    assert client.ask(f"/api/compare?a={ids[0]}&b=nope").status == 404


# --- from outside


@pytest.mark.parametrize("kind", ["otlp", "jaeger", "perfetto"])
def test_a_file_that_is_dropped_is_shown(client: Client, kind: str) -> None:
    trace = trace_of(container_start())
    content = {
        "otlp": lambda: "\n".join(container_start().lines()),
        "jaeger": lambda: json.dumps(jaeger.to_jaeger(trace)),
        "perfetto": lambda: json.dumps(perfetto.to_events(trace)),
    }[kind]()
    answer = client.ask("/api/drop", "POST", content.encode()).content
    assert client.ask(f"/trace/{answer['id']}").status == 200
    assert client.found("boot.kernel") == [answer["id"]]
    # Once more is the same one.
    assert client.ask("/api/drop", "POST", content.encode()).content == answer
    assert len(client.ask(f"/api/trace/{answer['id']}").content["spans"]) == len(trace.spans)


def test_what_is_no_trace_is_refused_with_a_reason(client: Client) -> None:
    answer = client.ask("/api/drop", "POST", b"hello")
    assert answer.status == 400
    assert "neither lines of OTLP/JSON" in answer.content["error"]
    assert client.ask("/api/drop", "POST", b"", Content_Length=str(MAX_DROP + 1)).status == 413
    lines = "\n".join(container_start().lines()).encode()
    assert client.ask("/api/drop", "POST", lines, Sec_Fetch_Site="cross-site").status == 403


@pytest.mark.parametrize("protocol", ["grpc", "http", "json"])
def test_it_stands_where_a_jaeger_stood(client: Client, protocol: str) -> None:
    lines = container_start().lines()
    with receiving(client.server.index, 0, 0) as (grpc_port, http_port):
        for line in lines:
            if protocol == "grpc":
                import grpc

                with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                    call: Callable[..., bytes] = channel.unary_unary(
                        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
                    )
                    assert call(otlp.to_request(line.encode()).SerializeToString(), timeout=20) == b""
                continue
            kind = "application/json" if protocol == "json" else "application/x-protobuf"
            body = line.encode() if protocol == "json" else otlp.to_request(line.encode()).SerializeToString()
            connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=20)
            connection.request("POST", "/v1/traces", body, {"Content-Type": kind})
            assert connection.getresponse().status == 200
            connection.close()
    name = f"otlp-{TRACE}"
    assert client.found("boot.kernel") == [name]
    shown = client.ask(f"/api/trace/{name}").content
    assert len(shown["spans"]) == len(container_start().spans)


@pytest.mark.parametrize("body", [b"", b"\xff" * 100, b"[]", b'{"resourceSpans": 3}'])
def test_rubbish_for_the_receiver(client: Client, body: bytes) -> None:
    with receiving(client.server.index, 0, 0) as (_, port):
        for kind in ("application/json", "application/x-protobuf"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/traces", body, {"Content-Type": kind})
            assert connection.getresponse().status in (200, 400)
            connection.close()
    assert client.found("") == []


# --- a live one


def test_a_live_sandbox_is_followed(client: Client, tmp_path: Path) -> None:
    from kata_telemetry.span import Site
    from kata_traces.store.writer import StoreWriter

    site = Site(package="test", subsystem="unit")
    heard: list[bytes] = []
    with StoreWriter.open(tmp_path, "live", name="live") as writer:
        root = site.root(writer.tracer("kata", source="runtime"), "rootSpan")
        writer.flush(5)
        connection = http.client.HTTPConnection("127.0.0.1", client.server.server_port, timeout=30)
        connection.request(
            "GET", "/api/changes/live", headers={"Cookie": f"{client.server.cookie}={client.server.token}"}
        )
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"
        listener = threading.Thread(target=lambda: heard.append(answer.read()))
        listener.start()
        assert client.ask("/api/traces").content["rows"][0]["state"] == "running"
        root.finish()
        writer.close(5, outcome="exit 0")
    listener.join(40)
    connection.close()
    assert b"data: changed" in heard[0]
    assert heard[0].endswith(b"event: ended\ndata: ended\n\n")


def test_hostile_texts_stay_texts(client: Client, tmp_path: Path) -> None:
    write_store(tmp_path, name=HOSTILE[0], command=HOSTILE[2], failure=HOSTILE[1])
    client.found("")
    row = client.ask("/api/traces").content["rows"][0]
    assert (row["name"], row["command"]) == (HOSTILE[0], HOSTILE[2])
    page = client.ask(f"/trace/{SANDBOX}").body
    assert b"<script>document.title" not in page
    assert load(Store(tmp_path / SANDBOX).lines()) is not None


def test_summaries_are_of_any_trace() -> None:
    assert Summary(*("x",) * 8, 0, 0, 0, False).to_row()["id"] == "x"


def test_a_port_that_is_taken_is_said_once() -> None:
    code = (
        "import sys\nfrom kata_traces.views.serve.receiver import receiving\n"
        "with receiving(None, int(sys.argv[1]), 0): pass"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-P", "-c", code, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.splitlines()[-1] == f"OSError: port {port} of 127.0.0.1 is taken"
