"""Events on their way to containerd: in order, and once more while it restarts.

containerd serves `containerd.services.events.ttrpc.v1.Events` on the socket named by TTRPC_ADDRESS. Where there is none
(CRI-O) nobody wants events.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_protos.containerd.events_ttrpc_pb2 import ForwardRequest
from kata_runtime.shim.ttrpc.client import Client
from kata_runtime.shim.ttrpc.errors import Code, RpcError
from kata_telemetry.span import Kind, Site, Span, use

__all__ = ["Publisher"]

_log = logging.getLogger("kata.shim.events")
_trace = Site(package="containerdshim", subsystem="events")

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
# containerd finds the namespace here before it looks into the envelope (namespaces/ttrpc.go).
_NAMESPACE_KEY = "containerd-namespace-ttrpc"
# Seconds for one attempt, as containerd's own shims (pkg/shim/publisher.go), and the pauses between attempts.
_TIMEOUT = 5.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
# As in containerd's own shims.
_QUEUE_SIZE = 2048
# What may pass when containerd is back; anything else is containerd's verdict on this event.
_PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})


class _Item(NamedTuple):
    request: ForwardRequest
    span: Span


class Publisher:
    """An async context manager. Leaving it gives events one more try, and all of them together `patience` seconds.

    Not more: a containerd that starts may be waiting for this very shim to end before it takes events.
    """

    def __init__(self, address: str, namespace: str, *, patience: float = 2.0) -> None:
        self._address = address
        self._namespace = namespace
        self._patience = patience
        self._queue: deque[_Item] = deque()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    async def __aenter__(self) -> Self:
        if self._address:
            self._task = asyncio.create_task(self._run(), name="events")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._changed.set()
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=self._patience)
            for task in late:
                task.cancel("the shim ends")
                await asyncio.wait({task})
        for item in self._queue:
            self._drop(item, "the shim ends and containerd did not take it")
        self._queue.clear()
        if self._client is not None:
            await self._client.close()

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event; `topic` is containerd's, as `/tasks/start`. Never waits, never fails.

        When the queue is full the oldest event is lost: who missed that many asks for the state anyway.
        """
        if not self._address or self._closing.is_set():
            return
        request = ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.GetCurrentTime()
        envelope.namespace = self._namespace
        envelope.topic = topic
        # containerd's type URLs are bare names (typeurl).
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        if len(self._queue) >= _QUEUE_SIZE:
            self._drop(self._queue.popleft(), f"more than {_QUEUE_SIZE} events wait for containerd")
        self._queue.append(_Item(request, _trace.start("publishEvent", kind=Kind.CLIENT, topic=topic)))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            while not self._queue:
                if self._closing.is_set():
                    return
                self._changed.clear()
                await self._changed.wait()
            # Stays in the queue while it is under way, so that closing knows what did not arrive.
            item = self._queue[0]
            await self._deliver(item)
            if self._queue and self._queue[0] is item:
                self._queue.popleft()

    async def _deliver(self, item: _Item) -> None:
        """Send one event until containerd has it or refuses it."""
        pause = _FIRST_PAUSE
        attempts = 0
        while True:
            attempts += 1
            try:
                with use(item.span):
                    await self._forward(item.request)
            except RpcError as error:
                refused = error.code not in _PASSING
                if refused or self._closing.is_set():
                    item.span.set(attempts=attempts)
                    self._drop(item, f"containerd refuses it: {error}" if refused else f"the shim ends, and {error}")
                    return
                item.span.event("retry", attempt=attempts, why=str(error))
                if attempts == 1:
                    _log.info("event %s waits for containerd: %s", item.request.envelope.topic, error)
            else:
                item.span.set(attempts=attempts)
                item.span.finish()
                return
            # A back-off, not a poll: nothing tells when a service will be started.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _forward(self, request: ForwardRequest) -> None:
        if self._client is None or not self._client.open:
            with _trace.span("connectContainerd"):
                self._client = await Client.connect(self._address)
        metadata = {_NAMESPACE_KEY: self._namespace}
        await self._client.call(_SERVICE, "Forward", request, Empty, timeout=_TIMEOUT, metadata=metadata)

    def _drop(self, item: _Item, why: str) -> None:
        self.dropped += 1
        item.span.fail(why)
        item.span.finish()
        _log.error("event %s is lost: %s", item.request.envelope.topic, why)
