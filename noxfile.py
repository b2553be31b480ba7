"""Sessions for developers and CI; each does what its name says, `nox -l` lists them."""

import nox

nox.options.default_venv_backend = "none"  # ./dev made .venv and runs nox from it
nox.options.sessions = ["lint", "types", "unit"]

PACKAGES = ["runtime", "agent", "telemetry", "tests", "noxfile.py"]


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint rules."""
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict type check."""
    session.run("mypy", *PACKAGES)


@nox.session
def unit(session: nox.Session) -> None:
    """Unit and contract tests: seconds, no VM, no root."""
    session.run("pytest", "tests/unit", "tests/contract", *session.posargs)


@nox.session
def vm(session: nox.Session) -> None:
    """Tests that boot a real guest (root)."""
    session.run("pytest", "tests/vm", *session.posargs)


@nox.session
def protos(session: nox.Session) -> None:
    """Regenerate the stubs in protos/kata_protos from protos/*.proto."""
    # The virtual path makes the stubs import each other as kata_protos.*.
    session.run(
        "python", "-m", "grpc_tools.protoc", "--proto_path=kata_protos=protos", "kata_protos/agent.proto",
        "--python_out=protos", "--pyi_out=protos", "--grpc_python_out=protos",
    )  # fmt: skip
