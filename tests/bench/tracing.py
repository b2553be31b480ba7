"""What tracing costs: off, on and detailed in one run; `nox -s bench -- --tracing` runs it.

Off comes in two ways: as configured by default, with the flight recorder, and bare without it. Four sandboxes live at
the same time, traced on both sides as much as their names say, and take turns. That gives exec latency (`true` by exec,
to the end of its wait), the processor time of their VMs, and stdio throughput (through `cat`, there and back). Starts
take turns as well. Only the ratios mean something on a shared machine.
"""

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kata_runtime.cli.workload import prepare
from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.mount import private_mount_namespace
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.trace import SandboxTrace
from kata_telemetry.span import Site, use
from kata_traces.read.trace import load_store
from kata_traces.store.store import Store
from kata_traces.store.writer import StoreWriter
from support import processor

__all__ = ["main"]

# Per sandbox; the first ones import and open what later ones have.
_EXECS, _WARM = 42, 3
_STREAMS = 6
_SIZE = 16 << 20
_SPANS = 20_000
_OPTIONS: dict[str, Any] = {"rootfs": None, "bundle": None, "image": "", "tty": False, "env": [], "cwd": "", "user": ""}
_trace = Site(package="bench", subsystem="tracing")


class _Way(NamedTuple):
    """One of the contestants' configurations."""

    traced: bool = True
    level: Literal["normal", "detailed"] = "normal"
    recorder: bool = True


_WAYS = {
    "bare": _Way(traced=False, recorder=False),
    "off": _Way(traced=False),
    "on": _Way(),
    "detailed": _Way(level="detailed"),
}
_CONFIGURATION = """
[runtime]
trace_dir = "{directory}"
enable_tracing = {traced}
trace_level = "{level}"
flight_recorder = {recorder}
[agent.kata]
enable_tracing = {traced}
"""

_Samples = dict[str, list[float]]


class _Side(NamedTuple):
    """One of the sandboxes, a container that sleeps in it, its process for others to be like, and QEMU."""

    trace: SandboxTrace
    container: Container
    process: dict[str, Any]
    vm: int


def main(first_output: Callable[[list[str]], float], rounds: int) -> int:
    """Print the tables; 1 where on costs more than 3 % of the first output or 5 % of an exec."""
    starts: _Samples = {name: [] for name in _WAYS}
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        for name, (traced, level, recorder) in _WAYS.items():
            told = {"traced": str(traced).lower(), "level": level, "recorder": str(recorder).lower()}
            Path(scratch, f"{name}.toml").write_text(_CONFIGURATION.format(directory=f"{scratch}/{name}", **told))
        for number in range(rounds):
            for name in _turn(_WAYS, number):
                starts[name].append(first_output(["--config", f"{scratch}/{name}.toml", "run"]))
    start = _row("first output", starts, 1.0, "s")
    private_mount_namespace()
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        exec_ = asyncio.run(_beside(Path(scratch)))
        _store(Path(scratch))
    return 0 if start <= 1.03 and exec_ <= 1.05 else 1


def _turn(names: Iterable[str], number: int) -> list[str]:
    """Everybody goes first, and last, as often as the others."""
    order = list(names)
    number %= len(order)
    return order[number:] + order[:number]


def _row(what: str, samples: _Samples, factor: float, unit: str) -> float:
    """Print medians, to the same without tracing; returns what tracing (on) costs, 1.0 for nothing."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(f"{what}:")
    for name, values in samples.items():
        ratio = medians[name] / medians["off"]
        least, mean = min(values) * factor, statistics.fmean(values) * factor
        shown = f"median {medians[name] * factor:8.2f}, least {least:8.2f}, mean {mean:8.2f} {unit}"
        print(f"  {name:9} {shown}; median ÷ off {ratio:.3f}", flush=True)
    return medians["on"] / medians["off"]


@asynccontextmanager
async def _sandbox(name: str, way: _Way, scratch: Path) -> AsyncIterator[_Side]:
    runtime = RuntimeConfig(
        enable_tracing=way.traced,
        trace_level=way.level,
        flight_recorder=way.recorder,
        trace_dir=str(scratch / name),
    )
    config = Config(QemuConfig(), AgentConfig(enable_tracing=way.traced), runtime)
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
            vm = processor.find(processor.MARKS["VM"], sandbox_id)
            yield _Side(trace, container, dict(workload.spec["process"]), vm)
        finally:
            await sandbox.stop()
            trace.close("exit 0")


async def _beside(scratch: Path) -> float:
    """What tracing costs an exec, see `_row`."""
    async with AsyncExitStack() as stack:
        sides = {name: await stack.enter_async_context(_sandbox(name, way, scratch)) for name, way in _WAYS.items()}
        execs: _Samples = {name: [] for name in sides}
        streams: _Samples = {name: [] for name in sides}
        used: dict[str, float] = {}
        for number in range(-_WARM, _EXECS):
            if number == 0:
                used = {name: processor.seconds(side.vm) for name, side in sides.items()}
            for name in _turn(sides, number):
                took = await _timed(sides[name], lambda side, n=number: _exec(side, f"e{n}"))  # type: ignore[misc]
                if number >= 0:
                    execs[name].append(took)
        used = {name: (processor.seconds(side.vm) - used[name]) / _EXECS for name, side in sides.items()}
        for number in range(_STREAMS):
            for name in _turn(sides, number):
                streams[name].append(await _timed(sides[name], lambda side, n=number: _stream(side, f"s{n}")))  # type: ignore[misc]
    ratio = _row("exec", execs, 1e3, "ms")
    for name in ("on", "detailed"):
        spans = _exec_spans(scratch / name)
        more = used[name] - used["off"]
        print(
            f"  {name}: {spans['kata']} spans of the runtime and {spans['kata-agent']} of the agent for each exec;"
            f" the VM's processor time {used[name] * 1e3:.1f} ms, off {used['off'] * 1e3:.1f}:"
            f" {1e6 * more / spans['kata-agent']:.0f} µs for each of the agent's spans"
        )
    _row("64 KiB pieces there and back", streams, 1e3, f"ms for {_SIZE >> 20} MiB")
    return ratio


def _exec_spans(traces: Path) -> Counter[str]:
    """How many spans one exec has, by service."""
    (directory,) = (path for path in traces.iterdir() if path.is_dir())
    trace = load_store(Store(directory))
    assert trace is not None
    return Counter(span.service for span in trace.spans if span.attributes.get("exec_id") == "e5")


async def _timed(side: _Side, work: Callable[[_Side], Awaitable[None]]) -> float:
    with use(side.trace.root):
        begin = time.monotonic()
        await work(side)
        return time.monotonic() - begin


async def _exec(side: _Side, exec_id: str) -> None:
    extra = side.container.process(exec_id)
    await extra.exec({**side.process, "args": ["true"]}, Stdio())
    await extra.wait()
    await extra.close()


async def _stream(side: _Side, exec_id: str) -> None:
    """Feed `cat` and take back what it writes."""
    extra = side.container.process(exec_id)
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
        await extra.exec({**side.process, "args": ["cat"]}, Stdio(stdin.fileno(), theirs.fileno()))
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
