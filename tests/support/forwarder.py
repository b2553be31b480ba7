"""The trace forwarder in the test's process, and a guest that speaks to it as it likes."""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kata_common.contract import Port
from kata_telemetry import otlp
from kata_telemetry.clock import HostClock
from kata_telemetry.wire import NUMBER, frame
from kata_traces.forwarder.inbox import Inbox
from kata_traces.forwarder.service import Forwarder
from kata_traces.forwarder.sources import HybridSource, Template
from kata_traces.store.announce import Announcement
from kata_traces.store.store import Store

__all__ = ["Guest", "Host", "batch", "host", "names", "span_names"]


def batch(trace_id: bytes, *spans: "str | dict[str, Any]", parent: bytes = b"R" * 8) -> bytes:
    """A request with a good span for each name; fields of a dict replace those of a good span."""
    request = otlp.parse(b"")
    scope = request.resource_spans.add().scope_spans.add()
    for each in spans:
        given = {"name": each} if isinstance(each, str) else each
        now = time.time_ns()
        scope.spans.add(
            **{
                "trace_id": trace_id,
                "span_id": secrets.token_bytes(8),
                "parent_span_id": parent,
                "name": "span",
                "start_time_unix_nano": now,
                "end_time_unix_nano": now,
                **given,
            }
        )
    return request.SerializeToString()


def names(data: bytes) -> list[str]:
    """Names of the spans in a request."""
    resources = otlp.parse(data).resource_spans
    return [span.name for resource in resources for scope in resource.scope_spans for span in scope.spans]


def span_names(store: Store) -> list[str]:
    """Names of all spans of a store."""
    return [name for line in store.lines() for name in names(otlp.from_line(line))]


class Guest:
    """One connection of a guest's; blocking."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.socket.sendall(frame(payload))

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def confirmed(self, number: int) -> None:
        """Wait until the forwarder has confirmed that many frames."""
        data = b""
        while len(data) < NUMBER.size or NUMBER.unpack(data[-NUMBER.size :])[0] < number:
            received = self.socket.recv(NUMBER.size - len(data) % NUMBER.size)
            assert received, "the forwarder hung up"
            data += received

    def closed(self) -> bool:
        """Wait for the forwarder to hang up."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionError:
            return True
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Host:
    """Directories of sandboxes as a runtime makes them, and what a forwarder stored."""

    directory: Path
    forwarder: Forwarder | None = None
    source: HybridSource | None = None
    told: list[Store] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def trace_dir(self) -> Path:
        return self.directory / "traces"

    def store(self, sandbox_id: str) -> Store:
        return Store(self.trace_dir / sandbox_id)

    def socket(self, sandbox_id: str) -> Path:
        return self.run_dir / sandbox_id / "ports" / f"vsock.sock_{Port.FORWARDER}"

    def sandbox(self, sandbox_id: str, *, traced: bool = True, announced: bool = True) -> bytes:
        """Make a sandbox's directories; its trace id. Not `traced`: the agent makes the root."""
        trace_id = sandbox_id.encode().ljust(16, b"\1")[:16]
        (self.run_dir / sandbox_id / "ports").mkdir(parents=True)
        if announced:
            self.store(sandbox_id).directory.mkdir(parents=True)
            Announcement(
                sandbox_id,
                str(self.store(sandbox_id).directory),
                since=time.time_ns(),
                clock_offset=HostClock().to_host(0),
                trace_id=trace_id.hex() if traced else "",
                root_id=(b"R" * 8).hex() if traced else "",
            ).write(self.run_dir / sandbox_id)
        return trace_id

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the forwarder's sockets come to."""
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def guest(self, sandbox_id: str) -> Guest:
        """A connection, as soon as the forwarder listens for this sandbox."""
        await self.until(lambda: self.socket(sandbox_id).exists())
        return await asyncio.to_thread(Guest, self.socket(sandbox_id))

    def stored(self, store: Store) -> None:
        self.told.append(store)

    def sockets_changed(self) -> None:
        assert self.forwarder
        self.forwarder.sweep()
        self.changed.set()


@contextlib.asynccontextmanager
async def host(directory: Path) -> AsyncIterator[Host]:
    """A forwarder that stores and does not send."""
    found = Host(directory)
    open_inbox = partial(Inbox, service="kata-agent", trace_dir=found.trace_dir, stored=found.stored)
    forwarder = found.forwarder = Forwarder(open_inbox)
    template = Template.parse(f"{found.run_dir}/{{ID}}/ports/vsock.sock")
    source = found.source = HybridSource(template, Port.FORWARDER, forwarder.accepted, found.sockets_changed)
    ready = asyncio.Event()
    task = asyncio.create_task(source.run(ready.set))
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await forwarder.close()
