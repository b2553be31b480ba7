"""The initramfs: busybox, the modules of the boot, and the script that runs them."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kata_common import marks
from kata_runtime.image import cpio
from kata_runtime.image.kernel import ModuleTree, indexes
from kata_runtime.image.tree import AGENT_DIRECTORY, PYTHON

__all__ = ["BOOT_MODULES", "ROOT_SERIAL", "build"]

# virtio before its drivers; the transports of vsock and of shared directories, so that devices may come at any time.
BOOT_MODULES = ("virtio_ring", "virtio", "virtio_pci", "virtio_blk", "vmw_vsock_virtio_transport", "virtiofs")
# The root device is the disk with this serial number, so that other disks may come in any order.
ROOT_SERIAL = "root"
SCRIPT = Path(__file__).with_name("init.sh")
# -I: no environment, no user's packages. -S: no site. Both are start-up time, and neither has anything to offer here.
ARGUMENTS = f"-I -S /{AGENT_DIRECTORY}/launcher.pyc"
FILE_SYSTEM = "ext4"
MOUNT_OPTIONS = "ro,noload"


def build(busybox: bytes, modules: ModuleTree) -> bytes:
    """The archive, uncompressed: unpacking it costs an emulated guest more than the host saves by a smaller file."""
    return cpio.archive(_entries(busybox, modules))


def init_script() -> str:
    """The first process of the guest."""
    values = {
        "MARK": marks.INITRAMFS,
        "FAILED": marks.BOOT_FAILED,
        "MODULES": " ".join(BOOT_MODULES),
        "SERIAL": ROOT_SERIAL,
        "FSTYPE": FILE_SYSTEM,
        "OPTIONS": MOUNT_OPTIONS,
        "PYTHON": PYTHON,
        "ARGUMENTS": ARGUMENTS,
    }
    script = SCRIPT.read_text()
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script


def _entries(busybox: bytes, modules: ModuleTree) -> Iterator[cpio.Entry]:
    for name in ("bin", "dev", "lib", "lib/modules", "proc", "root", "sys"):
        yield cpio.directory(name)
    # The kernel opens the console for the first process before that can mount anything.
    yield cpio.device("dev/console", 5, 1)
    yield cpio.file("bin/busybox", busybox, 0o755)
    for name in ("sh", "modprobe", "mount", "poweroff", "switch_root"):
        yield cpio.symlink(f"bin/{name}", "busybox")
    yield cpio.file("init", init_script().encode(), 0o755)

    chosen = modules.closure(BOOT_MODULES)
    base = PurePosixPath("lib/modules", modules.root.name)
    directories = {parent for module in chosen.values() for parent in (base / module.path).parents}
    for directory in sorted(path for path in directories if path.is_relative_to(base)):
        yield cpio.directory(str(directory))
    for module in chosen.values():
        yield cpio.file(str(base / module.path), modules.read(module))
    for name, text in indexes(chosen).items():
        yield cpio.file(str(base / name), text.encode())
