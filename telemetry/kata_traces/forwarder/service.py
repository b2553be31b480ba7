"""The forwarder's middle: connections in, frames taken apart, inboxes filled."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kata_telemetry.wire import NUMBER, FrameError, Frames
from kata_traces.forwarder.inbox import CONNECTION, FRAME, Dump, Inbox, Origin
from kata_traces.store.errors import StoreError

__all__ = ["Forwarder"]

_log = logging.getLogger("kata.forwarder")

# One agent has one connection; a second one may come before the end of the first is known.
MAX_CONNECTIONS: Final = 4
# Inboxes that are kept open though nobody is connected: an agent that comes again finds what it sent known.
MAX_IDLE: Final = 256
CHUNK: Final = 64 * 1024
# Bytes that are still read from a connection when the forwarder ends: what the kernel holds of a socket.
LAST_READ: Final = 1024 * 1024


class Forwarder:
    """`open_inbox` makes the inbox of a sandbox (raises StoreError)."""

    def __init__(self, open_inbox: Callable[[Origin], Inbox | Dump]) -> None:
        self._open_inbox = open_inbox
        # The longest unused first.
        self._inboxes: dict[Path, Inbox | Dump] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def accepted(self, stream: socket.socket, origin: Origin) -> None:
        """A sandbox's connection (non-blocking), which is ours now."""
        inbox = self._inbox(origin)
        if inbox is None or inbox.connections >= MAX_CONNECTIONS:
            if inbox:
                inbox.remark(f"a connection beyond {MAX_CONNECTIONS} is refused")
            stream.close()
            return
        inbox.connections += 1
        task = asyncio.create_task(self._serve(stream, inbox), name=f"agent of {origin.sandbox_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def sweep(self) -> None:
        """Close the inboxes of sandboxes that have ended."""
        idle = [(key, inbox) for key, inbox in self._inboxes.items() if not inbox.connections]
        for number, (key, inbox) in enumerate(idle):
            if len(idle) - number > MAX_IDLE or not inbox.origin.directory.exists():
                del self._inboxes[key]
                inbox.close()

    async def close(self) -> None:
        """Read what has come already, then end all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for inbox in self._inboxes.values():
            inbox.close()
        self._inboxes.clear()

    def _inbox(self, origin: Origin) -> Inbox | Dump | None:
        self.sweep()
        inbox = self._inboxes.pop(origin.directory, None)
        if inbox is not None and inbox.origin != origin and not inbox.connections:
            # Another sandbox of this name, or one that its runtime has announced only now.
            inbox.close()
            inbox = None
        if inbox is None:
            try:
                inbox = self._open_inbox(origin)
            except (StoreError, OSError) as error:
                _log.error("spans can't be taken: %s", error, extra={"sandbox": origin.sandbox_id})
                return None
        self._inboxes[origin.directory] = inbox
        return inbox

    async def _serve(self, stream: socket.socket, inbox: Inbox | Dump) -> None:
        _log.info("an agent is connected", extra={"sandbox": inbox.origin.sandbox_id})
        connection = _Connection(stream, inbox)
        try:
            with stream:
                await connection.run()
        except FrameError as error:
            inbox.remark(f"its connection is closed: {error}")
        except OSError as error:
            _log.debug("connection lost: %s", error, extra={"sandbox": inbox.origin.sandbox_id})
        except Exception:
            # One sandbox must not end the service of the others.
            _log.exception("its connection is closed", extra={"sandbox": inbox.origin.sandbox_id})
        finally:
            inbox.connections -= 1
            _log.info("an agent is gone", extra={"sandbox": inbox.origin.sandbox_id, "batches": connection.number})
            self.sweep()


class _Connection:
    def __init__(self, stream: socket.socket, inbox: Inbox | Dump) -> None:
        self.number = 0
        self._stream = stream
        self._inbox = inbox
        self._frames = Frames()
        self._unsaid = b""

    async def run(self) -> None:
        """To the end of the stream; what has come already is also taken when cancelled. Raises OSError, FrameError."""
        loop = asyncio.get_running_loop()
        wait = self._inbox.rate.wait(CONNECTION)
        try:
            while True:
                if wait:
                    await asyncio.sleep(wait)
                data = await loop.sock_recv(self._stream, CHUNK)
                if not data:
                    return
                wait = self._inbox.rate.wait(len(data))
                for payload in self._frames.feed(data):
                    self._take(payload)
                    wait = self._inbox.rate.wait(FRAME)
                    await asyncio.sleep(0)  # others have their turn
        except asyncio.CancelledError:
            self._drain()

    def _drain(self) -> None:
        count = 0
        with contextlib.suppress(OSError, FrameError):  # nothing more, or nothing that could be read
            while count < LAST_READ and (data := self._stream.recv(CHUNK)):
                count += len(data)
                for payload in self._frames.feed(data):
                    self._take(payload)

    def _take(self, payload: bytes) -> None:
        self._inbox.take(payload)
        self.number += 1
        # A peer that does not listen is not waited for. A number that went half must go whole before the next one.
        try:
            if self._unsaid:
                self._unsaid = self._unsaid[self._stream.send(self._unsaid) :]
            if not self._unsaid:
                number = NUMBER.pack(self.number)
                self._unsaid = number[self._stream.send(number) :]
                if len(self._unsaid) == NUMBER.size:
                    self._unsaid = b""
        except BlockingIOError:
            pass
