"""The agent's spans to the trace forwarder on the host, where the runtime said so (`trace_transport = "forwarder"`).

The wire is described in kata_telemetry.wire. Whatever the forwarder does, nobody waits for it: what it has not
confirmed is kept within a bound, then the span buffer fills and drops its oldest, counted.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from kata_telemetry.wire import NUMBER, frame

__all__ = ["Batch", "Forwarding"]

Batch = tuple[bytes, int]

# Batches that wait for the forwarder's word; each has at most 256 KiB, as a rule some 20.
WINDOW: Final = 16
# Seconds between attempts to connect: doubled from the first to the last.
FIRST_RETRY: Final = 0.1
LAST_RETRY: Final = 5.0
# Seconds that one attempt may take, and that batches have at the end of the sandbox when all are there; the runtime
# waits 5 for everything.
CONNECT_TIMEOUT: Final = 2.0
FLUSH: Final = 2.0


class Forwarding:
    """`dial` connects to the forwarder (a non-blocking stream; OSError); `ending` is set when no more spans will
    come: at the sandbox's end, or when tracing is switched off."""

    def __init__(self, dial: Callable[[], Awaitable[socket.socket]], ending: asyncio.Event) -> None:
        self._dial = dial
        self._ending = ending
        self._window: deque[Batch] = deque()
        # How many of the window went over the present stream.
        self._sent = 0
        self._complete = False
        self._confirmed = False
        self._changed = asyncio.Event()

    async def run(self, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[Batch, None]:
        """Send `batches`, to their end; yields what the forwarder has not confirmed a while after that."""
        pulling, sending = asyncio.create_task(self._pull(batches)), asyncio.create_task(self._send())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait((sending, ending), return_when=asyncio.FIRST_COMPLETED)
            # The last spans may only now be encoded, which takes long in an emulated guest.
            while not (sending.done() or self._complete or len(self._window) >= WINDOW):
                self._changed.clear()
                change = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((sending, change), return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            if not sending.done():
                await asyncio.wait((sending,), timeout=FLUSH)
            sending.cancel()
            while self._window or not self._complete:
                if self._window:
                    left = self._window.popleft()
                    self._changed.set()
                    yield left
                else:
                    await self._until(lambda: bool(self._window) or self._complete)
            await pulling
        finally:
            for task in (pulling, sending, ending):
                task.cancel()
            await asyncio.gather(pulling, sending, ending, return_exceptions=True)

    @property
    def _done(self) -> bool:
        return self._complete and not self._window

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _pull(self, batches: AsyncGenerator[Batch, None]) -> None:
        try:
            async with aclosing(batches):
                async for otlp, dropped in batches:
                    if dropped:
                        self._window.append((b"", dropped))
                    if otlp:
                        self._window.append((otlp, 0))
                    self._changed.set()
                    await self._until(lambda: len(self._window) < WINDOW)
        finally:
            self._complete = True
            self._changed.set()

    async def _send(self) -> None:
        """Until all is confirmed, or the sandbox ends and there is no forwarder."""
        pause = FIRST_RETRY
        while not self._done:
            await self._until(lambda: bool(self._window) or self._complete)
            self._confirmed, last = False, self._ending.is_set()
            with suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    stream = await self._dial()
                with stream:
                    await self._talk(stream)
            if self._confirmed:
                pause = FIRST_RETRY
            elif last:
                return
            if not self._done:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._ending.wait()
                pause = min(pause * 2, LAST_RETRY)

    async def _talk(self, stream: socket.socket) -> None:
        """Over one stream, until all is confirmed or it breaks."""
        self._sent = 0
        tasks = asyncio.create_task(self._write(stream)), asyncio.create_task(self._read(stream))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self._done:
            if self._sent < len(self._window):
                otlp, dropped = self._window[self._sent]
                self._sent += 1
                await loop.sock_sendall(stream, frame(otlp or _note(dropped)))
            else:
                await self._until(lambda: self._sent < len(self._window) or self._done)

    async def _read(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        known, rest = 0, b""
        while chunk := await loop.sock_recv(stream, 512):
            rest += chunk
            whole = len(rest) - len(rest) % NUMBER.size
            if not whole:
                continue
            number = NUMBER.unpack_from(rest, whole - NUMBER.size)[0]
            rest = rest[whole:]
            for _ in range(min(number - known, self._sent)):
                self._window.popleft()
                self._sent -= 1
                self._confirmed = True
            known = number
            self._changed.set()


def _note(dropped: int) -> bytes:
    from kata_telemetry import otlp

    return otlp.note_of_dropped(dropped)
