"""A trace under control: its root while the sandbox runs, levels, samplers, on and off, and the flight recorder."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata_runtime.cli.control import ask
from kata_traces.read.analysis import split
from kata_traces.read.check import Rules, check
from kata_traces.read.trace import Trace, TraceSpan, load_store
from kata_traces.store.store import Store
from support.collectors import Collected, grpc_collector
from support.kata import Kata
from support.processes import children

pytestmark = pytest.mark.vm

NAME = "pod"


@pytest.fixture
def running(kata: Kata) -> "Iterator[Running]":
    running = Running(kata)
    yield running
    running.stop()


class Running:
    """A sandbox whose workload runs until its stdin ends."""

    def __init__(self, kata: Kata) -> None:
        self.kata = kata
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = ("sh", "-c", "echo up; cat")
        self.child = child = self.kata.start("run", "--name", NAME, "-i", *options, "--", *command, **pipes)
        assert child.stdout is not None
        if child.stdout.readline() != b"up\n":
            pytest.fail(f"the sandbox did not start: {child.communicate()[1].decode()}")
        return child

    def end(self) -> str:
        """Let it end by itself; what it said to stderr."""
        assert self.child is not None
        _, errors = self.child.communicate(timeout=120)
        return errors.decode()

    def stop(self) -> None:
        """Whatever the test has found, nothing goes on."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.communicate(timeout=60)

    def kill(self, program: str) -> None:
        assert self.child is not None
        os.kill(children(self.child.pid)[program], signal.SIGKILL)

    def control(self, *arguments: str) -> str:
        done = self.kata(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


def the_trace(kata: Kata, name: str = NAME) -> Trace:
    """The sandbox's trace as a reader finds it, with all that holds for any trace."""
    store = Store(kata.trace_dir / name)
    trace = load_store(store)
    assert trace is not None
    assert trace.orphans == []
    assert trace.negative() == []
    assert trace.meta.lost == {}
    assert len({span.span_id for span in trace.spans}) == len(trace.spans)
    return trace


def named(trace: Trace, name: str) -> list[TraceSpan]:
    return [span for span in trace.spans if span.name == name]


def eventually(condition: Callable[[], object]) -> None:
    """A store is written some tenths of a second behind, and tells only its exporter."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def roots(collected: Collected) -> list[str]:
    return [name for name in collected.names if name == "rootSpan"]


def test_a_collector_has_the_root_while_the_sandbox_runs(running: Running) -> None:
    kata = running.kata.tracing(runtime=True, agent=True)
    with grpc_collector() as collected:
        kata.configure("runtime", trace_root="start", otlp_endpoint=collected.endpoint)
        running.start()
        assert collected.wait(lambda c: bool(roots(c)) and "start_container" in c.names, 60), collected.names
        live = the_trace(kata)
        assert live.live
        assert not live.root.open
        assert live.root.end <= min(span.start for span in named(live, "waitProcess"))
        running.end()
        trace = the_trace(kata)
        assert collected.wait(lambda c: len(c.names) >= len(trace.spans), 60)
        assert sorted(collected.names) == sorted(span.name for span in trace.spans)
    assert check(trace, Rules(unaccounted=100)) == []
    assert [span.name for span in trace.spans if span.open] == []
    lifetimes = {"sandbox", "process", "Wait", "waitProcess", "AgentService.WaitProcess", "stdio.stdout"}
    assert lifetimes <= {span.name for span in trace.spans}
    assert [span.name for span in trace.spans if span.parent and span.parent.name in lifetimes] == []
    # What came after the start lies beside it, in the same trace.
    (stop,) = named(trace, "Stop")
    assert stop.parent is trace.root
    assert stop.start > trace.root.end
    assert "first process" in kata("trace", "explain", NAME).stdout.decode()


@pytest.mark.parametrize("mode", ["lifetime", "start"])
def test_a_killed_runtime_leaves_a_whole_trace(running: Running, mode: str) -> None:
    kata = running.kata.tracing(runtime=True, agent=True)
    with grpc_collector() as collected:
        kata.configure("runtime", trace_root=mode, otlp_endpoint=collected.endpoint)
        child = running.start()
        assert collected.wait(lambda c: "startContainer" in c.names, 60)
        eventually(lambda: named(the_trace(kata), "process"))
        child.kill()
        child.communicate(timeout=30)
        # The exporter outlives the runtime and closes its store.
        assert collected.wait(lambda c: len(roots(c)) == 1 and "process" in c.names, 60), collected.names
        trace = the_trace(kata)
        assert collected.wait(lambda c: len(c.names) == len(trace.spans), 60), collected.names
    assert (trace.meta.outcome, trace.live) == ("killed", False)
    assert [span.name for span in trace.spans if span.open] == []
    cut_off = {span.name for span in trace.spans if span.failed}
    assert {"process", "rootSpan" if mode == "lifetime" else "sandbox"} <= cut_off
    assert ("rootSpan" in cut_off) is (mode == "lifetime")
    assert not {"create", "StartVM"} & cut_off
    assert kata.run("true").returncode == 0  # which also cleans up


def test_a_runtime_killed_without_a_collector_is_closed_by_the_next_run(running: Running) -> None:
    kata = running.kata.tracing(runtime=True, agent=True)
    child = running.start()
    eventually(lambda: named(the_trace(kata), "process"))
    child.kill()
    child.communicate(timeout=30)
    store = Store(kata.trace_dir / NAME)
    assert (store.meta().outcome, store.live) == ("", False)
    assert kata.run("true").returncode == 0
    assert store.meta().outcome == "killed"
    assert not store.open_spans.exists()
    assert the_trace(kata).root.failed


@pytest.mark.parametrize("mode", ["lifetime", "start"])
def test_a_killed_vm_is_an_error_on_what_was_going_on(running: Running, mode: str) -> None:
    kata = running.kata.tracing(runtime=True, agent=True).configure("runtime", trace_root=mode)
    running.start()
    running.kill("qemu-system-x86_64")
    assert "the VM ended while a container was running" in running.end()
    trace = the_trace(kata)
    assert trace.meta.outcome == "error"
    failed = {span.name for span in trace.spans if span.failed}
    assert {"Wait", "rootSpan" if mode == "lifetime" else "sandbox"} <= failed
    assert not {"create", "Start"} & failed


@pytest.mark.cold
def test_on_and_off_in_a_sandbox_that_began_without(running: Running) -> None:
    kata = running.kata
    running.start()
    assert not kata.trace_dir.exists()
    assert "runtime and agent" in running.control("trace", "on", NAME)
    (state,) = json.loads(running.control("trace", "list", "--format", "json"))
    assert state["live"]
    assert "neither side" in running.control("trace", "off")
    recorded = the_trace(kata)
    # The flight recorders had all of the start, on both sides.
    assert {"create", "StartVM", "boot.kernel", "create_container", "set_tracing"} <= {s.name for s in recorded.spans}
    assert {span.service for span in recorded.spans} == {"kata", "kata-agent"}
    assert [span.name for span in recorded.spans if span.open and span.duration < 0] == []
    assert "level detailed" in running.control("trace", "on", NAME, "--level", "detailed")
    running.end()
    trace = the_trace(kata)
    assert trace.trace_id == recorded.trace_id
    assert [span.name for span in trace.spans if span.open] == []
    assert len(named(trace, "set_tracing")) == 2  # that of "off" is in neither part
    assert {"Stop", "destroy_sandbox", "rootSpan"} <= {span.name for span in trace.spans}
    assert check(trace, Rules(unaccounted=100, services=("kata", "kata-agent"))) == []


@pytest.mark.cold
def test_on_without_a_flight_recorder_begins_with_a_root(running: Running) -> None:
    kata = running.kata.configure("runtime", flight_recorder=False)
    running.start()
    running.control("trace", "on", NAME)
    running.end()
    trace = the_trace(kata)
    assert trace.root.name == "rootSpan"
    names = {span.name for span in trace.spans}
    assert {"Stop", "destroy_sandbox"} <= names
    assert not {"create", "StartVM", "boot.kernel"} & names
    assert trace.misfits(1_000_000) == []


def test_who_asks_for_a_sandbox_that_is_not_there(kata: Kata) -> None:
    done = kata("trace", "on", "nowhere")
    assert done.returncode == 125
    assert b"no sandbox 'nowhere' is running" in done.stderr
    assert kata("trace", "off", "../x").returncode == 125


def test_levels(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True)
    spans: dict[str, set[str]] = {}
    stages: dict[str, set[str]] = {}
    for level in ("essential", "normal", "detailed"):
        kata.configure("runtime", trace_level=level).run("true", options=["--name", level])
        trace = the_trace(kata, level)
        assert check(trace, Rules()) == []
        assert trace.services == ["kata", "kata-agent"]
        spans[level] = {span.name for span in trace.spans}
        stages[level] = set(split(trace).stages)
    assert spans["essential"] < spans["normal"] < spans["detailed"]
    assert stages["essential"] == stages["normal"] == stages["detailed"]
    assert len(spans["essential"]) <= 0.75 * len(spans["normal"])


def test_a_sampler_that_says_no(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).configure("runtime", trace_sampler="always_off")
    assert kata.run("true").returncode == 0
    assert not kata.trace_dir.exists()


@pytest.mark.cold
def test_a_failed_start_is_traced_although_nobody_asked(kata: Kata) -> None:
    kata.configure("hypervisor.qemu", kernel_params="rdinit=/nowhere")
    done = kata.run("true", options=["--name", NAME])
    assert done.returncode == 125
    assert b"trace: kata-runtime trace show pod" in done.stderr
    trace = the_trace(kata)
    assert trace.meta.outcome == "error"
    assert {"rootSpan", "create", "StartVM", "waitVM"} <= {span.name for span in trace.spans if span.failed}
    assert [span.failed for span in named(trace, "boot.kernel")] == [True]


def test_a_container_that_can_not_be_made_is_traced_on_both_sides(kata: Kata, tmp_path: Path) -> None:
    spec = {
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}], "sysctl": {"kernel.nosuch": "1"}},
    }
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(spec))
    done = kata("run", "--name", NAME, "--bundle", str(tmp_path))
    assert done.returncode == 125, done.stderr
    assert b"trace: kata-runtime trace show pod" in done.stderr
    trace = the_trace(kata)
    assert trace.services == ["kata", "kata-agent"]
    assert {"create_container", "createContainer"} <= {span.name for span in trace.spans if span.failed}


@pytest.mark.cold
def test_a_slow_start_is_traced(running: Running) -> None:
    kata = running.kata.configure("runtime", slow_start_threshold=0.5)
    running.start()
    errors = running.end()
    assert "trace: kata-runtime trace show pod" in errors
    trace = the_trace(kata)
    assert {"StartVM", "create_container", "boot.kernel"} <= {span.name for span in trace.spans}
    assert [span.name for span in trace.spans if span.open] == []


def test_a_fast_start_is_not(kata: Kata) -> None:
    assert kata.configure("runtime", slow_start_threshold=600).run("true").returncode == 0
    assert not kata.trace_dir.exists()


def test_log_records_are_events(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).configure("runtime", trace_log_levels=["debug", "info"])
    done = kata.run("true", options=["--name", NAME])
    assert b"sandbox is ready" not in done.stderr  # the log itself is as it was
    events = [event for span in the_trace(kata).spans for event in span.events if event.name == "log"]
    assert {"sandbox is ready", "process ended"} <= {event.attributes["message"] for event in events}
    assert {event.attributes["severity"] for event in events} <= {"debug", "info"}


def test_metrics_of_a_running_sandbox(running: Running) -> None:
    kata = running.kata.tracing(runtime=True, agent=True)
    running.start()
    eventually(lambda: "kata-agent" in the_trace(kata).services)
    live = the_trace(kata)
    text = ask(NAME, "GET", "/metrics").decode()
    labels = f'operation="createSandbox",sandbox_id="{NAME}",service="kata"'
    assert f"kata_span_duration_seconds_count{{{labels}}} 1.0" in text
    assert "kata-agent" in text
    examples = ask(NAME, "GET", "/metrics", headers={"Accept": "application/openmetrics-text"}).decode()
    assert f'trace_id="{live.trace_id}"' in examples
    assert examples.endswith("# EOF\n")
    assert ask(NAME, "GET", "/agent-url").decode().endswith(":1024")
    running.end()
