"""The exporter of one store, a process beside the runtime: `python -m kata_traces.send.exporter --store DIR`.

Its standard input says when to look: any byte means that there is something new, the end of file that nothing more
will come (also where the runtime was killed). From then on it has `--grace` seconds. Exit status: 0 all delivered, 75
(EX_TEMPFAIL of sysexits.h) something is left for `kata-runtime trace push`, 64 (EX_USAGE) settings that can't work.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

from kata_common.files import Lock
from kata_common.text import told
from kata_traces.send.collector import CollectorSettings, SettingsError, UnavailableError, connect
from kata_traces.send.delivery import GRACE, USELESS, Delivery, push_leftovers
from kata_traces.send.pace import Pace
from kata_traces.store.abandoned import close_abandoned
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store

__all__ = ["main"]

# How long to wait, in seconds, for the end of a runtime that was killed, when its pipe has ended.
PATIENCE: Final = 5.0


class Exporter:
    """Delivers on one thread what another is told of."""

    def __init__(self, delivery: Delivery, grace: float) -> None:
        self._delivery = delivery
        self._grace = grace
        self._changed = threading.Condition()
        self._news = True
        self._pace = Pace(delivery.settings.timeout, self._changed)
        self._done = False

    def tell(self) -> None:
        """There may be something new."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._news = True
            self._pace.end(self._grace)

    @property
    def deadline(self) -> float | None:
        """When the grace period ends (monotonic, s), once the end has come."""
        return self._pace.deadline

    @property
    def done(self) -> bool:
        """Whether the end came and everything is delivered."""
        return self._done and self._delivery.progress.refused == {}

    def run(self) -> None:
        """Deliver until the end, at most to the end of the grace period. Raises StoreError."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news)
                self._news = False
                ending = self._pace.deadline is not None
            try:
                while self._delivery.advance(self._pace.timeout):
                    self._pace.succeeded()
            except UnavailableError as error:
                if not self._pace.pause(error.retry_after):
                    return
                self._news = True
                continue
            if ending:
                self._done = True
                return


def main(arguments: list[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="kata_traces.send.exporter", description="Sends one trace to a collector.")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="directory of the sandbox's trace")
    parser.add_argument("--endpoint", default="", metavar="URL", help="default: OTEL_EXPORTER_OTLP_ENDPOINT")
    parser.add_argument("--protocol", default="", metavar="grpc|http/protobuf")
    parser.add_argument("--headers", default="", metavar="K=V,…", help="visible to all users: prefer the variable")
    parser.add_argument("--timeout", type=float, default=0.0, metavar="SECONDS", help="of one request")
    parser.add_argument("--grace", type=float, default=GRACE, metavar="SECONDS", help="after the end of standard input")
    options = parser.parse_args(arguments)
    # grpc's core would log every failed attempt.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # By its descriptor: the sandbox's name may be used again, and its older trace moved aside, while this goes on.
        directory = os.open(options.store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        store = Store(Path(f"/proc/self/fd/{directory}"))
        settings = CollectorSettings.resolve(
            os.environ,
            endpoint=options.endpoint,
            protocol=options.protocol,
            headers=options.headers,
            timeout=options.timeout,
        )
        if settings is None:
            raise SettingsError("no OTLP endpoint: give --endpoint or set OTEL_EXPORTER_OTLP_ENDPOINT")
        lock = Lock(store.export_lock_path)
        if not lock.acquire():
            raise StoreError(f"{options.store} is being exported by another process")
        exporter = Exporter(Delivery(store, settings, connect(settings)), options.grace)
    except (OSError, SettingsError, StoreError) as error:
        print(told(f"exporter: {error}"), file=sys.stderr)
        return USELESS
    # The store by its own name is one of these as well, and complete by then.
    kept = options.store.absolute().parent
    thread = threading.Thread(target=_run, args=(exporter, kept, settings), daemon=True)
    thread.start()
    while os.read(0, 4096):
        exporter.tell()
    # Does nothing where the runtime has ended by itself.
    close_abandoned(store, at=time.time_ns(), patience=PATIENCE)
    exporter.end()
    # A request has its own timeout; the margin is for one that does not keep it.
    thread.join(options.grace + 1)
    return 0 if exporter.done else 75


def _run(exporter: Exporter, kept: Path, settings: CollectorSettings) -> None:
    try:
        exporter.run()
        if exporter.deadline is not None and exporter.done:
            # The collector is there: whatever it missed of earlier sandboxes goes along.
            push_leftovers(kept, settings, exporter.deadline)
    except StoreError as error:
        # The store was removed, or its disk is full: nothing that waiting would mend.
        print(told(f"exporter: {error}"), file=sys.stderr)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit: a request that hangs must not keep the process.
    os._exit(status)
