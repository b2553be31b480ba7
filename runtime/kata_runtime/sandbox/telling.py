"""What a guest is told of its sandbox, as the contract has it."""

import os
from typing import TYPE_CHECKING, Final

from kata_common.ids import hostname_of
from kata_protos import agent_pb2 as pb
from kata_runtime.config.policy import policy_text
from kata_runtime.sandbox.rootfs import GUEST_SHARED
from kata_runtime.sandbox.vm import SHARED_TAG

# Bytes for the guest's kernel, whose own generator is seeded by 32.
ENTROPY: Final = 64

if TYPE_CHECKING:
    from kata_runtime.config.model import Config
    from kata_runtime.guest.agent import AgentClient
    from kata_runtime.sandbox.sandbox import SandboxOptions

__all__ = ["grow_volume", "tell_agent", "volume_usage"]


async def tell_agent(
    agent: "AgentClient", sandbox_id: str, config: "Config", options: "SandboxOptions", shm: str, tracing: pb.Tracing
) -> None:
    """Have the agent make the sandbox; `shm` is where its containers share memory, if they do.

    Raises:
        AgentError: it can't be made.
    """
    if config.agent.policy:
        # Before anything that it may forbid.
        await agent.call(agent.service.SetPolicy, pb.SetPolicyRequest(policy=policy_text(config.agent.policy)))
    request = pb.CreateSandboxRequest(
        hostname=options.hostname or hostname_of(sandbox_id),
        domainname=options.domainname,
        sandbox_id=sandbox_id,
        storages=storages(shm, options.shm_size),
        dns=options.dns,
        guest_hook_path=config.hypervisor.guest_hook_path,
        kernel_modules=[module(line) for line in config.agent.kernel_modules],
        entropy=os.urandom(ENTROPY),
        sandbox_pidns=options.share_pid,
        pidns_holder=options.hold_pid,
        debug_console=config.agent.debug_console_enabled,
        tracing=tracing,
    )
    await agent.call(agent.service.CreateSandbox, request)


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


async def volume_usage(agent: "AgentClient", place: str) -> dict[str, object]:
    """What the guest says of a volume that it has at `place`: in JSON's terms, as Kata's runtime prints it."""
    request = pb.GetVolumeStatsRequest(volume_guest_path=place)
    answer = await agent.call(agent.service.GetVolumeStats, request)
    units = pb.VolumeUsage.Unit.Name
    usage = [
        {"available": used.available, "total": used.total, "used": used.used, "unit": units(used.unit)}
        for used in answer.usage
        if used.unit in (pb.VolumeUsage.BYTES, pb.VolumeUsage.INODES)
    ]
    return {"usage": usage, "volume_condition": {"abnormal": answer.volume_condition.abnormal}}


async def grow_volume(agent: "AgentClient", place: str, size: int) -> None:
    """Have the file system at `place` in the guest take the size of its disk."""
    await agent.call(agent.service.ResizeVolume, pb.ResizeVolumeRequest(volume_guest_path=place, size=size))
