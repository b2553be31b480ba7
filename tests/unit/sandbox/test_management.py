"""The management socket, and who misuses it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kata_runtime import http
from kata_runtime.cli import control
from kata_runtime.errors import AgentError, SandboxError
from kata_runtime.sandbox.guest_calls import checked_metrics
from kata_runtime.sandbox.management import serve_management
from kata_telemetry.span import Level


class FakeGuestCalls:
    """A guest that notes what it is told; `mute`, it does not answer."""

    def __init__(self) -> None:
        self.rules = {False: b"*nat\n", True: b"*filter\n"}
        self.policy = ""
        self.mute = False

    async def metrics(self) -> str:
        if self.mute:
            raise AgentError("GetMetrics", "UNAVAILABLE", "gone")
        return "kata_guest_load 1\n"

    async def iptables(self, *, v6: bool) -> bytes:
        return self.rules[v6]

    async def set_iptables(self, rules: bytes, *, v6: bool) -> bytes:
        self.rules[v6] = rules
        return b"said\n"

    async def set_policy(self, text: str) -> None:
        self.policy = text


class Fake:
    """A sandbox that notes what it is asked."""

    agent_url = "vsock://3:1024"

    def __init__(self) -> None:
        self.tracing: dict[str, object] = {"runtime": False, "agent": False, "level": "normal", "store": ""}
        self.refuses = False
        self.resized = ("", 0)
        self.hangs: asyncio.Event | None = None
        self.guest: Any = FakeGuestCalls()

    async def switch_tracing(self, *, runtime: bool, agent: bool, level: Level | None = None) -> None:
        if self.hangs is not None:
            self.hangs.set()
            await asyncio.Event().wait()
        if self.refuses:
            raise SandboxError("sandbox box is stopping, not ready", hint="too late")
        self.tracing |= {"runtime": runtime, "agent": agent, **({"level": level.name.lower()} if level else {})}

    async def metrics(self, *, openmetrics: bool) -> str:
        return "# EOF\n" if openmetrics else "# nothing\n"

    async def volume_stats(self, volume: str) -> dict[str, object]:
        if volume != "/v a":
            raise SandboxError("no container of this sandbox has the volume")
        return {"usage": []}

    async def resize_volume(self, volume: str, size: int) -> None:
        self.resized = (volume, size)


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[Fake, Path]]:
    fake, path = Fake(), tmp_path / "m.sock"
    async with serve_management(path, fake):
        yield fake, path
    assert not path.exists()


async def ask(path: Path, request: bytes, *, end: bool = False) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    if end:
        writer.write_eof()
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read()
    writer.close()
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    return int(head.split(b" ")[1]), body


def put(body: bytes, path: bytes = b"/tracing") -> bytes:
    return b"PUT %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (path, len(body)) + body


async def test_it_shows_and_switches(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert await ask(path, b"GET /agent-url HTTP/1.1\r\nHost: x\r\n\r\n") == (200, b"vsock://3:1024")
        status, body = await ask(path, b"GET /tracing HTTP/1.1\r\n\r\n")
        assert (status, json.loads(body)["runtime"]) == (200, False)
        status, body = await ask(path, put(b'{"runtime": true, "agent": true, "level": "detailed"}'))
        assert (status, json.loads(body)) == (200, fake.tracing)
        assert fake.tracing["level"] == "detailed"
        assert await ask(path, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n") == (200, b"# nothing\nkata_guest_load 1\n")
        fake.guest.mute = True
        assert await ask(path, b"GET /metrics HTTP/1.0\r\n\r\n") == (200, b"# nothing\n")
        accept = b"Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n"
        assert await ask(path, b"GET /metrics HTTP/1.1\r\n" + accept) == (200, b"# EOF\n")
        fake.refuses = True
        status, body = await ask(path, put(b'{"runtime": true, "agent": true}'))
        assert (status, json.loads(body)) == (
            409,
            {"error": "sandbox box is stopping, not ready", "hint": "too late"},
        )


async def test_a_guests_firewall_and_policy(tmp_path: Path) -> None:
    rules = b"*nat\n" + b"-A OUTPUT -j ACCEPT\n" * 5000
    async with served(tmp_path) as (fake, path):
        assert await ask(path, b"GET /ip6tables HTTP/1.1\r\n\r\n") == (200, b"*filter\n")
        assert await ask(path, put(rules, b"/iptables")) == (200, b"said\n")
        assert await ask(path, b"GET /iptables HTTP/1.1\r\n\r\n") == (200, rules)
        assert await ask(path, put(b'{"default": "deny"}', b"/policy")) == (200, b"")
        assert fake.guest.policy == '{"default": "deny"}'
        assert (await ask(path, put(b"\xff", b"/policy")))[0] == 400
        assert (await ask(path, b"GET /policy HTTP/1.1\r\n\r\n"))[0] == 405


def test_a_guests_words_are_no_metrics_unless_they_are() -> None:
    good = (
        "# HELP kata_guest_load Load of the guest.",
        "# TYPE kata_guest_load gauge",
        'kata_guest_load{item="load1"} 0.5',
        'kata_guest_netdev_stat{interface="eth0",item="recv_bytes"} 1e+06',
        "kata_agent_threads 3",
    )
    bad = (
        "up 1",
        "# EOF",
        "# TYPE kata_guest_load counter",
        'kata_guest_load{item="a\\"} 1',
        'kata_guest_load{item="\x1b[2J"} 1',
        "kata_guest_load NaN 1",
        f"kata_agent_{'x' * 100} 1",
        "kata_guest_load 1\rx",
    )
    said = checked_metrics("\n".join([*good, *bad]) + "\n")
    assert said.splitlines()[: len(good)] == list(good)
    assert said.splitlines()[-1] == f"kata_agent_metrics_left_out {len(bad)}"
    assert len(said.splitlines()) == len(good) + 3
    assert len(checked_metrics("kata_agent_threads 3\n" * 10_000).splitlines()) < 5000


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /else HTTP/1.1\r\n\r\n", 404),
        (b"DELETE /tracing HTTP/1.1\r\n\r\n", 405),
        (b"hello\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET / SPDY/3\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET /tracing HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"PUT /tracing HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", 413),
        (b"PUT /tracing HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"PUT /tracing HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        ("PUT /tracing HTTP/1.1\r\nContent-Length: ²\r\n\r\n".encode("latin-1"), 400),
        (b"PUT /tracing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"PUT /tracing HTTP/1.1\r\n\r\n", 400),
        (put(b"[]"), 400),
        (put(b"null"), 400),
        (put(b'{"runtime": 1, "agent": true}'), 400),
        (put(b'{"runtime": true}'), 400),
        (put(b'{"runtime": true, "agent": true, "level": "loud"}'), 400),
        (put(b'{"runtime": true, "agent": true, "level": "off"}'), 400),
        (put(b'{"runtime": true, "agent": true, "level": 3}'), 400),
        (put(b"[" * 4000), 400),
    ],
)
async def test_odd_requests_are_refused(tmp_path: Path, request_: bytes, status: int) -> None:
    async with served(tmp_path) as (fake, path):
        assert (await ask(path, request_))[0] == status
        assert not fake.tracing["runtime"]


@pytest.mark.parametrize("cut_off", [b"GET /trac", b"PUT /tracing HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"])
async def test_requests_that_are_cut_off(tmp_path: Path, cut_off: bytes) -> None:
    async with served(tmp_path) as (_, path):
        assert (await ask(path, cut_off, end=True))[0] == 400


async def test_who_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_REQUEST_TIMEOUT", 0.05)
    async with served(tmp_path) as (_, path):
        assert (await ask(path, b"GET"))[0] == 408


async def test_the_number_of_connections_is_bounded(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, path):
        silent = [await asyncio.open_unix_connection(path) for _ in range(http._MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        assert (await ask(path, b"GET /tracing HTTP/1.1\r\n\r\n"))[0] == 503
        for _, writer in silent:
            writer.close()


async def test_its_end_ends_what_is_being_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(put(b'{"runtime": true, "agent": true}'))
        fake.hangs = asyncio.Event()
        await fake.hangs.wait()
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


def test_the_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "Directories", lambda: type("D", (), {"run": tmp_path}))
    with pytest.raises(SandboxError, match="no sandbox 'box' is running"):
        control.ask("box", "GET", "/tracing")
    (tmp_path / "box").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "box" / "shim-monitor.sock"))
    with pytest.raises(SandboxError, match="no sandbox 'box' is running"):
        control.ask("box", "GET", "/tracing")


async def test_volumes(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, path):
        status, body = await ask(path, b"GET /direct-volume/stats?path=%2Fv+a HTTP/1.1\r\n\r\n")
        assert (status, json.loads(body)) == (200, {"usage": []})
        status, body = await ask(path, b"GET /direct-volume/stats?path=%2Fv HTTP/1.1\r\n\r\n")
        assert (status, json.loads(body)["error"]) == (409, "no container of this sandbox has the volume")
        assert (await ask(path, b"GET /direct-volume/stats HTTP/1.1\r\n\r\n"))[0] == 400
        for wanted, expected in (
            ({"VolumePath": "/v", "Size": 4096}, 200),
            ({"VolumePath": "/v", "Size": 0}, 400),
            ({"VolumePath": "/v", "Size": "1G"}, 400),
            ({"VolumePath": 5, "Size": 1}, 400),
            ({"Size": 1}, 400),
            ([], 400),
        ):
            content = json.dumps(wanted).encode()
            head = b"POST /direct-volume/resize HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content)
            assert (await ask(path, head + content))[0] == expected
        assert fake.resized == ("/v", 4096)
