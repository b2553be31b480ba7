"""For tests that need what most build machines lack: usable KVM, and the kernel's vhost-vsock.

`nox -s nested` brings both, in a guest (support.l1); where a host has them, `pytest tests/nested` runs right there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.hypervisor import accelerator, vhost_vsock
from support.containerd import make_image
from support.kata import Kata, build_image
from support.running import Running

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# The proof of what L2 ran on; `nox -s nested` prints it.
PROOF = ROOT / "artifacts/proof.txt"
# Set by L1's init: everything is installed, there is no network, and what takes long was done outside.
IN_L1 = bool(os.environ.get("KATA_L1"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    for item in mine:
        item.add_marker(pytest.mark.nested)
        item.add_marker(pytest.mark.vm)
    if mine and (why := lacking()):
        raise pytest.UsageError(f"tests/nested needs {why}; `nox -s nested` runs it in a guest that has both")


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


@pytest.fixture(scope="session")
def proof() -> Path:
    """The report of what ran under what."""
    PROOF.parent.mkdir(exist_ok=True)
    PROOF.touch()
    return PROOF
