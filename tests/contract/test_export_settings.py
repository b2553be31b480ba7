"""Each OTEL_EXPORTER_OTLP_* variable and each key `otlp_…`, as they reach a collector: through the sandbox's trace, its
exporter's process, and `trace push`, which must find nothing left to send.
"""

import base64
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.sandbox.trace import SandboxTrace
from kata_traces.send.ledger import load_progress
from kata_traces.store.store import Store
from support.collectors import Collected, grpc_collector, http_collector

pytestmark = pytest.mark.slow

G, T = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"
Fake = Callable[..., AbstractContextManager[Collected]]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    # What is announced while a trace is on ends with the test.
    monkeypatch.setenv("OTEL_PYTHON_CONTEXT", "contextvars_context")
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "default_tracer_provider")
    yield
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]  # not by monkeypatch, which would bring it back


def run(directory: Path, variables: dict[str, str], **keys: Any) -> tuple[Store, int | None]:
    """A sandbox's trace from its begin to its end, and its exporter's exit status; None where there is none."""
    os.environ.update(variables)
    runtime = RuntimeConfig(enable_tracing=True, trace_dir=str(directory / "traces"), **keys)
    trace = SandboxTrace.open(Config(QemuConfig(), AgentConfig(), runtime), "s1", command="test")
    trace.started()
    trace.close("exit 0")
    store = Store(directory / "traces" / "s1")
    link = trace._store._link
    if link is None:
        return store, None
    _, status = os.waitpid(link.pid, 0)
    link._reaped = True
    return store, os.waitstatus_to_exitcode(status)


def push(directory: Path, **keys: Any) -> str:
    """`kata-runtime trace push` with the same environment and configuration."""
    said = {"trace_dir": str(directory / "traces"), **keys}
    # An inline table is JSON's object with another sign.
    lines = [f"{key} = " + json.dumps(value).replace('": ', '" = ') for key, value in said.items()]
    (directory / "configuration.toml").write_text("\n".join(["[runtime]", *lines]))
    program = Path(sys.executable).with_name("kata-runtime")
    command = [str(program), "--config", str(directory / "configuration.toml"), "trace", "push", "s1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


CASES = [
    # fake, variables and keys with {c} for the collector's URL and {hp} for its HOST:PORT, then what it saw
    (http_collector, {G + "ENDPOINT": "{c}", G + "PROTOCOL": "http/protobuf"}, {}, {":path": "/v1/traces"}),
    (http_collector, {G + "ENDPOINT": "{c}/", G + "PROTOCOL": "http/protobuf"}, {}, {":path": "/v1/traces"}),
    (http_collector, {T + "ENDPOINT": "{c}/v1/traces", T + "PROTOCOL": "http/protobuf"}, {}, {":path": "/v1/traces"}),
    (
        http_collector,
        {G + "ENDPOINT": "http://127.0.0.1:1", T + "ENDPOINT": "{c}/v1/traces", G + "PROTOCOL": "http/protobuf"},
        {},
        {":path": "/v1/traces"},
    ),
    (http_collector, {G + "PROTOCOL": "grpc", T + "PROTOCOL": "http/protobuf", G + "ENDPOINT": "{c}"}, {}, {}),
    # The configuration says where, the environment how: its defaults hide nothing.
    (http_collector, {G + "PROTOCOL": "http/protobuf"}, {"otlp_endpoint": "{c}"}, {":path": "/v1/traces"}),
    (http_collector, {G + "PROTOCOL": "grpc"}, {"otlp_endpoint": "{c}", "otlp_protocol": "http/protobuf"}, {}),
    (grpc_collector, {G + "ENDPOINT": "{c}"}, {}, {}),
    (grpc_collector, {G + "ENDPOINT": "{c}", G + "PROTOCOL": "grpc"}, {}, {}),
    (grpc_collector, {G + "ENDPOINT": "{hp}", G + "INSECURE": "true"}, {}, {}),
    (grpc_collector, {T + "ENDPOINT": "{hp}", T + "INSECURE": "true", G + "INSECURE": "false"}, {}, {}),
    (
        http_collector,
        {G + "ENDPOINT": "{c}", G + "PROTOCOL": "http/protobuf", G + "HEADERS": "a=1%202,Authorization=Bearer%20x"},
        {},
        {"a": "1 2", "authorization": "Bearer x"},
    ),
    (grpc_collector, {G + "ENDPOINT": "{c}", G + "HEADERS": "a=1,b=2", T + "HEADERS": "b=3%2C"}, {}, {"b": "3,"}),
    (
        http_collector,
        {G + "PROTOCOL": "http/protobuf", G + "HEADERS": "a=1"},
        {"otlp_endpoint": "{c}", "otlp_headers": {"a": "5 %"}},
        {"a": "5 %"},
    ),
    (
        http_collector,
        {G + "ENDPOINT": "{c}", G + "PROTOCOL": "http/protobuf", G + "COMPRESSION": "gzip"},
        {},
        {"content-encoding": "gzip"},
    ),
    (
        http_collector,
        {G + "ENDPOINT": "{c}", G + "PROTOCOL": "http/protobuf", G + "COMPRESSION": "gzip", T + "COMPRESSION": "none"},
        {},
        {"content-encoding": None},
    ),
    (grpc_collector, {G + "ENDPOINT": "{c}", G + "COMPRESSION": "gzip"}, {}, {}),
    (
        http_collector,
        {G + "ENDPOINT": "http://me:s%20t@{hp}", G + "PROTOCOL": "http/protobuf"},
        {},
        {"authorization": f"Basic {base64.b64encode(b'me:s t').decode()}"},
    ),
    (
        http_collector,
        {G + "PROTOCOL": "http/protobuf"},
        {"otlp_endpoint": "http://me:st@{hp}"},
        {"authorization": f"Basic {base64.b64encode(b'me:st').decode()}"},
    ),
    (http_collector, {G + "ENDPOINT": "{c}", G + "PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "otlp"}, {}, {}),
]


def number(case: Any) -> str:
    return "-".join([*(name.removeprefix(G) for name in case[1]), *case[2]]) or "none"


@pytest.mark.parametrize(("fake", "variables", "keys", "seen"), CASES, ids=map(number, CASES))
def test_settings_as_they_arrive(
    tmp_path: Path, fake: Fake, variables: dict[str, str], keys: dict[str, Any], seen: dict[str, str | None]
) -> None:
    with fake() as collected:
        known = {"c": collected.endpoint, "hp": collected.endpoint.partition("//")[2]}
        variables = {name: value.format(**known) for name, value in variables.items()}
        keys = {name: value.format(**known) if isinstance(value, str) else value for name, value in keys.items()}
        store, status = run(tmp_path, variables, **keys)
        assert (status, collected.names) == (0, ["rootSpan"])
        assert {name: collected.headers[0].get(name) for name in seen} == seen
        # One collector is one target, whichever way it is asked for.
        assert len(load_progress(store)) == 1
        assert "0 spans sent to" in push(tmp_path, **keys)
        assert collected.names == ["rootSpan"]


@pytest.mark.parametrize(
    ("variables", "keys", "said"),
    [
        ({G + "PROTOCOL": "http/json"}, {}, G + "PROTOCOL: 'http/json' is none of grpc, http/protobuf"),
        ({T + "COMPRESSION": "zstd"}, {}, T + "COMPRESSION: 'zstd' is none of none, gzip"),
        ({G + "TIMEOUT": "soon"}, {}, G + "TIMEOUT: 'soon' is no number of milliseconds"),
        ({G + "INSECURE": "1"}, {}, G + "INSECURE: '1' is none of true, false"),
        ({G + "HEADERS": "secret"}, {}, G + "HEADERS: is no list of name=value pairs"),
        ({G + "CERTIFICATE": "/nowhere.pem", G + "ENDPOINT": "https://c:4318"}, {}, "/nowhere.pem"),
        ({G + "ENDPOINT": "tcp://c"}, {}, G + "ENDPOINT: 'tcp://c' is no URL"),
        ({G + "ENDPOINT": "http://me:secret@c:4317"}, {}, G + "ENDPOINT: a user and password in the URL have no place"),
        ({}, {"otlp_endpoint": "c:4317"}, "[runtime] otlp_endpoint: 'c:4317' is no URL"),
        ({"OTEL_TRACES_EXPORTER": "zipkyn"}, {}, "OTEL_TRACES_EXPORTER: 'zipkyn' is no exporter"),
    ],
)
def test_what_cannot_work_is_a_warning_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, variables: dict[str, str], keys: dict[str, Any], said: str
) -> None:
    with caplog.at_level(logging.WARNING, "kata"):
        store, status = run(tmp_path, {G + "ENDPOINT": "http://127.0.0.1:1", **variables}, **keys)
    log = store.directory / "export.log"
    told = caplog.text + (log.read_text() if log.exists() else "")
    assert said in told
    assert "secret" not in told
    assert status in (None, 64)
    assert said in push(tmp_path, **keys)
    assert store.spans.read_bytes()  # the trace is kept all the same


@pytest.mark.parametrize(
    ("fake", "protocol"),
    [pytest.param(grpc_collector, "grpc", id="grpc"), pytest.param(http_collector, "http/protobuf", id="http")],
)
def test_certificates(tmp_path: Path, pki: Path, fake: Fake, protocol: str) -> None:
    names = {"CERTIFICATE": "ca.pem", "CLIENT_CERTIFICATE": "client.pem", "CLIENT_KEY": "client.key"}
    variables = {prefix + name: str(pki / file) for name, file in names.items() for prefix in (G, T)}
    variables[G + "CERTIFICATE"] = "/nowhere.pem"  # the one for traces wins
    with fake(tls=pki) as collected:
        _, status = run(tmp_path, {**variables, G + "ENDPOINT": collected.endpoint, G + "PROTOCOL": protocol})
        assert (status, collected.names) == (0, ["rootSpan"])
        assert "0 spans sent to" in push(tmp_path)


@pytest.mark.parametrize("names", ["none", "none "])
def test_none_is_nobody(tmp_path: Path, names: str) -> None:
    with http_collector() as collected:
        _, status = run(tmp_path, {G + "ENDPOINT": collected.endpoint, "OTEL_TRACES_EXPORTER": names})
        assert (status, collected.requests) == (None, [])


def test_the_timeout_is_in_milliseconds(tmp_path: Path) -> None:
    with grpc_collector("hang") as collected:
        started = time.monotonic()
        store, status = run(tmp_path, {G + "ENDPOINT": collected.endpoint, G + "TIMEOUT": "500"})
        assert status == 0
        # The first attempt hangs for half a second, not for 500 s, nor to the end of the exporter's grace.
        assert 0.5 < time.monotonic() - started < 8
        [progress] = load_progress(store).values()
        assert progress.spans == 1


def test_a_disabled_sdk_traces_nothing(tmp_path: Path) -> None:
    with http_collector() as collected:
        store, status = run(tmp_path, {G + "ENDPOINT": collected.endpoint, "OTEL_SDK_DISABLED": "True"})
        assert (status, collected.requests, store.directory.exists()) == (None, [], False)
