"""What tracing costs, off beside on in one run; `nox -s bench -- --tracing` runs it.

Two sandboxes live at the same time, one traced on both sides and one not, and take turns. That gives exec latency
(`true` by exec, to the end of its wait) and stdio throughput (through `cat`, there and back). Starts take turns as
well. Only the ratios mean something on a shared machine.
"""

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kata_runtime.cli.workload import prepare
from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.mount import private_mount_namespace
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.tracing import SandboxTrace
from kata_telemetry.span import Site, use
from kata_telemetry.store import Store
from kata_telemetry.trace import load_store
from kata_telemetry.writer import StoreWriter

__all__ = ["main"]

_EXECS = 40  # per sandbox
_STREAMS = 6
_SIZE = 16 << 20
_SPANS = 20_000
_OPTIONS: dict[str, Any] = {"rootfs": None, "bundle": None, "image": "", "tty": False, "env": [], "cwd": "", "user": ""}
_trace = Site(package="bench", subsystem="tracing")


def main(first_output: Callable[[list[str]], float], rounds: int) -> int:
    """Print the tables; 1 where on costs more than 3 % of the first output or 5 % of an exec."""
    starts = _turns({"off": lambda: first_output([]), "on": lambda: first_output(["--trace"])}, rounds)
    start = _row("first output", starts, 1.0, "s")
    private_mount_namespace()
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        execs, streams, spans = asyncio.run(_beside(Path(scratch)))
        exec_ = _row("exec", execs, 1e3, "ms")
        _row("64 KiB pieces there and back", streams, 1e3, f"ms for {_SIZE >> 20} MiB")
        on, off = (statistics.median(execs[name]) for name in ("on", "off"))
        print(f"an exec has {spans} spans on both sides: {1e6 * (on - off) / spans:.0f} µs for each of them")
        _store(Path(scratch))
    return 0 if start <= 1.03 and exec_ <= 1.05 else 1


def _turns(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants) if number % 2 else list(reversed(contestants))
        for name in order:
            samples[name].append(contestants[name]())
    return samples


def _row(what: str, samples: dict[str, list[float]], factor: float, unit: str) -> float:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ratio = medians["on"] / medians["off"]
    shown = ", ".join(
        f"{name} {medians[name] * factor:.2f} (least {min(samples[name]) * factor:.2f})" for name in medians
    )
    print(f"{what}: {shown} {unit}; on ÷ off {ratio:.3f}", flush=True)
    return ratio


@asynccontextmanager
async def _sandbox(
    name: str, traced: bool, scratch: Path
) -> AsyncIterator[tuple[SandboxTrace, Container, dict[str, Any]]]:
    runtime = RuntimeConfig(enable_tracing=traced, trace_dir=str(scratch))
    config = Config(QemuConfig(), AgentConfig(enable_tracing=traced), runtime, ())
    sandbox_id = f"bench-{name}-{os.getpid()}"
    trace = SandboxTrace.open(config, sandbox_id, command="bench")
    options = SandboxOptions().from_environment(sandbox_id)
    sandbox = Sandbox(sandbox_id, config, trace, options)
    with use(trace.root):
        arguments = argparse.Namespace(**_OPTIONS)
        workload = await prepare(
            arguments, ("sleep", "3600"), options.image_dir, sandbox_id, disable_guest_seccomp=True
        )
        try:
            await sandbox.start()
            container = await sandbox.create_container(sandbox_id, workload.spec, workload.rootfs, Stdio())
            await container.start()
            yield trace, container, dict(workload.spec["process"])
        finally:
            await sandbox.stop()
            trace.close("exit 0")


async def _beside(scratch: Path) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    async with _sandbox("off", False, scratch) as off, _sandbox("on", True, scratch) as on:
        sides = {"off": off, "on": on}
        execs: dict[str, list[float]] = {name: [] for name in sides}
        streams: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(_EXECS + 2):
            for name in list(sides) if number % 2 else list(reversed(sides)):
                took = await _timed(sides[name], lambda side, n=number: _exec(side, f"e{n}"))  # type: ignore[misc]
                if number >= 2:  # the first ones import and open what later ones have
                    execs[name].append(took)
        for number in range(_STREAMS):
            for name in list(sides) if number % 2 else list(reversed(sides)):
                streams[name].append(await _timed(sides[name], lambda side, n=number: _stream(side, f"s{n}")))  # type: ignore[misc]
    (directory,) = (path for path in scratch.iterdir() if path.is_dir())
    trace = load_store(Store(directory))
    assert trace is not None
    spans = sum(span.attributes.get("exec_id") == "e5" for span in trace.spans)
    return execs, streams, spans


_Side = tuple[SandboxTrace, Container, dict[str, Any]]


async def _timed(side: _Side, work: Callable[[_Side], Awaitable[None]]) -> float:
    with use(side[0].root):
        begin = time.monotonic()
        await work(side)
        return time.monotonic() - begin


async def _exec(side: _Side, exec_id: str) -> None:
    _, container, process = side
    extra = container.process(exec_id)
    await extra.exec({**process, "args": ["true"]}, Stdio())
    await extra.wait()
    await extra.close()


async def _stream(side: _Side, exec_id: str) -> None:
    """Feed `cat` and take back what it writes."""
    _, container, process = side
    extra = container.process(exec_id)
    ours, stdin = socket.socketpair()
    stdout, theirs = socket.socketpair()

    def feed() -> None:
        with ours:
            for _ in range(_SIZE >> 16):
                ours.sendall(bytes(1 << 16))

    def drain() -> None:
        left = _SIZE
        while left:
            left -= len(stdout.recv(1 << 18))

    feeder = threading.Thread(target=feed)
    with stdin, stdout, theirs:
        await extra.exec({**process, "args": ["cat"]}, Stdio(stdin.fileno(), theirs.fileno()))
        feeder.start()
        await asyncio.to_thread(drain)
        await extra.wait()
        await extra.drain()
        feeder.join()


def _store(scratch: Path) -> None:
    """Spans through the store's writer on this host, without a guest."""
    writer = StoreWriter.open(scratch / "store", "bench")
    tracer = writer.tracer("kata", source="runtime")
    writer.begin()
    with _trace.root(tracer, "rootSpan"):
        begin, cpu = time.monotonic(), time.process_time()
        for number in range(_SPANS):
            with _trace.span("operation", container_id="c1", number=number):
                pass
            if number % 4096 == 4095:  # more than anybody makes at a time would be dropped, and counted
                writer.flush(60)
        writer.flush(60)
    writer.close(60, "exit 0")
    wall, used = time.monotonic() - begin, time.process_time() - cpu
    print(
        f"store: {_SPANS / wall:.0f} spans/s written, {used / wall:.2f} of a CPU, {1e6 * used / _SPANS:.0f} µs a span"
    )
