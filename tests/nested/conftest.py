"""For tests that need what most build machines lack: usable KVM, and the kernel's vhost-vsock.

`nox -s nested` brings both, in a guest (support.l1); where a host has them, `pytest tests/nested` runs right there.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.hypervisor.qemu import accelerator
from kata_runtime.hypervisor.vsock import kernel as vhost_vsock
from support.containerd import make_image, running
from support.kata import Kata, build_image
from support.kata_containers import KataContainers
from support.running import Running

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# The proof of what L2 ran on; `nox -s nested` prints it.
PROOF = ROOT / "artifacts/proof.txt"
FAILURES = ROOT / "artifacts/failures.txt"
# Set by L1's init: everything is installed, there is no network, and what takes long was done outside.
IN_L1 = bool(os.environ.get("KATA_L1"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    for item in mine:
        item.add_marker(pytest.mark.nested)
        item.add_marker(pytest.mark.vm)
        # What is looked at is a boot under KVM; clones under KVM are not tried yet (docs/limits.md).
        item.add_marker(pytest.mark.cold)
    # What says most comes first.
    items.sort(key=lambda item: item.path.name != "test_sandbox.py")
    if mine and (why := lacking()):
        raise pytest.UsageError(f"tests/nested needs {why}; `nox -s nested` runs it in a guest that has both")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Why a test failed is written down at once: a run that is ended by its timeout has no summary."""
    if report.failed:
        FAILURES.parent.mkdir(exist_ok=True)
        with FAILURES.open("a") as failures:
            print(f"--- {report.nodeid} ({report.when})\n{report.longreprtext}", file=failures)


def lacking() -> str:
    """What this host lacks; empty if it can run these tests."""
    kvm = accelerator.kvm_usability(rootless=True)
    if not kvm.usable:
        return f"KVM ({kvm.reason})"
    return "" if vhost_vsock.available() else "the kernel's vhost-vsock (no /dev/vhost-vsock: modprobe vhost_vsock)"


@pytest.fixture(scope="session", autouse=True)
def guest_image() -> None:
    """The guest's image; L1 has that of the checkout already."""
    if not IN_L1:
        build_image()


def patient(kata: Kata) -> Kata:
    """A guest in a guest that is emulated on a busy machine needs minutes where others need a second."""
    kata.configure("agent.kata", dial_timeout=240.0)
    return kata.configure("runtime", create_container_timeout=120.0)


@pytest.fixture
def kata(artifacts: Path) -> Kata:
    """A `kata-runtime` with traces and logs among the test's artifacts."""
    return patient(Kata(artifacts))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A shell in a traced sandbox that several tests look at, because a boot takes long in L1."""
    directory = ROOT / "artifacts" / "shared-sandbox"
    directory.mkdir(parents=True, exist_ok=True)
    kata = patient(Kata(directory)).tracing(runtime=True, agent=True)
    with Running.shell(kata, "shared") as running:
        yield running


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI archive for containerd."""
    return Path("/opt/busybox.tar") if IN_L1 else make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def containers(busybox: Path, artifacts: Path) -> Iterator[KataContainers]:
    """A containerd that finds the installed shim on its PATH; its sandboxes are traced on both sides."""
    (artifacts / "configuration.toml").write_text(
        f'[runtime]\ntrace_dir = "{artifacts}/traces"\nenable_tracing = true\ncreate_container_timeout = 120\n'
        "[agent.kata]\nenable_tracing = true\ndial_timeout = 240\n"
    )
    with running(Path(sys.executable).parent, busybox) as containerd:
        yield KataContainers(containerd, artifacts)
        shutil.copy(containerd.log, artifacts)


@pytest.fixture(scope="session")
def proof() -> Path:
    """The report of what ran under what."""
    PROOF.parent.mkdir(exist_ok=True)
    PROOF.touch()
    return PROOF
