"""Sessions for developers and CI; each does what its name says, `nox -l` lists them."""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"  # ./dev made .venv and runs nox from it
nox.options.sessions = ["lint", "types", "unit", "contract"]

PACKAGES = ("runtime", "agent", "telemetry", "tests", "noxfile.py")
# Not found as Python because it has no suffix.
SCRIPTS = ("dev",)


def python(session: nox.Session, *arguments: str) -> None:
    """Run a module of the Python that runs nox. An interrupted test has time to take its guest down."""
    session.run(sys.executable, "-m", *arguments, external=True, interrupt_timeout=30, terminate_timeout=30)


def pytest(session: nox.Session, name: str) -> None:
    python(session, "pytest", f"tests/{name}", f"--junitxml=artifacts/{name}.xml", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint rules, spelling."""
    python(session, "ruff", "format", "--check", ".", *SCRIPTS)
    python(session, "ruff", "check", ".", *SCRIPTS)
    python(session, "codespell_lib", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict type check."""
    python(session, "mypy", *PACKAGES)
    python(session, "mypy", *SCRIPTS)


@nox.session
def unit(session: nox.Session) -> None:
    """Unit tests: seconds, no VM, no root."""
    pytest(session, "unit")


@nox.session
def contract(session: nox.Session) -> None:
    """Agent and client in one process, no VM."""
    pytest(session, "contract")


@nox.session
def browser(session: nox.Session) -> None:
    """The page of a trace in a headless Chromium."""
    pytest(session, "browser")


@nox.session
def vm(session: nox.Session) -> None:
    """Tests that boot a real guest (root)."""
    pytest(session, "vm")


@nox.session
def containerd(session: nox.Session) -> None:
    """Tests that run Debian's containerd on sockets and directories of its own (root)."""
    pytest(session, "containerd")


@nox.session
def bench(session: nox.Session) -> None:
    """Start times beside a bare QEMU boot in the same run (root); `-- --forwarder`: spans per second, no guest."""
    script = "forwarder" if session.posargs == ["--forwarder"] else "start"
    arguments = [] if script == "forwarder" else session.posargs
    session.run(sys.executable, f"tests/bench/{script}.py", *arguments, external=True)


@nox.session
def jaeger(session: nox.Session) -> None:
    """A traced container through Jaeger's own API (root). Builds Jaeger from Go modules: minutes, the first time."""
    session.run(sys.executable, "tests/jaeger/build.py", external=True)
    pytest(session, "jaeger")


@nox.session
def protos(session: nox.Session) -> None:
    """Regenerate the stubs in protos/kata_protos from protos/*.proto."""
    # The virtual path makes the stubs import each other as kata_protos.*.
    protoc = ("grpc_tools.protoc", "--proto_path=kata_protos=protos", "--python_out=protos", "--pyi_out=protos")
    python(session, *protoc, "--grpc_python_out=protos", "kata_protos/agent.proto")
    # containerd speaks ttrpc, for which the runtime binds the services' descriptors itself.
    python(
        session, *protoc, *sorted(f"kata_protos/containerd/{path.name}" for path in Path("protos/containerd").iterdir())
    )
