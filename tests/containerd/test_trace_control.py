"""The trace of a shim's sandbox under control: by annotation, in a running sandbox, and after the shim's death."""

import json
import os
import re
import signal

import pytest

from kata_runtime.cli.control import ask
from kata_traces.store.store import Store
from support.containerd import eventually, shim_pid
from support.kata_containers import KataContainers

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

PREFIX = "io.katacontainers.config"


def test_a_pod_asks_for_its_trace(kata: KataContainers) -> None:
    annotations = (f"{PREFIX}.{side}.enable_tracing=true" for side in ("runtime", "agent"))
    options = tuple(word for annotation in annotations for word in ("--annotation", annotation))
    assert kata.run("asked", "true", options=options).returncode == 0
    assert kata.run("not-asked", "true").returncode == 0
    assert kata.trace("asked").services == ["kata", "kata-agent"]
    assert [path.name for path in (kata.artifacts / "traces").iterdir()] == ["asked"]


def test_what_is_not_allowed_is_refused(kata: KataContainers) -> None:
    configuration = kata.artifacts / "configuration.toml"
    configuration.write_text(configuration.read_text() + "[hypervisor.qemu]\nenable_annotations = []\n")
    done = kata.run("refused", "true", options=("--annotation", f"{PREFIX}.agent.enable_tracing=true"))
    assert done.returncode != 0
    assert b"agent.enable_tracing is not enabled" in done.stderr
    kata.nothing_remains()


def test_a_killed_shims_trace_is_closed_by_delete(kata: KataContainers) -> None:
    kata.tracing()
    kata.detached("victim", "sleep", "1000")
    store = Store(kata.artifacts / "traces" / "victim")
    # What ended in the last quarter of a second may be missing.
    eventually(lambda: b'"create"' in store.spans.read_bytes(), "the start is not in the store")
    os.kill(shim_pid(kata.containerd, "victim"), signal.SIGKILL)
    eventually(lambda: store.meta().outcome == "killed", "the trace of the killed shim stays open")
    trace = kata.trace("victim")
    assert trace.root.failed
    assert {"create", "StartVM"} <= {span.name for span in trace.spans if not span.failed}
    kata.tasks("delete", "--force", "victim", check=False)
    kata.nothing_remains()


def test_on_in_a_running_sandbox_and_ids_in_the_log(kata: KataContainers) -> None:
    kata.detached("box", "sleep", "1000")
    state = json.loads(ask("box", "PUT", "/tracing", body=b'{"runtime": true, "agent": true}'))
    assert (state["runtime"], state["agent"]) == (True, True)
    assert kata.exec("box", "e1", "true").returncode == 0
    kata.tasks("kill", "--signal", "SIGKILL", "box")
    kata.tasks("delete", "--force", "box", check=False)
    kata.nothing_remains()
    trace = kata.trace("box")
    assert trace.trace_id == state["trace_id"]
    assert {"Exec", "exec_process", "Delete", "rootSpan"} <= {span.name for span in trace.spans}
    lines = [line for line in kata.containerd.log.read_text().splitlines() if "source=runtime" in line]
    told = [line for line in lines if "sandbox=box" in line and "sandbox is" in line]
    assert told
    for line in told:
        assert re.search(rf"trace_id={trace.trace_id} span_id=[0-9a-f]{{16}}", line), line
