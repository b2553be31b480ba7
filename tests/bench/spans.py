"""What a span costs the code that is traced, in microseconds: `python tests/bench/spans.py`.

Each case is the same `with site.span(...)` in a loop, in turns, in CPU time of its thread: the median of all rounds,
less the empty loop.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kata_telemetry.recorder import Recorder
from kata_telemetry.span import Level, Site, Tracer, use
from kata_traces.store.writer import StoreWriter

__all__ = ["main"]

_ROUNDS = 15
_SPANS = 5000
_site = Site(package="bench", subsystem="spans")


def main() -> int:
    """Print a table."""
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as directory:
        cases: dict[str, Callable[[], float]] = {
            "no trace": _loop,
            "tracing off": lambda: _under(Level.OFF, None),
            "below the level": lambda: _under(Level.ESSENTIAL, None),
            "flight recorder": lambda: _under(Level.NORMAL, Recorder()),
            "traced, the caller's part": lambda: _stored(Path(directory)),
        }
        samples: dict[str, list[float]] = {name: [] for name in cases}
        empty: list[float] = []
        for _ in range(_ROUNDS):
            empty.append(_time(lambda: None, bare=True))
            for name, case in cases.items():
                samples[name].append(case())
    base = statistics.median(empty)
    for name, values in samples.items():
        print(f"{name:28} {max(statistics.median(values) - base, 0):6.2f} us")
    return 0


def _time(begin: Callable[[], object], *, bare: bool = False) -> float:
    begin()
    span = _site.span
    start = time.thread_time_ns()
    if bare:
        for _ in range(_SPANS):
            pass
    else:
        for _ in range(_SPANS):
            with span("operation", container_id="c1"):
                pass
    return (time.thread_time_ns() - start) / _SPANS / 1000


def _loop() -> float:
    return _time(lambda: None)


def _under(level: Level, recorder: Recorder | None) -> float:
    tracer = Tracer("kata", lambda _: None, common={"source": "runtime", "sandbox_id": "bench"}, level=level)
    if recorder is not None:
        recorder.attach(tracer)
    with use(_site.root(tracer, "root")):
        return _time(lambda: None)


def _stored(directory: Path) -> float:
    writer = StoreWriter.open(directory, "bench")
    tracer = writer.tracer("kata", source="runtime")
    with use(_site.root(tracer, "root")):
        took = _time(lambda: None)  # the writer begins a second later
    writer.close(60)
    return took


if __name__ == "__main__":
    sys.exit(main())
