"""`kata-monitor` and `kata-runtime metrics` in front of a real sandbox that is not traced."""

import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from kata_runtime.cli.control import ask
from kata_runtime.errors import SandboxError
from support.kata import Kata
from support.promtool import lint

pytestmark = pytest.mark.vm

NAME = "watched"


@contextmanager
def sandbox(kata: Kata) -> Iterator[None]:
    """One that waits for the end of its stdin."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with kata.start("run", "--name", NAME, "-i", "--", "sh", "-c", "echo up; cat", **pipes) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            yield
        finally:
            child.communicate(timeout=60)


@contextmanager
def monitor() -> Iterator[str]:
    """One on a port of its own; its URL."""
    program = Path(Kata.program).with_name("kata-monitor")
    command = [str(program), "--listen-address", "127.0.0.1:0", "--runtime-endpoint", "/nowhere"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            said = child.stderr.readline()
            address = re.search(r"address=\"?(127\.0\.0\.1:\d+)", said)
            assert address is not None, said
            yield f"http://{address[1]}"
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=20) == 0


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def test_a_sandbox_that_is_not_traced(kata: Kata) -> None:
    with monitor() as url:
        assert lint(get(f"{url}/metrics")) == []
        with sandbox(kata):
            text = get(f"{url}/metrics")
            assert lint(text) == []
            found = {family.name: family.samples for family in parse(text)}
            assert found["kata_monitor_running_shim_count"][0].value == 1
            memory = {s.labels["item"]: s.value for s in found["kata_hypervisor_proc_status"]}
            # The guest's kernel and agent at least (KiB).
            assert 50_000 < memory["vmrss"] < 4_000_000
            assert found["kata_hypervisor_threads"][0].value > 1
            assert found["kata_shim_process_resident_memory_bytes"][0].value > 10_000_000
            calls = {s.labels["action"] for s in found["kata_shim_agent_rpc_durations_histogram_milliseconds"]}
            assert {"grpc.CreateSandboxRequest", "grpc.CreateContainerRequest", "grpc.StartContainerRequest"} <= calls
            assert {s.labels["sandbox_id"] for s in found["kata_shim_threads"]} == {NAME}
            assert get(f"{url}/sandboxes") == f"{NAME}\n"
            assert "vsock" in get(f"{url}/agent-url?sandbox={NAME}")
            of_command = kata("metrics", NAME)
            assert b"kata_hypervisor_proc_status" in of_command.stdout, of_command.stderr
            # What the guest says of itself: its kernel's view of the VM's memory.
            guest = {s.labels["item"].lower(): s.value for s in found["kata_guest_meminfo"]}
            assert 100 << 20 < guest["memtotal"] <= 4 << 30
            assert found["kata_agent_metrics_left_out"][0].value == 0
            with pytest.raises(SandboxError, match="/debug/pprof"):
                ask(NAME, "GET", "/debug/pprof")
        assert get(f"{url}/sandboxes") == ""
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}/metrics?sandbox={NAME}")
