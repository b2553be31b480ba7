"""Sessions for developers and CI; each does what its name says, `nox -l` lists them."""

import os
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"  # ./dev made .venv and runs nox from it
nox.options.sessions = ["lint", "types", "unit", "contract"]

PACKAGES = ("runtime", "agent", "telemetry", "common", "tests", "debian", "deploy", "docs", "noxfile.py")
# What `nox -s containerd2` builds.
CONTAINERD2 = "v2.4.2"
# Of `uv pip compile`; without headers and addresses, so that it is the same wherever it is made.
LOCK = (
    *("pyproject.toml", "--extra", "dev", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-header", "--no-annotate", "--output-file", "requirements.txt"),
)
# Not found as Python because it has no suffix.
SCRIPTS = ("dev",)


def python(session: nox.Session, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run a module of the Python that runs nox. An interrupted test has time to take its guest down."""
    command = (sys.executable, "-P", "-m", *arguments)
    session.run(*command, env=env, external=True, interrupt_timeout=30, terminate_timeout=30)


def pytest(session: nox.Session, name: str) -> None:
    python(session, "pytest", f"tests/{name}", f"--junitxml=artifacts/{name}.xml", *session.posargs)


def guests(session: nox.Session, name: str) -> None:
    """Tests that boot guests, in a mount namespace of their own: other suites may do the same beside them."""
    apart = ("unshare", "--mount", "--propagation", "slave", "tests/support/apart.sh", f"artifacts/apart/{name}")
    command = (
        sys.executable,
        "-P",
        "-m",
        "pytest",
        f"tests/{name}",
        f"--junitxml=artifacts/{name}.xml",
        *session.posargs,
    )
    session.run(*apart, *command, external=True, interrupt_timeout=30, terminate_timeout=30)


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
def house(session: nox.Session) -> None:
    """Figures of the code: sizes, floors, circles, places to touch; `-- ROOT` measures another checkout."""
    session.run(sys.executable, "-P", "tests/support/house.py", *session.posargs, external=True)


@nox.session
def contract(session: nox.Session) -> None:
    """Agent and client in one process, no VM."""
    pytest(session, "contract")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Parsers of foreign bytes, shortly; `-- --minutes N` looks for more, guided by coverage: docs/fuzzing.md."""
    if session.posargs:
        python(session, "support.fuzz.session", *session.posargs, env={"PYTHONPATH": "tests"})
    else:
        pytest(session, "fuzz")


@nox.session
def browser(session: nox.Session) -> None:
    """The page of a trace in a headless Chromium."""
    pytest(session, "browser")


@nox.session
def vm(session: nox.Session) -> None:
    """Tests that boot a real guest (root)."""
    guests(session, "vm")


@nox.session
def faults(session: nox.Session) -> None:
    """Slow and broken stages of a real guest, and what the trace says of them (root)."""
    guests(session, "faults")


@nox.session
def hostile(session: nox.Session) -> None:
    """Root in a real guest, and a plain workload, against the host: nothing of it is theirs (root)."""
    guests(session, "hostile")


@nox.session
def soak(session: nox.Session) -> None:
    """500 containers in one sandbox and 30 minutes of mixed load: nothing grows (root; most of an hour)."""
    apart = ("unshare", "--mount", "--propagation", "slave", "tests/support/apart.sh", "artifacts/apart/soak")
    command = (sys.executable, "-P", "-m", "support.soak", *session.posargs)
    session.run(*apart, *command, external=True, env={"PYTHONPATH": "tests"}, interrupt_timeout=30)


@nox.session
def containerd(session: nox.Session) -> None:
    """Tests that run Debian's containerd on sockets and directories of its own (root)."""
    guests(session, "containerd")


@nox.session
def containerd2(session: nox.Session) -> None:
    """The same with containerd 2: that of KATA_CONTAINERD2 (a directory), else one built with Go (root, minutes)."""
    given = os.environ.get("KATA_CONTAINERD2")
    directory = Path(given) if given else Path(".cache/containerd2").resolve()
    if not given:
        directory.mkdir(parents=True, exist_ok=True)
        module = f"github.com/containerd/containerd/v2/cmd/{{}}@{CONTAINERD2}"
        env = {"GOBIN": str(directory), "CGO_ENABLED": "0"}
        for name in ("containerd", "ctr"):
            if not (directory / name).exists():
                session.run("go", "install", "-tags=no_btrfs", module.format(name), external=True, env=env)
    session.env["PATH"] = f"{directory}:{os.environ['PATH']}"
    python(session, "pytest", "tests/containerd", "--junitxml=artifacts/containerd2.xml", *session.posargs)


@nox.session
def deb(session: nox.Session) -> None:
    """The Debian package, in artifacts/, and a try of it in fresh roots of Debian 12 and 13 (root; minutes)."""
    arguments = list(session.posargs)
    only = "--build-only" in arguments
    if only:
        arguments.remove("--build-only")
    session.run(sys.executable, "-P", "debian/build.py", *arguments, external=True)
    if not only:
        pytest(session, "deb")


@nox.session
def kubernetes(session: nox.Session) -> None:
    """The image that deploy/kubernetes runs, in artifacts/, of the Debian package; manifests by their schemas."""
    session.run(sys.executable, "-P", "debian/build.py", external=True)
    packages = sorted(Path("artifacts").glob("kata-python_*_amd64.deb"), key=lambda path: path.stat().st_mtime)
    session.run(sys.executable, "-P", "deploy/kubernetes/image.py", str(packages[-1]), external=True)
    # Its schemas are 22 MiB, too much for everybody's environment.
    files = [f"deploy/kubernetes/{name}.yaml" for name in ("daemonset", "runtimeclass", "servicemonitor")]
    python(session, "uv", "tool", "run", "kubernetes-validate", "--strict", *files)


@nox.session
def reference(session: nox.Session) -> None:
    """Reference of commands, keys, annotations, spans, metrics and calls, out of the code: artifacts/reference."""
    session.run(sys.executable, "-P", "docs/reference.py", *session.posargs, external=True)


@nox.session
def docker(session: nox.Session) -> None:
    """Docker (Debian 13's) and nerdctl above the tests' containerd (root); fetches both: minutes, the first time."""
    session.run(sys.executable, "-P", "tests/docker/fetch.py", external=True)
    pytest(session, "docker")


@nox.session
def nested(session: nox.Session) -> None:
    """Tests on real KVM and vhost-vsock, in a guest that has both (root); `-- --help` tells more."""
    python(session, "support.l1", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def bench(session: nox.Session) -> None:
    """Start times beside a bare QEMU boot (root); --all: docs/performance.md; --stdio, --against, …: others."""
    arguments = ["--every" if argument == "--all" else argument for argument in session.posargs]
    program = "start"
    for other in ("every", "stdio", "network", "containerd", "forwarder", "spans", "against"):
        if f"--{other}" in arguments:
            arguments.remove(f"--{other}")
            program = other
    program = f"tests/bench/{program}.py"
    session.run(sys.executable, "-P", program, *arguments, external=True, env={"PYTHONPATH": "tests"})


@nox.session
def jaeger(session: nox.Session) -> None:
    """A traced container through Jaeger's own API (root). Builds Jaeger from Go modules: minutes, the first time."""
    session.run(sys.executable, "-P", "tests/jaeger/build.py", external=True)
    pytest(session, "jaeger")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin what `./dev` installs, in requirements.txt: today's versions, for every Python from 3.11 on, with hashes."""
    python(session, "uv", "pip", "compile", "--quiet", "--upgrade", *LOCK)


@nox.session
def protos(session: nox.Session) -> None:
    """Regenerate the stubs in protos/kata_protos from protos/*.proto, and those of the tests."""
    # The virtual path makes the stubs import each other as kata_protos.*.
    protoc = ("grpc_tools.protoc", "--proto_path=kata_protos=protos", "--python_out=protos", "--pyi_out=protos")
    python(session, *protoc, "--grpc_python_out=protos", "kata_protos/agent.proto")
    # One call of CRI's, made without a stub.
    python(session, *protoc, "kata_protos/pods.proto")
    # containerd speaks ttrpc, for which the runtime binds the services' descriptors itself.
    python(
        session, *protoc, *sorted(f"kata_protos/containerd/{path.name}" for path in Path("protos/containerd").iterdir())
    )
    # What the tests say to containerd's CRI plugin.
    cri = ("--proto_path=support/cri=tests/support/cri", "--python_out=tests", "--pyi_out=tests")
    python(session, "grpc_tools.protoc", *cri, "support/cri/cri.proto")
