"""Brings what the inboxes stored to the collector: one thread and one connection for all sandboxes."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kata_common.files import Lock
from kata_traces.send.collector import Sender, UnavailableError
from kata_traces.send.delivery import Delivery
from kata_traces.send.ledger import Ledger, load_progress
from kata_traces.send.pace import Pace
from kata_traces.send.parts import AgentPart
from kata_traces.send.settings import Target
from kata_traces.store.store import Store

__all__ = ["Courier", "Holder", "left"]

_log = logging.getLogger("kata.forwarder")

# Another process (`trace push`) sends the same store: look again after this (s).
BUSY: Final = 1.0
# Batches of one sandbox before the next one has its turn.
TURN: Final = 64


def left(store: Store, settings: Target) -> int:
    """Bytes of the agent's spans that the collector does not have."""
    part = AgentPart(store)
    progress = load_progress(store, part).get(settings.target)
    return max(part.end() - (progress.offset if progress else 0), len(progress.deferred) if progress else 0)


class Holder:
    """Holds the agent's parts of stores against other processes while couriers of this one, each for himself, send."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Store, _Held] = {}

    @contextlib.contextmanager
    def hold(self, store: Store) -> "Iterator[_Held]":
        """Raises BlockingIOError where another process sends, and OSError."""
        with self._lock:
            held = self._held.get(store)
            if held is None:
                held = self._held[store] = _Held(store)
            held.users += 1
        try:
            yield held
        finally:
            with self._lock:
                held.users -= 1
                if not held.users:
                    del self._held[store]
                    held.close()


class _Held:
    def __init__(self, store: Store) -> None:
        self.users = 0
        # By its descriptor: the sandbox's name may be used again, and its older trace moved aside, while this goes on.
        self._directory = os.open(store.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.store = Store(Path(f"/proc/self/fd/{self._directory}"))
        self.part = AgentPart(self.store)
        self._file = Lock(self.part.lock_path)
        try:
            if not self._file.acquire():
                raise BlockingIOError(f"the spans of {store.directory.name} are being sent by another process")
        except OSError:
            os.close(self._directory)
            raise
        self.ledger = Ledger(self.part)

    def close(self) -> None:
        self._file.release()
        os.close(self._directory)


class Courier:
    """`tell` from any thread; `stop` waits."""

    def __init__(self, settings: Target, sender: Sender, holder: Holder | None = None) -> None:
        self._settings = settings
        self._holder = holder or Holder()
        self._sender = sender
        self._changed = threading.Condition()
        # In order of their turn; the values mean nothing.
        self._waiting: dict[Store, None] = {}
        self._pace = Pace(settings.timeout, self._changed)
        self._away = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def tell(self, store: Store) -> None:
        """There is something to send."""
        with self._changed:
            if store not in self._waiting:
                self._waiting[store] = None
                self._changed.notify()

    def stop(self, grace: float) -> list[Store]:
        """Send what there is for at most `grace` seconds; the stores of which something is left."""
        with self._changed:
            self._pace.end(grace)
        # A request has its own timeout; the margin is for one that does not keep it.
        self._thread.join(grace + 1)
        with self._changed:
            return list(self._waiting)

    # From here on: the thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._pace.deadline is not None)
                if not self._waiting:
                    return
                store = next(iter(self._waiting))
            try:
                done = self._deliver(store)
            except UnavailableError as error:
                self._say_away(str(error))
                with self._changed:  # perhaps it is this one's fault
                    self._waiting[store] = self._waiting.pop(store)
                if not self._pace.pause(error.retry_after):
                    return
                continue
            except BlockingIOError:
                if not self._pace.pause(BUSY):
                    return
                done = False
            except Exception as error:
                # It was removed, or its disk is full: nothing that waiting would mend.
                _log.warning("spans of %s are not forwarded: %s", store.directory.name, error)
                with self._changed:
                    self._waiting.pop(store, None)
                continue
            self._pace.succeeded()
            with self._changed:
                self._waiting.pop(store, None)
                # What came while it was being sent is known by looking, not by `tell`, which saw it waiting.
                if not done or left(store, self._settings):
                    self._waiting[store] = None

    def _deliver(self, store: Store) -> bool:
        """Send what there is, or a turn's share of it; whether that was all. Raises BlockingIOError if others send."""
        with self._holder.hold(store) as held:
            delivery = Delivery(held.store, self._settings, self._sender, held.part, held.ledger)
            return self._advance(delivery, store.directory.name)

    def _advance(self, delivery: Delivery, name: str) -> bool:
        before = delivery.progress.spans
        try:
            for _ in range(TURN):
                if not delivery.advance(self._pace.timeout):
                    return True
                self._say_back()
            return False
        finally:
            if delivery.progress.spans > before:
                _log.debug("spans forwarded", extra={"sandbox": name, "spans": delivery.progress.spans - before})

    def _say_away(self, why: str) -> None:
        if not self._away:
            _log.warning("the collector %s takes no spans, they are kept: %s", self._settings.target, why)
        self._away = True

    def _say_back(self) -> None:
        if self._away:
            _log.info("the collector %s takes spans again", self._settings.target)
        self._away = False
