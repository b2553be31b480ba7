"""A machine through the seam, with a real hypervisor and a real guest, but without a sandbox."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kata_runtime.config import Config
from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.boot import BootStage, wait_ready
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.hypervisor.machine import End, Machine, MachineSpec, Surroundings, VhostUserFs
from kata_runtime.hypervisor.virtiofsd import start_virtiofsd
from kata_runtime.image import DEFAULT_OUTPUT, Artifacts

_SEEN = (BootStage.MACHINE, BootStage.FIRMWARE, BootStage.KERNEL, BootStage.READY)
pytestmark = pytest.mark.vm


@asynccontextmanager
async def machine(logs_dir: Path) -> AsyncIterator[Machine]:
    hypervisor = hypervisor_of(Config.default())
    built = Artifacts.at(Path(os.environ.get("KATA_IMAGE_DIR", DEFAULT_OUTPUT)))
    spec = MachineSpec(
        name="machine",
        kernel=built.kernel,
        initrd=built.initrd,
        image=built.image,
        memory=512,
        vcpus=1,
        hotplug=True,
    )
    with hypervisor.prepared("machine"):
        async with hypervisor.launch(spec, Surroundings(logs_dir=logs_dir)) as running, asyncio.timeout(60):
            yield running


async def test_a_machine_boots_without_devices_gets_one_and_ends(tmp_path: Path) -> None:
    """As a template and its clones do: what belongs to one sandbox comes later."""
    shared = tmp_path / "shared"
    shared.mkdir()
    async with (
        start_virtiofsd("", shared, tmp_path / "virtiofs.sock", cache="auto") as (child, chardev, _),
        machine(tmp_path) as running,
    ):
        await wait_ready(running, 60)
        # A quiet kernel's console does not tell of the others.
        assert list(running.boot.marks) == list(_SEEN)
        marks = list(running.boot.marks.values())
        assert marks == sorted(marks)
        await running.plug(VhostUserFs(chardev.fileno(), "tag"))
        await running.pause()
        await running.resume()
        chardev.close()
        running.kill()
        assert await running.wait() == End(-9)
        assert running.end == End(-9)
        # Its end of the socket was the last one.
        assert await child.wait() == 0
        with pytest.raises(HypervisorError):
            await running.pause()
