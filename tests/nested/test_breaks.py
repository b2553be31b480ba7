"""What breaks on purpose, and the words that it is reported with; the report has them (artifacts/nested/proof.txt)."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containerd import eventually
from support.kata import Kata
from support.running import Running

pytestmark = pytest.mark.slow

# Rewrites what the runtime says, so that the guest has another context id than the runtime believes. `vhostfd` goes,
# because the id belongs to that open file: while it is open, somebody has the id who does not answer.
WRONG_CID = """#!/usr/bin/python3
import os, re, sys
def replace(found):
    os.close(int(found[2]))
    return f"guest-cid={int(found[1]) ^ 1}"
def other(word):
    return re.sub(r"guest-cid=(\\d+),vhostfd=(\\d+)", replace, word)
os.execv("/usr/bin/qemu-system-x86_64", ["qemu-system-x86_64", *map(other, sys.argv[1:])])
"""


@pytest.fixture
def modules() -> Iterator[None]:
    """Puts the modules back that a test has removed."""
    yield
    subprocess.run(["modprobe", "vhost_vsock"], check=True)


def told(proof: Path, what: str, words: str) -> str:
    """Note in the report what was said."""
    with proof.open("a") as report:
        print(f"break: {what}: {words.strip()}", file=report)
    return words


def test_kvm_for_root_alone(kata: Kata, proof: Path) -> None:
    device = Path("/dev/kvm")
    mode = device.stat().st_mode
    device.chmod(0o600)
    try:
        done = kata.configure("hypervisor.qemu", accelerator="kvm").run("true")
    finally:
        device.chmod(mode)
    words = told(proof, "/dev/kvm with mode 600", done.stderr.decode())
    assert done.returncode == 125
    assert "KVM can't be used: /dev/kvm has mode 0600, and QEMU runs as an unprivileged user" in words
    assert "chmod 660 /dev/kvm" in words


def test_no_vhost_vsock_and_qemu_is_killed(kata: Kata, modules: None, proof: Path) -> None:
    """The module is gone: the host's check says so, and our own backend serves the guest, under KVM; then QEMU dies."""
    # A stream to a guest that is gone keeps the module for up to 8 s (VSOCK_CLOSE_TIMEOUT in the kernel's
    # virtio_transport_common.c), and nothing tells of its end.
    remove = ["modprobe", "--remove", "vhost_vsock"]
    eventually(lambda: not subprocess.run(remove, check=False).returncode, "vhost_vsock is in use", seconds=60)
    checked = kata("check").stdout.decode()
    words = told(proof, "no vhost_vsock", "\n".join(line for line in checked.splitlines() if "vsock" in line))
    assert "not loaded" in words
    assert "modprobe vhost_vsock" in checked
    assert "slower" in checked.splitlines()[-2]
    with Running.shell(kata, "backend") as running:
        arguments = " ".join(running.qemu_arguments())
        assert "-accel kvm" in arguments
        assert "vhost-user-vsock-pci" in arguments
        assert running("echo hello") == "hello\n"
        running.kill("qemu-system-x86_64")
        _, errors = running.process.communicate(timeout=60)
        assert running.process.returncode == 125
    words = told(proof, "QEMU killed", errors.decode())
    assert "the VM ended while a container was running (killed by signal 9)" in words


def test_the_wrong_cid(kata: Kata, tmp_path: Path, proof: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text(WRONG_CID)
    program.chmod(0o755)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)  # QEMU is not root
    done = kata.configure("hypervisor.qemu", path=str(program), rootless=False).run("true", timeout=300)
    words = told(proof, "wrong CID", done.stderr.decode())
    assert done.returncode == 125
    assert "guest port 1028 can't be reached (CID " in words
    assert "No such device" in words


def test_the_agent_hangs(kata: Kata, proof: Path) -> None:
    """The guest's CPU stands still, and with it all in it; the host finds out by itself."""
    kata.configure("agent.kata", health_check_request_timeout_ms=15_000)
    with Running.shell(kata, "hung") as running:
        running.kill("qemu-system-x86_64", signal.SIGSTOP)
        _, errors = running.process.communicate(timeout=120)
        assert running.process.returncode == 125
    words = told(proof, "agent hung", errors.decode())
    assert "the VM ended while a container was running (the agent has not answered for 15 s)" in words
