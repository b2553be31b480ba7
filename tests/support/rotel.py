"""rotel, an OTLP collector in Rust that shares no code with us or with OpenTelemetry Python."""

import contextlib
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.collectors import free_port

__all__ = ["rotel"]


def rotel_binary() -> Path | None:
    found = [os.environ.get("ROTEL_AGENT", "")]
    spec = importlib.util.find_spec("rotel")
    if spec and spec.origin:
        found.append(str(Path(spec.origin).parent / "rotel-agent"))
    return next((Path(path) for path in found if path and os.access(path, os.X_OK)), None)


@contextlib.contextmanager
def rotel(log: Path) -> Iterator[dict[str, str]]:
    binary = rotel_binary()
    if binary is None:
        pytest.fail("rotel is not installed: it is in the `dev` extra; or set ROTEL_AGENT to its rotel-agent")
    grpc_port, http_port = free_port(), free_port()
    command = [str(binary), "start", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http_port}", "--exporter", "blackhole"]
    command += ["--debug-log", "traces", "--debug-log-verbosity", "detailed"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield {"grpc": f"http://127.0.0.1:{grpc_port}", "http/protobuf": f"http://127.0.0.1:{http_port}"}
        finally:
            process.terminate()
