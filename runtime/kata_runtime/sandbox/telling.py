"""What a guest is told of its sandbox, as the contract has it."""

from typing import Final

from kata_protos import agent_pb2 as pb
from kata_runtime.sandbox.rootfs import GUEST_SHARED
from kata_runtime.sandbox.vm import SHARED_TAG

__all__ = ["ENTROPY", "module", "storages"]

# Bytes for the guest's kernel, whose own generator is seeded by 32.
ENTROPY: Final = 64


def storages(shm: str, shm_size: int) -> list[pb.Storage]:
    """The shared directory and, where it has a size (bytes), the memory that containers share at `shm`."""
    found = [pb.Storage(driver="virtio-fs", source=SHARED_TAG, fstype="virtiofs", mount_point=GUEST_SHARED)]
    if shm_size:
        options = ["noexec", "nosuid", "nodev", "mode=1777", f"size={shm_size}"]
        found.append(pb.Storage(driver="ephemeral", source="shm", fstype="tmpfs", options=options, mount_point=shm))
    return found


def module(line: str) -> pb.KernelModule:
    """A kernel module as the configuration has it: its name, then its parameters."""
    name, *parameters = line.split()
    return pb.KernelModule(name=name, parameters=parameters)
