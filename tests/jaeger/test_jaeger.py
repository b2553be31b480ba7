"""A container's trace as Jaeger has it: sent by OTLP, read back through Jaeger's own API. `nox -s jaeger`."""

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaeger.build import binary
from support.collectors import free_port
from support.forwarder_process import forwarder_process
from support.kata import Kata

pytestmark = [pytest.mark.vm, pytest.mark.slow]


class Jaeger:
    """One that runs, with its traces in memory."""

    def __init__(self) -> None:
        self.ports = {name: free_port() for name in ("otlp", "otlp-http", "query", "query-grpc", "admin", "c1", "c2")}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['otlp']}"

    @contextlib.contextmanager
    def running(self, log: Path) -> Iterator["Jaeger"]:
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        command = [
            str(binary()),
            f"--collector.otlp.grpc.host-port={at['otlp']}",
            f"--collector.otlp.http.host-port={at['otlp-http']}",
            f"--query.http-server.host-port={at['query']}",
            f"--query.grpc-server.host-port={at['query-grpc']}",
            f"--admin.http.host-port={at['admin']}",
            f"--collector.grpc-server.host-port={at['c1']}",
            f"--collector.http-server.host-port={at['c2']}",
        ]
        environment = {**os.environ, "SPAN_STORAGE_TYPE": "memory"}
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, env=environment) as child,
        ):
            try:
                self.until(lambda: self.get("services"))
                yield self
            finally:
                child.terminate()

    def get(self, path: str) -> Any:
        """What the API has under `path`; None where it does not answer, or has nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['query']}/api/{path}", timeout=10) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None

    def until(self, condition: Any, seconds: float = 60) -> Any:
        """Ask again until there is an answer: Jaeger tells nobody of what has come."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return found

    def trace(self, trace_id: str, spans: int) -> Any:
        """A trace, when it has that many spans."""

        def look() -> Any:
            found = self.get(f"traces/{trace_id}")
            return found["data"][0] if found and len(found["data"][0]["spans"]) >= spans else None

        return self.until(look)


def well_formed(trace: Any) -> dict[str, Any]:
    """Spans by id, of a trace on whose page Jaeger would show no warning: each once, one root, no parent missing."""
    spans = {span["spanID"]: span for span in trace["spans"]}
    assert len(spans) == len(trace["spans"])
    # Clock skew, invalid parents, duplicate ids.
    assert [(span["operationName"], span["warnings"]) for span in spans.values() if span["warnings"]] == []
    assert not trace["warnings"]
    assert [span["operationName"] for span in spans.values() if not span["references"]] == ["rootSpan"]
    for span in spans.values():
        for reference in span["references"]:
            assert reference["spanID"] in spans, span["operationName"]
    return spans


@pytest.mark.parametrize("transport", ["runtime", "forwarder"])
def test_jaeger_has_the_trace(kata: Kata, artifacts: Path, transport: str) -> None:
    name = f"jg{os.getpid()}-{transport}"
    with Jaeger().running(artifacts / "jaeger.log") as jaeger, contextlib.ExitStack() as stack:
        kata.tracing(runtime=True, agent=True).configure("agent.kata", trace_transport=transport)
        kata.configure("runtime", otlp_endpoint=jaeger.endpoint)
        if transport == "forwarder":
            path = f"/run/kata/jg{os.getpid()}-{{ID}}/ports/vsock.sock"
            options = ["--socket-path", path, "--trace-dir", str(kata.trace_dir), "--otlp-endpoint", jaeger.endpoint]
            stack.enter_context(forwarder_process(artifacts / "forwarder.log", "-l", "trace", *options))
        assert kata.run("sh", "-c", "echo hello; exit 7", options=["--name", name]).returncode == 7
        by_runtime = b'"kata-agent"' in (kata.trace_dir / name / "spans.jsonl").read_bytes()
        assert by_runtime == (transport == "runtime")
        shown = json.loads(kata("trace", "show", "--format", "json", name).stdout)
        trace = jaeger.trace(shown["trace_id"], len(shown["spans"]))
        (artifacts / "jaeger.json").write_text(json.dumps(trace, indent=1))
        spans = well_formed(trace)
        assert len(spans) == len(shown["spans"])
        assert len(spans) >= 65
        services = {process["serviceName"] for process in trace["processes"].values()}
        assert services == {"kata", "kata-agent"}
        assert set(jaeger.get("services")["data"]) >= services
        found = jaeger.get("traces?service=kata&operation=rootSpan&limit=5")["data"]
        assert [each["traceID"] for each in found] == [shown["trace_id"]]


def test_jaeger_shows_a_sandbox_that_runs(kata: Kata, artifacts: Path) -> None:
    name = f"jg{os.getpid()}-live"
    with Jaeger().running(artifacts / "jaeger.log") as jaeger:
        kata.tracing(runtime=True, agent=True)
        kata.configure("runtime", otlp_endpoint=jaeger.endpoint, trace_root="start")
        with kata.start("run", "-i", "--name", name, "--", "cat", stdin=subprocess.PIPE) as child:

            def live() -> Any:
                """The trace as a page would find it, by its root, once the container runs."""
                found = jaeger.get("traces?service=kata&operation=rootSpan")
                names = {span["operationName"] for each in found["data"] for span in each["spans"]} if found else set()
                return found["data"][0] if "start_container" in names else None

            running = well_formed(jaeger.until(live))
            assert child.poll() is None
            assert child.stdin
            child.stdin.close()
            assert child.wait(60) == 0
        shown = json.loads(kata("trace", "show", "--format", "json", name).stdout)
        ended = well_formed(jaeger.trace(shown["trace_id"], len(shown["spans"])))
        assert len(ended) == len(shown["spans"])
        assert set(running) < set(ended)
