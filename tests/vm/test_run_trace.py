"""The trace of `kata-runtime run`: one trace, one root, whichever side is traced; and where it goes."""

import contextlib
import itertools
import json
import os
import select
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.image import DEFAULT_OUTPUT, Artifacts
from kata_traces.read.analysis import split
from kata_traces.read.trace import Trace, TraceSpan, load_store
from kata_traces.store.store import Store
from support.collectors import grpc_collector, http_collector
from support.kata import Kata
from support.rotel import rotel

pytestmark = pytest.mark.vm

MILLISECOND = 1_000_000


def the_trace(kata: Kata) -> Trace:
    """The only trace of this test, finished and whole."""
    (directory,) = (path for path in kata.trace_dir.iterdir() if path.is_dir())
    trace = load_store(Store(directory))
    assert trace is not None
    assert trace.meta.lost == {}
    assert trace.broken == trace.foreign == 0
    assert trace.orphans == []
    assert trace.negative() == []
    assert {span.name for span in trace.spans if span.open} == set()
    return trace


def ancestors(span: TraceSpan) -> list[str]:
    names = []
    while span.parent:
        span = span.parent
        names.append(span.name)
    return names


def one(trace: Trace, name: str, service: str = "") -> TraceSpan:
    (found,) = (span for span in trace.spans if span.name == name and service in ("", span.service))
    return found


def test_both_sides_make_one_trace(kata: Kata) -> None:
    assert kata.tracing(runtime=True, agent=True).run("sh", "-c", "echo hello; exit 7").returncode == 7
    trace = the_trace(kata)
    assert trace.root.name == "rootSpan"
    assert trace.root.service == "kata"
    assert trace.services == ["kata", "kata-agent"]
    assert len(trace.spans) >= 60
    assert trace.meta.outcome == "exit 7"
    for span in trace.spans:
        assert span.attributes["source"] == ("agent" if span.service == "kata-agent" else "runtime"), span
        assert span.attributes["sandbox_id"] == trace.meta.sandbox_id
        assert {"package", "subsystem"} <= span.attributes.keys(), span
    assert [str(misfit) for misfit in trace.misfits(MILLISECOND)] == []


def test_agent_calls_lie_under_the_runtimes(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).run("true")
    trace = the_trace(kata)
    calls = [span for span in trace.spans if span.service == "kata" and span.name.startswith("AgentService.")]
    served = [span for span in trace.spans if span.service == "kata-agent" and span.attributes["subsystem"] == "rpc"]
    assert len(served) >= 6
    for span in served:
        assert span.parent is not None
        assert span.parent in calls
        method = span.parent.name.removeprefix("AgentService.")
        assert span.name.replace("_", "") == method.lower()
    # Kata's own oracle (tests/functional/tracing, removed in 2026), for the calls that a run makes.
    assert "StartVM" in ancestors(one(trace, "setup_shared_namespaces"))
    chain = ["createSandboxFromConfig", "create", "rootSpan"]
    assert [name for name in ancestors(one(trace, "launchQemu")) if name in (*chain, "StartVM")] == ["StartVM", *chain]
    assert "Start" in ancestors(one(trace, "start_container"))
    assert ancestors(one(trace, "stopSandbox")) == ["Stop", "rootSpan"]
    assert one(trace, "create_container").attributes["container_id"] == trace.meta.sandbox_id


@pytest.mark.cold
def test_the_boot_is_told_in_stages(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).run("true")
    trace = the_trace(kata)
    boot = [one(trace, f"boot.{stage}") for stage in ("qemu", "firmware", "kernel", "initramfs", "agent")]
    for earlier, later in itertools.pairwise(boot):
        assert earlier.start < later.start
        assert earlier.end <= later.start + MILLISECOND
    assert abs(int(one(trace, "clockSync").attributes["bound_ns"])) < MILLISECOND


def test_little_is_unaccounted(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).run("true")
    shares = split(the_trace(kata))
    assert sum(shares.stages.values()) + shares.unaccounted == shares.total
    assert shares.unaccounted <= 0.05 * shares.total, shares.gaps[:3]


@pytest.mark.parametrize(("side", "service"), [("runtime", "kata"), ("agent", "kata-agent")])
def test_one_side_alone(kata: Kata, side: str, service: str) -> None:
    kata.tracing(runtime=side == "runtime", agent=side == "agent").run("true")
    trace = the_trace(kata)
    assert trace.services == [service]
    assert trace.root.name == "rootSpan"
    assert len({span.span_id for span in trace.spans if span.parent is None}) == 1
    assert trace.misfits(MILLISECOND) == []


def test_without_tracing_there_is_nothing(kata: Kata) -> None:
    kata.prologue = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    done = kata.run("true")
    assert done.returncode == 0
    assert not kata.trace_dir.exists()
    imported = done.stderr.decode().split()
    assert "kata_runtime.sandbox.sandbox" in imported
    assert not [name for name in imported if name.startswith("opentelemetry")]


def test_log_lines_say_which_sandbox_and_which_trace(kata: Kata, tmp_path: Path) -> None:
    kata.tracing(runtime=True, agent=False)
    log = tmp_path / "log"
    done = kata("--log", str(log), "--log-format", "json", "run", "--name", "told", "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, b"")  # what a person need not know is in the log
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["msg"] for record in records if record["name"] == "kata.sandbox"][-2:] == [
        "sandbox is stopping",
        "sandbox is stopped",
    ]
    (ended,) = (record for record in records if record["msg"] == "process ended")
    assert (ended["sandbox"], ended["container"], ended["status"]) == ("told", "told", 3)
    assert ended["trace_id"] == the_trace(kata).trace_id


def test_the_callers_trace_is_continued(kata: Kata) -> None:
    kata.environment["TRACEPARENT"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    kata.tracing(runtime=True, agent=True).run("true")
    trace = the_trace(kata)
    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert trace.root.parent_id == "b7ad6b7169203331"


def test_a_failed_boot_leaves_a_trace_with_the_error(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).configure("hypervisor.qemu", kernel_params="rdinit=/nowhere")
    assert kata.run("true").returncode == 125
    trace = the_trace(kata)
    assert trace.meta.outcome == "error"
    failed = {span.name for span in trace.spans if span.failed}
    assert {"rootSpan", "create", "StartVM"} <= failed
    assert "stopSandbox" not in failed


def test_no_secret_is_in_a_trace(kata: Kata, tmp_path: Path) -> None:
    """Nor in any log: not from environment, arguments, annotations, files, or what goes in and out."""
    canary = "canary-7f3a"
    image = Path(os.environ.get("KATA_IMAGE_DIR", DEFAULT_OUTPUT))
    shutil.copytree(Artifacts.at(image).default_rootfs, tmp_path / "rootfs", symlinks=True)
    (tmp_path / "rootfs/secret").write_text(canary)
    script = f"cat; cat /secret; echo {canary}; echo {canary} >&2; exit 3"
    process = {"args": ["sh", "-c", script], "env": ["PATH=/bin", f"SECRET={canary}"], "cwd": "/"}
    config = {
        "ociVersion": "1.0.2",
        "process": {**process, "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "annotations": {"secret": canary},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    kata.tracing(runtime=True, agent=True).configure("runtime", enable_debug=True)
    log = kata.logs_dir.parent / "runtime.log"
    done = kata("--log", str(log), "run", "-i", "--bundle", str(tmp_path), stdin=canary.encode())
    assert (done.returncode, done.stdout.count(canary.encode())) == (3, 3)
    assert "child starts" in log.read_text()  # it is a verbose one
    for path in [log, *kata.trace_dir.rglob("*"), *kata.logs_dir.rglob("*")]:
        assert path.is_dir() or canary.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_same_spans_arrive_at_a_collector(kata: Kata, tmp_path: Path, protocol: str) -> None:
    """rotel shares no code with us."""
    log = tmp_path / "rotel.log"
    with rotel(log) as endpoints:
        kata.tracing(runtime=True, agent=True)
        kata.configure("runtime", otlp_endpoint=endpoints[protocol], otlp_protocol=protocol).run("true")
        wait_for_exporter(kata)
        received = log.read_text()
    trace = the_trace(kata)
    assert trace.trace_id in received
    for span in trace.spans:
        assert span.span_id in received, span


@pytest.mark.parametrize("collector", [grpc_collector, http_collector])
def test_every_span_arrives_once(kata: Kata, collector: object) -> None:
    with collector() as collected:  # type: ignore[operator]
        protocol = "grpc" if collector is grpc_collector else "http/protobuf"
        kata.tracing(runtime=True, agent=True)
        kata.configure("runtime", otlp_endpoint=collected.endpoint, otlp_protocol=protocol).run("true")
        wait_for_exporter(kata)
        assert sorted(collected.names) == sorted(span.name for span in the_trace(kata).spans)


@contextlib.contextmanager
def silent_collector() -> Iterator[tuple[str, threading.Event]]:
    """Takes connections and never answers; the event says that somebody has connected."""
    connected, done = threading.Event(), threading.Event()
    held: list[socket.socket] = []

    def accept() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                held.append(listener.accept()[0])
                connected.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connected
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
        connection.close()


def test_a_collector_that_hangs_holds_nobody_up(kata: Kata) -> None:
    with silent_collector() as (endpoint, connected):
        kata.tracing(runtime=True, agent=True).configure("runtime", otlp_endpoint=endpoint, otlp_timeout=600.0)
        assert kata.run("sh", "-c", "echo hello; exit 7").returncode == 7
        # The run is over while the exporter still waits for its first answer.
        assert connected.wait(20)
        assert exporters(kata)
        assert len(the_trace(kata).spans) >= 60
        wait_for_exporter(kata)


def test_a_collector_that_is_away_holds_nobody_up(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True).configure("runtime", otlp_endpoint="http://127.0.0.1:1")
    done = kata.run("sh", "-c", "echo hello; exit 7")
    assert (done.stdout, done.returncode) == (b"hello\n", 7)
    shown = kata("trace", "show", "latest")
    assert b"rootSpan" in shown.stdout
    wait_for_exporter(kata)


def exporters(kata: Kata) -> list[int]:
    """Processes that export a store of this test."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and str(kata.trace_dir).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def wait_for_exporter(kata: Kata) -> None:
    """Wait until the exporter has ended by itself, which it does some seconds after the run."""
    for pid in exporters(kata):
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                assert select.select([fd], [], [], 60)[0]
            finally:
                os.close(fd)
