"""The built image boots: through firmware, kernel and initramfs into the agent; and it says so where it can't."""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kata_runtime.hypervisor.qemu.boot import KERNEL_PARAMETERS, MACHINE_OPTIONS
from kata_runtime.image import DEFAULT_OUTPUT, Artifacts, ImageError
from kata_runtime.image.builder import AGENT_PACKAGES
from kata_runtime.image.tree import AGENT_DIRECTORY

pytestmark = pytest.mark.vm

# An emulated guest on a busy machine; alone it takes three or four.
SECONDS = 90
STAGES = ("kata: initramfs start", "kata: initramfs modules", "kata: initramfs switch_root", "kata: agent start")


@pytest.fixture(scope="module")
def built() -> Artifacts:
    artifacts = Artifacts.at(Path(os.environ.get("KATA_IMAGE", DEFAULT_OUTPUT)))
    try:
        artifacts.check()
    except ImageError as error:
        pytest.skip(f"{error}; {error.hint}")
    return artifacts


def test_nothing_of_the_hosts_is_in_it(built: Artifacts) -> None:
    """As the file system's own tool lists it."""
    request = f"ls -p /{AGENT_DIRECTORY}"
    done = subprocess.run(["debugfs", "-R", request, built.image], capture_output=True, text=True, check=True)
    names = {line.split("/")[5] for line in done.stdout.splitlines() if line.startswith("/")}
    assert {name for name in names if name.startswith("kata_")} == set(AGENT_PACKAGES)
    assert "opentelemetry" in names  # it is no empty list
    bundle = subprocess.run(
        ["debugfs", "-R", f"cat /{AGENT_DIRECTORY}/bundle", built.image], capture_output=True, check=True
    ).stdout
    assert b"kata_agent.main" in bundle
    assert b"kata_traces" not in bundle[: int.from_bytes(bundle[:8], "little")]


def root_device(image: Path) -> list[str]:
    """QEMU's options for the root device."""
    drive = f"id=root,if=none,file={image},format=raw,readonly=on"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=root,serial=root"]


async def boot(artifacts: Artifacts, devices: Sequence[str], *parameters: str, until: str = "") -> list[str]:
    """The console's lines up to the one that has `until` in it, or to the end of QEMU."""
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512"),
        *("-machine", ",".join(["q35", *MACHINE_OPTIONS])),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(artifacts.kernel), "-initrd", str(artifacts.initrd)),
        *("-append", " ".join([*KERNEL_PARAMETERS, *parameters]), *devices),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(SECONDS):
            async for line in process.stdout:
                lines.append(line.decode(errors="replace").rstrip())
                if until and until in lines[-1]:
                    break
            else:
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return lines


async def test_the_agent_runs_and_every_stage_is_in_the_log(built: Artifacts) -> None:
    lines = await boot(built, root_device(built.image), "loglevel=7", until="kata-agent: ready")
    assert "kata-agent: ready" in lines[-1]
    found = [stage for line in lines for stage in STAGES if line.endswith(stage)]
    assert found == list(STAGES)


async def test_a_ready_guest_has_said_little_else(built: Artifacts) -> None:
    lines = await boot(built, root_device(built.image), until="kata-agent: ready")
    assert lines[-1] == "kata-agent: ready"
    # A busy host may make the kernel complain about its clocks; a log it is not.
    assert len(lines) < 10


async def test_without_a_root_device_it_says_so_and_ends(built: Artifacts) -> None:
    lines = await boot(built, [])
    assert "kata: boot failed: no block device has the serial number root" in lines


async def test_a_root_device_without_a_file_system(built: Artifacts, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.img"
    garbage.write_bytes(bytes(1 << 20))
    lines = await boot(built, root_device(garbage))
    assert any(line.startswith("kata: boot failed: /dev/vda can't be mounted") for line in lines)


async def test_a_panic_ends_it_and_stands_on_the_console(built: Artifacts) -> None:
    lines = await boot(built, [], "rdinit=/nowhere", "init=/nowhere")
    assert any("Kernel panic" in line for line in lines)
