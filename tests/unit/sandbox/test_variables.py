"""What OpenTelemetry's variables say of a sandbox's trace."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.config.model import RuntimeConfig
from kata_runtime.errors import ConfigError
from kata_runtime.sandbox.trace import variables
from kata_telemetry.span import Site, SpanContext, Tracer
from kata_traces.sdk import propagators
from support.packages import install

site = Site(package="test", subsystem="unit")
W3C = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
OTHER = ("x-trace", "c:d")
OURS, THEIRS = SpanContext(int("a" * 32, 16), int("b" * 16, 16), 1), SpanContext(12, 13, 1)


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith(("OTEL_", "TRACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_PYTHON_CONTEXT", "contextvars_context")
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "default_tracer_provider")
    propagators._foreign.cache_clear()
    yield
    sys.modules.pop("somebody_elses", None)


@pytest.mark.parametrize(
    ("text", "disabled"), [("true", True), ("TRUE", True), ("1", False), ("", False), ("yes", False)]
)
def test_disabled(monkeypatch: pytest.MonkeyPatch, text: str, disabled: bool) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", text)
    assert variables.disabled() is disabled


@pytest.mark.parametrize(
    ("name", "argument", "parent", "kept"),
    [
        ("", "", None, True),
        ("", "", OURS._replace(flags=0), False),
        ("always_off", "", None, False),
        ("traceidratio", "0", None, False),
        ("told", "yes", None, True),
        ("told", "no", None, False),
        ("told", "", OURS, False),
    ],
)
def test_samplers(
    monkeypatch: pytest.MonkeyPatch, name: str, argument: str, parent: SpanContext | None, kept: bool
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    root = site.root(Tracer("kata", lambda _: None), "rootSpan", parent=parent)
    assert variables.sampled(RuntimeConfig(), root, parent) is kept


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [
        ("nobodys", "", "OTEL_TRACES_SAMPLER: 'nobodys' is no sampler of an installed package; there are always_off"),
        ("told", "broken", "OTEL_TRACES_SAMPLER: 'told': RuntimeError: no such share"),
        ("traceidratio", "2", "OTEL_TRACES_SAMPLER_ARG: '2' is no number from 0 to 1"),
    ],
)
def test_a_sampler_that_cannot_work_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, argument: str, said: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    root = site.root(Tracer("kata", lambda _: None), "rootSpan")
    assert variables.sampled(RuntimeConfig(), root, None)
    assert said in caplog.text


def test_the_configurations_sampler_goes_before_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "told")
    root = site.root(Tracer("kata", lambda _: None), "rootSpan")
    assert variables.sampled(RuntimeConfig(trace_sampler="always_on"), root, None)
    with pytest.raises(ConfigError, match="trace_sampler_arg"):
        variables.sampled(RuntimeConfig(trace_sampler="traceidratio", trace_sampler_arg="x"), root, None)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("", OURS),
        ("tracecontext", OURS),
        ("tracecontext,baggage", OURS),
        ("baggage", None),
        ("none", None),
        ("xtrace", THEIRS),
        ("tracecontext, xtrace", THEIRS),
        ("xtrace,tracecontext", OURS),
    ],
)
def test_propagators(monkeypatch: pytest.MonkeyPatch, names: str, found: SpanContext | None) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", names)
    assert variables.caller([W3C, OTHER], wanted=True) == found


def test_propagators_read_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "xtrace")
    monkeypatch.setenv("X_TRACE", "c:d")
    assert variables.caller([], wanted=True) == THEIRS
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext")
    monkeypatch.setenv("TRACEPARENT", W3C[1])
    monkeypatch.setenv("TRACESTATE", "a=1")
    assert variables.caller([], wanted=True) == OURS._replace(state="a=1")


def test_a_propagator_that_is_not_there_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "b4,tracecontext")
    with caplog.at_level(logging.WARNING, "kata"):
        assert variables.caller([W3C], wanted=True) == OURS
    assert "OTEL_PROPAGATORS: 'b4': is no propagator of an installed package" in caplog.text


def test_what_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext,xtrace")
    assert propagators.outward() == []
    with site.root(Tracer("kata", lambda _: None), "rootSpan") as root:
        sent = dict(propagators.outward())
    ids = root.context
    assert sent == {"traceparent": ids.to_traceparent(), "x-trace": f"{ids.trace_id:x}:{ids.span_id:x}"}


def test_nothing_is_imported_while_tracing_is_off(tmp_path: Path) -> None:
    code = """
import sys
from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.sandbox.trace import SandboxTrace
trace = SandboxTrace.open(Config(QemuConfig(), AgentConfig(), RuntimeConfig(), ()), "s1", command="test")
trace.started()
trace.close("exit 0")
print([name for name in sys.modules if name.startswith(("opentelemetry", "kata_traces"))])
"""
    names = {"OTEL_PROPAGATORS": "xtrace", "OTEL_TRACES_SAMPLER": "told", "OTEL_TRACES_EXPORTER": "filed"}
    environment = {**os.environ, **names, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr) == ("[]\n", "")
