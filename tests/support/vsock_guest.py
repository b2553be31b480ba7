"""A small guest for the vsock backend's VM test: Debian's cloud kernel, busybox and Python in an initramfs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

MODULES = (
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
)
PACKAGES = "python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib,busybox-static"

INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module || echo "no $module"; done
exec /usr/bin/python3.11 -I /guest.py
"""


class Guest(NamedTuple):
    """What QEMU boots."""

    kernel: Path
    initrd: Path


def build(directory: Path) -> Guest:
    """Make both in `directory` from Debian's packages; what is there already is used again."""
    guest = Guest(directory / "vmlinuz", directory / "initrd")
    if not guest.kernel.exists():
        depends = _run("apt-cache", "depends", "--important", "linux-image-cloud-amd64", cwd=directory)
        package = next(line.split()[-1] for line in depends.splitlines() if "linux-image-" in line.split()[-1][:12])
        if not package.startswith("linux-image-6"):
            package = next(w for line in depends.splitlines() for w in line.split() if w.startswith("linux-image-6"))
        _run("apt-get", "download", package, cwd=directory)
        _run("dpkg-deb", "-x", str(next(directory.glob("linux-image-*.deb"))), "kernel", cwd=directory)
        shutil.copy(next((directory / "kernel/boot").glob("vmlinuz-*")), guest.kernel)
    root = directory / "root"
    if not root.exists():
        python_root(directory)
        for name in ("proc", "sys", "dev", "modules"):
            (root / name).mkdir(exist_ok=True)
        modules = next((directory / "kernel/lib/modules").iterdir()) / "kernel"
        for number, name in enumerate(MODULES):
            shutil.copy(modules / name, root / "modules" / f"{number:02}-{Path(name).name}")
    shutil.copy(Path(__file__).with_name("vsock_guest_init.py"), root / "guest.py")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = b"\0".join(os.fsencode(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with guest.initrd.open("wb") as output:
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--quiet"], cwd=root, input=names, stdout=output, check=True
        )
    return guest


def python_root(directory: Path) -> Path:
    """A root file system with Python and busybox, in `directory`."""
    root = directory / "root"
    _run("mmdebstrap", "--variant=extract", f"--include={PACKAGES}", "bookworm", str(root), cwd=directory)
    for unneeded in ("usr/share", "var", "usr/lib/python3.11/test", "usr/lib/python3.11/pydoc_data"):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    return root


def _run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, text=True, stdout=subprocess.PIPE).stdout
