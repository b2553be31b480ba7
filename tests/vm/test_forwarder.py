"""The article's steps: both keys true, a collector, `kata-trace-forwarder -l trace`, a container."""

import contextlib
import os
import re
import select
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kata_telemetry import otlp
from kata_traces.forwarder.courier import left
from kata_traces.read.trace import Trace, load_store
from kata_traces.send.settings import CollectorSettings
from kata_traces.store.announce import Announcement
from kata_traces.store.store import Store
from support.collectors import free_port, grpc_collector
from support.forwarder_process import forwarder_process
from support.kata import Kata
from support.rotel import rotel
from support.running import Running

pytestmark = pytest.mark.vm

MILLISECOND = 1_000_000


def whole(store: Store) -> Trace:
    trace = load_store(store)
    assert trace is not None
    assert trace.meta.lost == {}
    assert trace.broken == trace.foreign == 0
    assert trace.orphans == []
    assert {span.name for span in trace.spans if span.open} == set()
    return trace


def options(kata: Kata, name: str) -> list[str]:
    """For a forwarder that serves the sandboxes whose ids begin with `name`: other tests' have other forwarders."""
    return ["--socket-path", f"/run/kata/{name}-{{ID}}/ports/vsock.sock", "--trace-dir", str(kata.trace_dir)]


def prefix() -> str:
    return f"fw{os.getpid()}"


def forwarding(kata: Kata, endpoint: str) -> None:
    kata.tracing(runtime=True, agent=True).configure("agent.kata", trace_transport="forwarder")
    kata.configure("runtime", otlp_endpoint=endpoint)


def test_the_articles_steps(kata: Kata, artifacts: Path) -> None:
    """With rotel, which shares no code with us, as the collector."""
    log, name = artifacts / "rotel.log", f"{prefix()}-1"
    with rotel(log) as endpoints:
        forwarding(kata, endpoints["grpc"])
        arguments = ["-l", "trace", "--otlp-endpoint", endpoints["grpc"], *options(kata, prefix())]
        with forwarder_process(artifacts / "forwarder.log", *arguments) as forwarder:
            done = kata.run("sh", "-c", "echo hello; exit 7", options=["--name", name])
            assert (done.stdout, done.returncode) == (b"hello\n", 7)
            assert forwarder.stop() == 0
        await_exporters(kata)
        received = log.read_text()
    trace = whole(Store(kata.trace_dir / name))
    assert (trace.root.name, trace.root.service) == ("rootSpan", "kata")
    assert trace.services == ["kata", "kata-agent"]
    assert len(trace.spans) >= 60
    assert [str(misfit) for misfit in trace.misfits(MILLISECOND)] == []
    # All of the agent's came by the forwarder, none by the runtime.
    assert b'"kata-agent"' not in (kata.trace_dir / name / "spans.jsonl").read_bytes()
    assert sum(span.service == "kata-agent" for span in trace.spans) >= 20
    for span in trace.spans:
        assert len(re.findall(rf"\bID\s*: {span.span_id}\b", re.sub(r"Parent ID\s*:", "Above:", received))) == 1, span


@pytest.mark.parametrize("ended", ["stopped", "killed"])
def test_every_span_arrives_and_the_forwarder_may_be_restarted(kata: Kata, artifacts: Path, ended: str) -> None:
    """A killed one may repeat what it was just told had arrived; nobody repeats or loses anything else."""
    name = f"{prefix()}-{ended}"
    with grpc_collector() as collected:
        forwarding(kata, collected.endpoint)
        arguments = ["-l", "debug", "--otlp-endpoint", collected.endpoint, *options(kata, prefix())]
        script = "echo up; read line; exit 0"
        running = kata.start(
            "run", "-i", "--name", name, "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert running.stdout
        with running, forwarder_process(artifacts / "first.log", *arguments) as first:
            assert running.stdout.readline() == b"up\n"
            assert collected.wait(lambda c: any("create_sandbox" in names(data) for data in c.requests), 60)
            if ended == "killed":
                first.process.kill()
                first.process.wait()
            else:
                assert first.stop() == 0
            before = collected.span_ids
            with forwarder_process(artifacts / "second.log", *arguments) as second:
                running.communicate(b"\n", timeout=60)
                assert running.returncode == 0
                assert second.stop() == 0
        await_exporters(kata)
        trace = whole(Store(kata.trace_dir / name))
        assert trace.services == ["kata", "kata-agent"]
        arrived, expected = collected.span_ids, Counter(span.span_id for span in trace.spans)
        assert set(arrived) == set(expected)
        assert arrived == expected or (ended == "killed" and arrived - expected <= before)


def names(data: bytes) -> list[str]:
    return [s.name for r in otlp.parse(data).resource_spans for scope in r.scope_spans for s in scope.spans]


def test_without_a_forwarder_the_runtime_takes_the_agents_spans_at_the_end(kata: Kata) -> None:
    forwarding(kata, "")
    assert kata.run("true", options=["--name", f"{prefix()}-3"]).returncode == 0
    trace = whole(Store(kata.trace_dir / f"{prefix()}-3"))
    assert trace.services == ["kata", "kata-agent"]
    assert len(trace.spans) >= 60


def test_the_agent_alone(kata: Kata, artifacts: Path) -> None:
    name = f"{prefix()}-4"
    forwarding(kata, "")
    kata.tracing(runtime=False, agent=True)
    arguments = ["--otlp-endpoint", "http://127.0.0.1:1", *options(kata, prefix())]
    with forwarder_process(artifacts / "forwarder.log", *arguments) as forwarder:
        assert kata.run("true", options=["--name", name]).returncode == 0
        assert forwarder.stop() == 0
    trace = whole(Store(kata.trace_dir / name))
    assert (trace.services, trace.root.name) == (["kata-agent"], "rootSpan")


def test_switched_on_in_a_running_sandbox(kata: Kata, artifacts: Path) -> None:
    """The forwarder takes the agent's spans then, too; when it has gone, off does not wait for it, and on goes on."""
    name = f"{prefix()}-5"
    kata.configure("agent.kata", trace_transport="forwarder")
    arguments = ["--otlp-endpoint", "http://127.0.0.1:1", *options(kata, prefix())]
    store = Store(kata.trace_dir / name)

    def control(verb: str) -> None:
        done = kata("trace", verb, name)
        assert done.returncode == 0, done.stderr

    with Running.shell(kata, name) as sandbox:
        with forwarder_process(artifacts / "forwarder.log", *arguments) as forwarder:
            assert Announcement.read(Path("/run/kata", name)) is None
            control("on")
            said = Announcement.read(Path("/run/kata", name))
            assert said is not None
            assert (said.sandbox_id, said.store) == (name, str(store.directory))
            control("off")
            assert forwarder.stop() == 0
        assert b'"kata-agent"' not in store.spans.read_bytes()
        live = load_store(store)
        assert live is not None
        # The flight recorder's, too.
        assert {"create_sandbox", "start_container"} <= {span.name for span in live.spans}
        control("on")
        begin = time.monotonic()
        control("off")
        assert time.monotonic() - begin < 10  # it would be 15
        assert b'"kata-agent"' in store.spans.read_bytes()
        control("on")
        assert sandbox.finish()[0] == 0
    trace = whole(store)
    names = [span.name for span in trace.spans]
    assert names.count("set_tracing") == 3  # those of "off" are in no part
    assert {"destroy_sandbox", "remove_container"} <= set(names)
    assert len({span.span_id for span in trace.spans}) == len(names)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_collector_that_was_down_for_twenty_sandboxes(kata: Kata, artifacts: Path) -> None:
    """Every other one with the forwarder. Then the collector is there: each span arrives once."""
    port = free_port()
    forwarding(kata, f"http://127.0.0.1:{port}")
    other = Kata(artifacts / "by-runtime")
    other.directory.mkdir()
    other.tracing(runtime=True, agent=True)
    other.configure("runtime", otlp_endpoint=f"http://127.0.0.1:{port}", trace_dir=str(kata.trace_dir))
    settings = CollectorSettings(f"http://127.0.0.1:{port}", "grpc")
    ids = [f"{prefix()}-d{number}" for number in range(20)]

    def run(number: int) -> int:
        chosen = kata if number % 2 else other
        return chosen.run("true", options=["--name", ids[number]], timeout=300).returncode

    arguments = ["--otlp-endpoint", f"http://127.0.0.1:{port}", *options(kata, prefix())]
    with forwarder_process(artifacts / "forwarder.log", *arguments) as forwarder:
        with ThreadPoolExecutor(2) as two:
            assert list(two.map(run, range(20))) == [0] * 20
        await_exporters(kata)
        await_exporters(other)
        expected = Counter[str]()
        for sandbox_id in ids:
            expected.update(span.span_id for span in whole(Store(kata.trace_dir / sandbox_id)).spans)
        assert len(expected) >= 20 * 60
        with grpc_collector(port=port) as collected:
            # The forwarder comes by itself, within its longest pause; what the runtimes left is pushed.
            forwarded = [Store(kata.trace_dir / sandbox_id) for sandbox_id in ids[1::2]]
            assert collected.wait(lambda _: not any(left(store, settings) for store in forwarded), 60)
            for _ in range(2):
                pushed = kata("trace", "push", "--all")
                assert pushed.returncode == 0, pushed.stderr
            assert forwarder.stop() == 0
            assert collected.span_ids == expected


def await_exporters(kata: Kata) -> None:
    """Until the processes that export this test's stores have ended by themselves."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"kata_traces.send.exporter" not in command or str(kata.trace_dir).encode() not in command:
                continue
            fd = os.pidfd_open(int(process.name))
            try:
                assert select.select([fd], [], [], 60)[0]
            finally:
                os.close(fd)
