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
from kata_traces.send.collector import Sender, UnavailableError
from kata_traces.send.connect import connect
from kata_traces.send.delivery import GRACE, USELESS, Delivery, push_leftovers
from kata_traces.send.ledger import Ledger
from kata_traces.send.pace import Pace
from kata_traces.send.parts import RuntimePart
from kata_traces.send.settings import SettingsError, Target, targets
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

    @property
    def settings(self) -> Target:
        """Where it delivers to."""
        return self._delivery.settings

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
        progress = self._delivery.progress
        return self._done and not progress.refused and not progress.deferred

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
    parser = argparse.ArgumentParser(
        prog="kata_traces.send.exporter", description="Sends one trace to where the environment says."
    )
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="directory of the sandbox's trace")
    parser.add_argument("--grace", type=float, default=GRACE, metavar="SECONDS", help="after the end of standard input")
    options = parser.parse_args(arguments)
    # grpc's core would log every failed attempt.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # By its descriptor: the sandbox's name may be used again, and its older trace moved aside, while this goes on.
        directory = os.open(options.store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        store = Store(Path(f"/proc/self/fd/{directory}"))
        lock = Lock(store.export_lock_path)
        if not lock.acquire():
            raise StoreError(f"{options.store} is being exported by another process")
        exporters = _exporters(store, options.grace)
    except (OSError, SettingsError, StoreError) as error:
        print(told(f"exporter: {error}"), file=sys.stderr)
        return USELESS
    # The store by its own name is one of these as well, and complete by then.
    kept = options.store.absolute().parent
    threads = [
        threading.Thread(target=_run, args=(exporter, kept, sender), daemon=True) for exporter, sender in exporters
    ]
    for thread in threads:
        thread.start()
    while os.read(0, 4096):
        for exporter, _ in exporters:
            exporter.tell()
    # Does nothing where the runtime has ended by itself.
    close_abandoned(store, at=time.time_ns(), patience=PATIENCE)
    for exporter, _ in exporters:
        exporter.end()
    # A request has its own timeout; the margin is for one that does not keep it.
    latest = time.monotonic() + options.grace + 1
    for thread in threads:
        thread.join(max(latest - time.monotonic(), 0))
    return 0 if all(exporter.done for exporter, _ in exporters) else 75


def _exporters(store: Store, grace: float) -> list[tuple[Exporter, Sender]]:
    """One for each target. Those that can't work are told of, and the others go on. Raises SettingsError."""

    def wrong(error: SettingsError) -> None:
        print(told(f"exporter: {error}"), file=sys.stderr, flush=True)

    ledger = Ledger(RuntimePart(store))
    found: list[tuple[Exporter, Sender]] = []
    for target in targets(os.environ, wrong=wrong):
        try:
            sender = connect(target)
        except SettingsError as error:
            wrong(error)
            continue
        found.append((Exporter(Delivery(store, target, sender, ledger=ledger), grace), sender))
    if not found:
        raise SettingsError("nowhere to send to: set OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER")
    return found


def _run(exporter: Exporter, kept: Path, sender: Sender) -> None:
    try:
        exporter.run()
        if exporter.deadline is not None and exporter.done:
            # The collector is there: whatever it missed of earlier sandboxes goes along.
            push_leftovers(kept, exporter.settings, exporter.deadline)
    except StoreError as error:
        # The store was removed, or its disk is full: nothing that waiting would mend.
        print(told(f"exporter: {error}"), file=sys.stderr)
    finally:
        sender.close()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit: a request that hangs must not keep the process.
    os._exit(status)
