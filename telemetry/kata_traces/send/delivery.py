"""Brings the spans of a store to a collector, exactly as far as the collector says that it has them.

How far that is stands in the store's export.json, per collector: bytes of spans.jsonl. The runtime only ever does this:

    link = export.start(writer.store, targets)      # a process of its own: kata_traces.send.exporter
    writer.on_append = link.notify
    ...
    link.close()                                    # does not wait

What the exporter has not delivered when it gives up is left for `push` (`kata-runtime trace push`).
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_common.files import Lock
from kata_common.interpreter import python_module
from kata_telemetry import otlp
from kata_traces.send.collector import FailedError, RefusedError, Sender, UnavailableError
from kata_traces.send.connect import connect
from kata_traces.send.ledger import Ledger, load_progress
from kata_traces.send.parts import Part, RuntimePart, parts
from kata_traces.send.settings import EXPORTERS, SettingsError, Target
from kata_traces.store.abandoned import close_abandoned
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store, stores

__all__ = ["Delivery", "Link", "PushResult", "forget", "push", "push_leftovers", "start", "taken"]

# How long the exporter goes on after its sandbox ended, in seconds.
GRACE: Final = 10.0
# Refused batches that are remembered.
MAX_REFUSED: Final = 1000
# How often a record that fails for no known reason is tried before the next one has its turn, and how many may wait.
TRIES: Final = 3
MAX_DEFERRED: Final = 64
# How often an exporter is started for one sandbox, and the exit status that says that settings can't work.
MOST_STARTS: Final = 5
USELESS: Final = 64
# Not looked for on PATH, which may lead to where others write.
_NICE: Final = "/usr/bin/nice"


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a `push` did: spans it delivered, bytes still to go, batches refused so far, and why it stopped, or ""."""

    spans: int
    left: int
    refused: int
    rejected: int
    error: str

    @property
    def complete(self) -> bool:
        """Whether the collector has everything."""
        return not self.left and not self.refused


class Delivery:
    """One part of a store (the runtime's) on its way to one target. Hold the part's lock meanwhile.

    A record that fails for no known reason is tried again, then left for later so that it holds nothing up. Once
    anything goes, the way is open: what still fails then is taken apart, and single spans that fail are refused.
    """

    def __init__(
        self, store: Store, settings: Target, sender: Sender, part: Part | None = None, ledger: Ledger | None = None
    ) -> None:
        self.store = store
        self.settings = settings
        self._sender = sender
        self._part = part or RuntimePart(store)
        self._ledger = ledger or Ledger(self._part)
        self.progress = self._ledger.of(settings.target)
        # Whether something went since the last failure.
        self._open = False

    @property
    def left(self) -> int:
        """Bytes of whole records that are still to be sent."""
        later = sum(len(self._part.record(int(offset))) for offset in self.progress.deferred)
        return max(self._part.end() - self.progress.offset, 0) + later

    def advance(self, timeout: Callable[[], float]) -> bool:
        """Send the next record; False where there is none. `timeout` says how many seconds a request may take now.

        Raises UnavailableError where the target did not take it, StoreError where the store is not accessible.
        """
        progress = self.progress
        offset = progress.offset
        record = self._part.record(offset)
        if progress.deferred and (self._open or not record):
            self._take_apart(timeout)
            return True
        if not record:
            return False
        failed: FailedError | None = None
        try:
            self._send(record, timeout())
            self._open = True
        except RefusedError as error:
            self._refuse(str(offset), error)
        except FailedError as error:
            self._open, failed, progress.error = False, error, str(error)
            progress.failures += 1
            if progress.failures < TRIES or len(progress.deferred) >= MAX_DEFERRED:
                self._save()
                raise
            progress.deferred[str(offset)] = []
        except UnavailableError as error:
            self._note(error)
            raise
        except otlp.MalformedOtlpError:
            progress.broken += 1
        progress.offset, progress.failures = offset + len(record), 0
        self._save()
        if failed:
            raise failed
        return True

    def retry_refused(self, timeout: Callable[[], float]) -> None:
        """Try once more what was refused: the collector may have been configured anew. Raises as `advance`."""
        for key in list(self.progress.refused):
            offset, _, number = key.partition(":")
            with contextlib.suppress(RefusedError, FailedError, otlp.MalformedOtlpError):
                self._send(self._part.record(int(offset)), timeout(), [int(number)] if number else None)
                del self.progress.refused[key]
                self._save()

    def _send(self, record: bytes, timeout: float, numbers: Collection[int] | None = None) -> None:
        data, count = self._part.request(record)
        if numbers is not None:
            data, count = _only(data, numbers), len(numbers)
        if not count:
            return
        answer = self._sender.send(data, timeout)
        self.progress.error = ""
        # A collector that keeps a part must not be sent the batch again (OTLP specification, "Partial Success").
        self.progress.rejected += answer.rejected
        self.progress.spans += count - answer.rejected
        if answer.message:
            self.progress.error = f"collector: {answer.message}"

    def _take_apart(self, timeout: Callable[[], float]) -> None:
        """Try the first of those left for later in ever smaller pieces; where nothing goes, only the largest three."""
        offset, gone = next(iter(self.progress.deferred.items()))
        record = self._part.record(int(offset))
        pieces = [[number for number in range(self._part.request(record)[1]) if number not in gone]]
        tried = 0
        while pieces:
            piece = pieces.pop()
            try:
                self._send(record, timeout(), piece)
            except FailedError as error:
                tried += 1
                if self._open and len(piece) == 1:
                    self._refuse(f"{offset}:{piece[0]}", error)
                    gone += piece
                elif len(piece) > 1 and (self._open or tried < TRIES):
                    pieces += [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
                elif not pieces:
                    # The next time it is another's turn.
                    self.progress.deferred[offset] = self.progress.deferred.pop(offset)
                    self._note(error)
                    raise
            except RefusedError as error:
                for number in piece:
                    self._refuse(f"{offset}:{number}", error)
                gone += piece
            else:
                self._open = True
                gone += piece
            self._save()
        if len(gone) == self._part.request(record)[1]:
            del self.progress.deferred[offset]
            self._save()

    def _refuse(self, key: str, error: Exception) -> None:
        if len(self.progress.refused) < MAX_REFUSED:
            self.progress.refused[key] = str(error)
        self.progress.error = str(error)

    def _note(self, error: Exception) -> None:
        if self.progress.error != str(error):
            self.progress.error = str(error)
            self._save()

    def _save(self) -> None:
        self._ledger.save(self.settings.target, self.progress)


def taken(store: Store, settings: Target) -> int:
    """How many spans of a store this target has taken so far."""
    noted = (load_progress(store, part).get(settings.target) for part in parts(store))
    return sum(progress.spans for progress in noted if progress is not None)


def forget(store: Store, settings: Target) -> None:
    """Know no more of what this target has of a store, so that `push` sends all of it again.

    Raises StoreError where another process exports this store right now, or where it can't be written.
    """
    for part in parts(store):
        if part.progress_path.exists():
            with _sending(store, part):
                Ledger(part).forget(settings.target)


def _only(data: bytes, numbers: Collection[int]) -> bytes:
    """The request with these of its spans."""
    request, number = otlp.parse(data), 0
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            kept = [span for place, span in enumerate(scope.spans, number) if place in numbers]
            number += len(scope.spans)
            del scope.spans[:]
            scope.spans.extend(kept)
    return request.SerializeToString()


def push(store: Store, settings: Target, timeout: float = 60.0) -> PushResult:
    """Send what is left of a store, for at most `timeout` seconds; stops at the first failure and says which.

    Raises StoreError where another process exports this store right now, or where it can't be read or written, and
    SettingsError.
    """
    deadline = time.monotonic() + timeout

    def remaining() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UnavailableError(f"not done after {timeout:g} s")
        return min(settings.timeout, left)

    results = [_push_part(store, part, settings, remaining) for part in parts(store)]
    return PushResult(
        spans=sum(result.spans for result in results),
        left=sum(result.left for result in results),
        refused=sum(result.refused for result in results),
        rejected=sum(result.rejected for result in results),
        error=next((result.error for result in results if result.error), ""),
    )


def _push_part(store: Store, part: Part, settings: Target, remaining: Callable[[], float]) -> PushResult:
    with _sending(store, part), contextlib.ExitStack() as stack:
        close_abandoned(store)
        sender = connect(settings)
        stack.callback(sender.close)
        delivery = Delivery(store, settings, sender, part)
        before, stopped = delivery.progress.spans, ""
        try:
            delivery.retry_refused(remaining)
            _advance_all(delivery, remaining)
        except UnavailableError as failure:
            stopped = str(failure)
        progress = delivery.progress
        return PushResult(
            spans=progress.spans - before,
            left=delivery.left,
            refused=len(progress.refused),
            rejected=progress.rejected,
            error=stopped or progress.error,
        )


@contextlib.contextmanager
def _sending(store: Store, part: Part) -> Iterator[None]:
    """Hold a part's lock for the block. Raises StoreError where another process has it."""
    lock = Lock(part.lock_path)
    try:
        acquired = lock.acquire()
    except OSError as error:
        raise StoreError(f"no trace in {store.directory}: {error.strerror}") from error
    if not acquired:
        raise StoreError(f"the trace in {store.directory} is being exported by another process; try again later")
    try:
        yield
    finally:
        lock.release()


def _advance_all(delivery: Delivery, remaining: Callable[[], float]) -> None:
    """To the end. A record that fails for no known reason is passed by; where one after the other fails, no further."""
    failures = 0
    while True:
        try:
            if not delivery.advance(remaining):
                return
            failures = 0
        except FailedError:
            failures += 1
            if failures > 2 * TRIES:
                raise


class Link:
    """The runtime's end of its exporter. No method blocks or raises.

    An exporter that died, of whatever, is started again with the next news: where it goes on is in the store.
    """

    def __init__(self, spawn: Callable[[], tuple[int, int]]) -> None:
        """`spawn` gives the process id and the pipe's end; it may raise OSError, now as well."""
        self._spawn = spawn
        self._starts = 1
        self._reaped = False
        self._useless = False
        self.pid, self._fd = spawn()

    def notify(self) -> None:
        """There is something new in the store."""
        if self._fd < 0:
            return
        self._reap()
        # A full pipe has already said so.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, b"\n")

    def close(self) -> None:
        """The store is complete. The exporter goes on by itself for its grace period."""
        if self._fd >= 0:
            self._reap()
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _reap(self) -> None:
        if self._reaped:
            return
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._reaped = pid != 0
            self._useless = self._reaped and os.waitstatus_to_exitcode(status) == USELESS
        if self._reaped and not self._useless and self._starts < MOST_STARTS:
            self._starts += 1
            with contextlib.suppress(OSError):
                pid, fd = self._spawn()
                os.close(self._fd)
                self.pid, self._fd, self._reaped = pid, fd, False


def start(store: Store, to: Sequence[Target], *, grace: float = GRACE) -> Link:
    """Start the exporter of a store, to all of `to`: a process that outlives this one by at most `grace` seconds.

    Takes about a ms. Raises SettingsError where it can't be started.
    """
    # Nice: importing grpc takes a third of a second of CPU, just when the workload has started.
    arguments = [
        _NICE,
        *python_module("kata_traces.send.exporter", "--store", str(store.directory), "--grace", str(grace)),
    ]
    log = str(store.directory / "export.log")

    def spawn() -> tuple[int, int]:
        settings = {name: value for target in to for name, value in target.environment().items()}
        settings[EXPORTERS] = ",".join(target.exporter for target in to)
        environment = {**os.environ, **settings}
        reader, writer = os.pipe()
        try:
            os.set_blocking(writer, False)
            actions = [
                (os.POSIX_SPAWN_DUP2, reader, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ]
            # A session of its own: neither Ctrl-C nor the end of the terminal is meant for it.
            pid = os.posix_spawn(_NICE, arguments, environment, file_actions=actions, setsid=True)
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        return pid, writer

    try:
        return Link(spawn)
    except OSError as error:
        raise SettingsError(f"cannot start the exporter by {_NICE}: {error.strerror}") from error


def push_leftovers(trace_dir: Path, settings: Target, deadline: float) -> None:
    """Send what this collector did not get of finished traces while it was away, until `deadline` (monotonic, s).

    Only traces that were on their way to it; the rest is for `push` to be told. Never raises for one of them.
    """
    for store in stores(trace_dir):
        left = deadline - time.monotonic()
        if left <= 0:
            return
        progress = load_progress(store).get(settings.target)
        if progress is None or store.live or RuntimePart(store).end() <= progress.offset:
            continue
        with contextlib.suppress(StoreError, SettingsError):
            push(store, settings, timeout=left)
