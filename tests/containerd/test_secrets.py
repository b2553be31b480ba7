"""What a container is given stays out of traces and logs, with everything switched on that could tell of it."""

import asyncio
import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from kata_protos.containerd import task_pb2 as task
from kata_runtime.cli.control import ask
from support.collectors import Collected, grpc_collector
from support.containerd import eventually
from support.kata_containers import KataContainers

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

WAYS = ("env", "args", "stdin", "stdout", "file", "annotation", "label", "exec-args", "exec-env", "missing")


@pytest.fixture
def canaries() -> dict[str, str]:
    """Another value for each way into a container, so that a leak says where it comes from."""
    return {way: f"canary-{way}-{secrets.token_hex(6)}" for way in WAYS}


@pytest.fixture
def collected() -> Iterator[Collected]:
    with grpc_collector() as collected:
        yield collected


def configure(kata: KataContainers, endpoint: str, *, tracing: bool) -> None:
    """Everything that could tell: all levels of logs as events, the finest trace; or what only memory holds."""
    on = json.dumps(tracing)
    (kata.artifacts / "configuration.toml").write_text(
        f'[runtime]\ntrace_dir = "{kata.artifacts}/traces"\nenable_tracing = {on}\ntrace_level = "detailed"\n'
        'trace_log_levels = ["debug", "info", "warning", "error"]\nenable_debug = true\n'
        f'otlp_endpoint = "{endpoint}"\nslow_start_threshold = 0.5\n'
        f"[agent.kata]\nenable_tracing = {on}\n"
    )


def live(kata: KataContainers, name: str, canaries: dict[str, str], directory: Path) -> None:
    """A container that meets every canary, and two execs; `directory` has the file and what they say."""
    (directory / "file").write_text(canaries["file"])
    # Not to the end of stdin, which ctr does not tell of where it comes before the task.
    script = f"env >/told/env; head -n 1 >/told/stdin; cat /told/file; echo {canaries['stdout']}; : {canaries['args']}"
    options = (
        *("--env", f"SECRET={canaries['env']}", "--annotation", f"secret={canaries['annotation']}"),
        *("--label", f"secret={canaries['label']}"),
        *("--mount", f"type=bind,src={directory},dst=/told,options=rbind:rw"),
    )
    done = kata.run(name, "sh", "-c", script, options=options, data=canaries["stdin"].encode() + b"\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split() == [canaries["file"] + canaries["stdout"]]
    assert canaries["env"] in (directory / "env").read_text()
    assert (directory / "stdin").read_text() == canaries["stdin"] + "\n"
    box = f"box-{name}"
    kata.detached(box, "sleep", "1000", options=options)
    assert kata.exec(box, "args", "sh", "-c", f": {canaries['exec-args']}; exit 3").returncode == 3
    assert kata.exec(box, "missing", "no-such-command", canaries["missing"]).returncode != 0
    asyncio.run(exec_with_env(kata, box, canaries["exec-env"]))
    assert canaries["exec-env"] in (directory / "exec").read_text()
    if name == "dark":
        assert json.loads(ask(box, "PUT", "/tracing", body=b'{"runtime": true, "agent": true}'))["agent"]
        # The slow start's trace has ended before the execs or with them: one more, which is traced on both sides.
        asyncio.run(exec_with_env(kata, box, canaries["exec-env"]))
    metrics = ask(box, "GET", "/metrics").decode()
    assert "Exec" in metrics
    assert found(metrics.encode(), canaries) == []
    kata.tasks("delete", "--force", box)
    kata.containerd.ctr("containers", "delete", box)
    kata.nothing_remains()


async def exec_with_env(kata: KataContainers, name: str, value: str) -> None:
    """`ctr` gives an exec no environment."""
    process = {
        "args": ["sh", "-c", "env >/told/exec"],
        "env": ["PATH=/bin", f"SECRET={value}"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    }
    spec = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=json.dumps(process).encode())
    await kata.call(name, "Exec", task.ExecProcessRequest(id=name, exec_id="env", spec=spec), Empty)
    await kata.call(name, "Start", task.StartRequest(id=name, exec_id="env"), task.StartResponse)
    ended = await kata.call(name, "Wait", task.WaitRequest(id=name, exec_id="env"), task.WaitResponse)
    assert ended.exit_status == 0
    await kata.call(name, "Delete", task.DeleteRequest(id=name, exec_id="env"), task.DeleteResponse)


def found(data: bytes, canaries: dict[str, str]) -> list[str]:
    """The ways whose canary is in `data`, plain, in hex or in base64."""
    return [way for way, value in canaries.items() if any(form in data for form in forms(value.encode()))]


def forms(value: bytes) -> list[bytes]:
    # In base64 it has three forms, by where it begins; the ends mix with what stands around them.
    encoded = [base64.b64encode(bytes(shift) + value)[4:-4] for shift in range(3)]
    return [value, value.hex().encode(), *encoded]


def test_the_search_finds_what_is_there() -> None:
    value = {"env": "canary-env-0123456789ab"}
    for data in (b"x" + value["env"].encode(), base64.b64encode(b"ab" + value["env"].encode() + b"c")):
        assert found(data, value) == ["env"]
    assert found(b"canary-env-", value) == []


@pytest.mark.parametrize("name", ["traced", "dark"])
def test_nothing_secret_is_told(
    kata: KataContainers, collected: Collected, canaries: dict[str, str], tmp_path: Path, name: str
) -> None:
    """`dark` is not traced: its trace is the flight recorders', which a slow start and `trace on` write out."""
    configure(kata, collected.endpoint, tracing=name == "traced")
    live(kata, name, canaries, tmp_path)
    for sandbox in (name, f"box-{name}"):
        trace = kata.trace(sandbox)
        assert trace.services == ["kata", "kata-agent"]
        told = {span.name for span in trace.spans}
        assert {"createContainer", "create_container", "start_container", "crun create"} <= told
        assert any(event.name == "log" for span in trace.spans for event in span.events)
        if sandbox.startswith("box-"):
            assert {"Exec", "exec_process"} <= told
        ids = {span.span_id for span in trace.spans}
        eventually(lambda ids=ids: len(ids) <= len(collected.names), "the collector gets no spans", seconds=60)  # type: ignore[misc]
    files = [path for path in kata.artifacts.rglob("*") if path.is_file()] + [kata.containerd.log]
    assert {"spans.jsonl", "console.log", "qmp.log"} <= {path.name for path in files}
    leaks = {str(path): ways for path in files if (ways := found(path.read_bytes(), canaries))}
    if ways := found(b"".join(collected.requests), canaries):
        leaks["collector"] = ways
    assert leaks == {}
