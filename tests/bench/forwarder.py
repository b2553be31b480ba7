"""How many spans a second the trace forwarder takes, stores and delivers, and at what cost of CPU; and what a span
costs on its way through the runtime's store and an exporter. `nox -s bench -- --forwarder`.

The agents that send and the collector (which counts) are processes of their own; only the forwarder's CPU counts.
"""

import multiprocessing
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from kata_common.contract import Port
from kata_telemetry import otlp
from kata_telemetry.clock import HostClock
from kata_telemetry.span import Span, SpanContext, Tracer
from kata_traces.send.parts import RuntimePart
from kata_traces.store.announce import Announcement
from kata_traces.store.writer import StoreWriter

ROOT = Path(__file__).parents[2]
SANDBOXES, BATCHES, BATCH = 8, 75, 256
# Batches that an agent sends before the first is confirmed (kata_agent.server.forwarding.WINDOW).
AHEAD = 16


def batches(trace_id: int, count: int) -> list[bytes]:
    """As an agent encodes them: spans of a container's start, with its attributes."""
    spans: list[Span] = []
    common: dict[str, str | bool | int | float] = {"source": "agent", "sandbox_id": "s1"}
    tracer = Tracer("kata-agent", spans.append, common=common)
    parent = SpanContext(trace_id, 77)
    for _ in range(count * BATCH):
        attributes = {"package": "container", "subsystem": "crun", "container_id": "c1"}
        tracer.start("create_container", parent=parent, attributes=attributes).finish()
    return [otlp.encode(spans[start : start + BATCH]).data for start in range(0, len(spans), BATCH)]


def collect(port: int, stop: Event, total: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    """A collector that only counts; a batch that is whole has BATCH spans."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def export(_: bytes, __: object) -> bytes:
        with total.get_lock():
            total.value += BATCH
        return b""

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    stop.wait()
    server.stop(None).wait()


def send(path: Path, trace_id: int, ready: Event, go: Event) -> None:
    """One agent."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.forwarder import Guest

    data = batches(trace_id, BATCHES)
    guest = Guest(path)
    guest.socket.settimeout(120)
    ready.set()
    go.wait()
    for number, batch in enumerate(data, 1):
        guest.send(batch)
        if number > AHEAD:
            guest.confirmed(number - AHEAD)
    guest.confirmed(BATCHES)
    guest.close()


def forwarder() -> None:
    """Many agents at once."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.collectors import free_port
    from support.forwarder_process import forwarder_process

    with tempfile.TemporaryDirectory() as name:
        directory, port = Path(name), free_port()
        stop, go, total = multiprocessing.Event(), multiprocessing.Event(), multiprocessing.Value("q", 0)
        collector = multiprocessing.Process(target=collect, args=(port, stop, total))
        collector.start()
        run = directory / "run"
        agents, readies = [], []
        for number in range(SANDBOXES):
            sandbox_id, trace_id = f"s{number}", (number + 1) << 64
            (run / sandbox_id / "ports").mkdir(parents=True)
            store = directory / "traces" / sandbox_id
            store.mkdir(parents=True)
            ids = f"{trace_id:032x}", f"{1:016x}"
            offset = HostClock().to_host(0)
            Announcement(sandbox_id, str(store), time.time_ns(), offset, 0, *ids).write(run / sandbox_id)
            readies.append(multiprocessing.Event())
            path = run / sandbox_id / "ports" / f"vsock.sock_{Port.FORWARDER}"
            agents.append(multiprocessing.Process(target=send, args=(path, trace_id, readies[-1], go)))
        options = ["--run-dir", str(run), "--trace-dir", str(directory / "traces")]
        options += ["--otlp-endpoint", f"http://127.0.0.1:{port}"]
        with forwarder_process(directory / "log", *options) as process:
            for agent in agents:
                agent.start()
            for ready in readies:
                ready.wait()
            cpu, begin, wanted = process.cpu(), time.monotonic(), SANDBOXES * BATCHES * BATCH
            go.set()
            for agent in agents:
                agent.join()
            taken = time.monotonic() - begin
            while total.value < wanted:
                time.sleep(0.01)
            took, used = time.monotonic() - begin, process.cpu() - cpu
            peak = process.peak() / (1 << 20)
            stop.set()
            collector.join()
        print(f"forwarder: {wanted} spans of {SANDBOXES} sandboxes")
        print(f"  taken and stored    {wanted / taken:10.0f} spans/s")
        print(f"  and delivered       {wanted / took:10.0f} spans/s")
        print(f"  CPU                 {used / took:10.2f} cores, {used / wanted * 1e6:.1f} us a span")
        print(f"  for each core       {wanted / used:10.0f} spans/s")
        print(f"  resident, at most   {peak:10.0f} MiB")


def store() -> None:
    """The runtime's store: spans recorded, encoded and appended by its writer; then read again for a collector."""
    count = 60 * BATCH  # fits into the writer's queue
    with tempfile.TemporaryDirectory() as name:
        writer = StoreWriter.open(Path(name), "s1")
        otlp.preload()
        writer.begin()
        tracer = writer.tracer("kata", source="runtime")
        root = tracer.start("rootSpan")
        cpu, begin, recording = time.process_time(), time.monotonic(), 0.0
        for _ in range(60):
            start = time.thread_time()
            for _ in range(BATCH):
                tracer.start(
                    "qmp.query", parent=root, attributes={"package": "hypervisor", "subsystem": "qmp"}
                ).finish()
            recording += time.thread_time() - start
        writer.flush(60)
        took, used = time.monotonic() - begin, time.process_time() - cpu
        writer.close(60)
        print(f"store: {count} spans")
        print(f"  written             {count / took:10.0f} spans/s")
        print(f"  CPU                 {used / count * 1e6:10.1f} us a span")
        print(f"  to record one       {recording / count * 1e6:10.1f} us")
        part, offset = RuntimePart(writer.store), 0
        cpu = time.process_time()
        while record := part.record(offset):
            part.request(record)
            offset += len(record)
        print(f"  read for a collector{(time.process_time() - cpu) / count * 1e6:10.1f} us a span")


def main() -> int:
    """Both tables."""
    store()
    forwarder()
    return 0


if __name__ == "__main__":
    sys.exit(main())
