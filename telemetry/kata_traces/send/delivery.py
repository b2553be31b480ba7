"""Brings the spans of a store to a collector, exactly as far as the collector says that it has them.

How far that is stands in the store's export.json, per collector: bytes of spans.jsonl. The runtime only ever does this:

    link = export.start(writer.store, settings)     # a process of its own: kata_traces.send.exporter
    writer.on_append = link.notify
    ...
    link.close()                                    # does not wait

What the exporter has not delivered when it gives up is left for `push` (`kata-runtime trace push`).
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from kata_common.files import Lock, write_atomically
from kata_common.interpreter import python_module
from kata_telemetry import otlp
from kata_traces.send.collector import (
    CollectorSettings,
    RefusedError,
    Sender,
    SettingsError,
    UnavailableError,
    connect,
)
from kata_traces.send.parts import Part, RuntimePart, parts
from kata_traces.store.abandoned import close_abandoned
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store, stores

__all__ = [
    "Delivery",
    "Link",
    "Progress",
    "PushResult",
    "forget",
    "load_progress",
    "push",
    "push_leftovers",
    "start",
    "taken",
]

# How long the exporter goes on after its sandbox ended, in seconds.
GRACE: Final = 10.0
# Refused batches that are remembered.
MAX_REFUSED: Final = 1000
# How often an exporter is started for one sandbox, and the exit status that says that settings can't work.
MOST_STARTS: Final = 5
USELESS: Final = 64
# Not looked for on PATH, which may lead to where others write.
_NICE: Final = "/usr/bin/nice"


@dataclass(slots=True)
class Progress:
    """How far one collector has come with one store."""

    # Bytes of spans.jsonl that are dealt with.
    offset: int = 0
    # Spans that the collector took, and those of them that it then did not want (partial success).
    spans: int = 0
    rejected: int = 0
    # Offsets of lines before `offset` that it refused, with its reason; `push` tries them again.
    refused: dict[str, str] = field(default_factory=dict)
    # Lines that are no OTLP, from a writer that was killed.
    broken: int = 0
    # The last thing that went wrong.
    error: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From an entry of export.json; what has a wrong type is left at its default."""
        defaults = cls()
        names = [item.name for item in dataclasses.fields(cls)]
        return cls(**{n: content[n] for n in names if type(content.get(n)) is type(getattr(defaults, n))})


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


def load_progress(store: Store, part: Part | None = None) -> dict[str, Progress]:
    """Of each collector that a part of this store (the runtime's) was sent to, by `CollectorSettings.target`."""
    try:
        content = json.loads((part or RuntimePart(store)).progress_path.read_bytes())
    except (OSError, ValueError):
        return {}
    targets = content.get("targets") if isinstance(content, dict) else None
    if not isinstance(targets, dict):
        return {}
    return {name: Progress.from_json(entry) for name, entry in targets.items() if isinstance(entry, dict)}


class Delivery:
    """One part of a store (the runtime's) on its way to one collector. Hold the part's lock meanwhile."""

    def __init__(self, store: Store, settings: CollectorSettings, sender: Sender, part: Part | None = None) -> None:
        self.store = store
        self.settings = settings
        self._sender = sender
        self._part = part or RuntimePart(store)
        self._all = load_progress(store, self._part)
        self.progress = self._all.setdefault(settings.target, Progress())

    @property
    def left(self) -> int:
        """Bytes of whole records that are still to be sent."""
        return max(self._part.end() - self.progress.offset, 0)

    def advance(self, timeout: Callable[[], float]) -> bool:
        """Send the next record; False where there is none. `timeout` says how many seconds a request may take now.

        Raises UnavailableError where the collector did not take it, StoreError where the store is not accessible.
        """
        offset = self.progress.offset
        record = self._part.record(offset)
        if not record:
            return False
        try:
            self._send(record, timeout())
        except RefusedError as error:
            if len(self.progress.refused) < MAX_REFUSED:
                self.progress.refused[str(offset)] = str(error)
            self.progress.error = str(error)
        except UnavailableError as error:
            if self.progress.error != str(error):
                self.progress.error = str(error)
                self._save()
            raise
        except otlp.MalformedOtlpError:
            self.progress.broken += 1
        self.progress.offset = offset + len(record)
        self._save()
        return True

    def retry_refused(self, timeout: Callable[[], float]) -> None:
        """Try once more what was refused: the collector may have been configured anew. Raises as `advance`."""
        for offset in list(self.progress.refused):
            with contextlib.suppress(RefusedError, otlp.MalformedOtlpError):
                self._send(self._part.record(int(offset)), timeout())
                del self.progress.refused[offset]
                self._save()

    def _send(self, record: bytes, timeout: float) -> None:
        data, count = self._part.request(record)
        if not count:
            return
        answer = self._sender.send(data, timeout)
        self.progress.error = ""
        # A collector that keeps a part must not be sent the batch again (OTLP specification, "Partial Success").
        self.progress.rejected += answer.rejected
        self.progress.spans += count - answer.rejected
        if answer.message:
            self.progress.error = f"collector: {answer.message}"

    def _save(self) -> None:
        content = {"targets": {name: dataclasses.asdict(progress) for name, progress in self._all.items()}}
        try:
            write_atomically(self._part.progress_path, json.dumps(content, indent=1).encode())
        except OSError as error:
            raise StoreError(f"cannot write {self._part.progress_path}: {error.strerror}") from error


def taken(store: Store, settings: CollectorSettings) -> int:
    """How many spans of a store this collector has taken so far."""
    noted = (load_progress(store, part).get(settings.target) for part in parts(store))
    return sum(progress.spans for progress in noted if progress is not None)


def forget(store: Store, settings: CollectorSettings) -> None:
    """Know no more of what this collector has of a store, so that `push` sends all of it again.

    Raises StoreError where another process exports this store right now, or where it can't be written.
    """
    for part in parts(store):
        if not part.progress_path.exists():
            continue
        with _sending(store, part):
            kept = {name: dataclasses.asdict(p) for name, p in load_progress(store, part).items()}
            kept.pop(settings.target, None)
            try:
                write_atomically(part.progress_path, json.dumps({"targets": kept}, indent=1).encode())
            except OSError as error:
                raise StoreError(f"cannot write {part.progress_path}: {error.strerror}") from error


def push(store: Store, settings: CollectorSettings, timeout: float = 60.0) -> PushResult:
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


def _push_part(store: Store, part: Part, settings: CollectorSettings, remaining: Callable[[], float]) -> PushResult:
    with _sending(store, part), contextlib.ExitStack() as stack:
        close_abandoned(store)
        sender = connect(settings)
        stack.callback(sender.close)
        delivery = Delivery(store, settings, sender, part)
        before, stopped = delivery.progress.spans, ""
        try:
            delivery.retry_refused(remaining)
            while delivery.advance(remaining):
                pass
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


def start(store: Store, settings: CollectorSettings, *, grace: float = GRACE) -> Link:
    """Start the exporter of a store: a process that outlives this one by at most `grace` seconds. Takes about a ms.

    Raises SettingsError where it can't be started.
    """
    # Nice: importing grpc takes a third of a second of CPU, just when the workload has started.
    arguments = [
        _NICE,
        *python_module("kata_traces.send.exporter", "--store", str(store.directory), "--grace", str(grace)),
    ]
    log = str(store.directory / "export.log")

    def spawn() -> tuple[int, int]:
        environment = {**os.environ, **settings.environment()}
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


def push_leftovers(trace_dir: Path, settings: CollectorSettings, deadline: float) -> None:
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
