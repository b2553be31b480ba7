"""L1's userland and kernel: Debian 12 from its packages, made once and kept in the cache."""

import contextlib
import fcntl
import hashlib
import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.image import DEFAULT_CACHE, cpio
from kata_runtime.image.kernel import ModuleTree, extract_vmlinux, indexes
from kata_runtime.image.packages import KERNEL, Packages
from support.debian import make_tree, run_tool

__all__ = ["CACHE", "Userland", "locked", "make_disk", "userland"]

CACHE = DEFAULT_CACHE / "nested"
# What a host of ours has installed, and what the tests in it look at.
PACKAGES = (
    *("busybox-static", "containerd", "containernetworking-plugins", "iproute2", "iptables", "kmod", "procps"),
    *("python3", "python3-venv", "qemu-system-common", "qemu-system-x86", "runc", "seabios", "util-linux"),
)
BOOT_MODULES = ("virtio_ring", "virtio", "virtio_pci", "virtio_blk")
# Room for what containers and tests write; the file has holes.
DISK_MIB = 3072
# Bytes that userland, wheels and disks take together, with some room.
_SPACE = 3 << 30
_INIT = """#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
modprobe -a @MODULES@
for name in /sys/block/vd*; do
	read -r serial <$name/serial
	eval "$serial=/dev/${name#/sys/block/}"
done
mount -t ext4 -o noatime "$root" /root && mount -t ext4 -o noatime "$product" /root/opt || poweroff -f
for directory in dev proc sys; do mount -o move /$directory /root/$directory; done
exec switch_root /root /opt/l1/init.sh
"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Userland:
    """The tree that other things are installed in (as the product, in a chroot), and what is booted of it."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def disk(self) -> Path:
        return self.directory / "root.img"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"


def userland(say: Say, *, renew: bool = False) -> Userland:
    """The one in the cache; made where it is missing, where its recipe or the guest's kernel has changed, or `renew`.

    The caller holds the cache's lock (`locked`).
    """
    kernel = _kernel_package(say)
    recipe = (PACKAGES, BOOT_MODULES, DISK_MIB, _INIT, inspect.getsource(_install), inspect.getsource(_initrd))
    key = hashlib.sha256(f"{recipe}\0{kernel.name}".encode()).hexdigest()[:16]
    made = Userland(CACHE / f"userland-{key}")
    if made.directory.is_dir() and not renew:
        return made
    for stale in CACHE.glob("*userland-*"):
        shutil.rmtree(stale)
    free = shutil.disk_usage(CACHE).free
    if free < _SPACE:
        raise SystemExit(f"nested: {CACHE} has {free >> 20} MiB of free space; {_SPACE >> 20} are needed")
    say("installing Debian 12 for L1 (once, about a minute)")
    partial = Userland(Path(tempfile.mkdtemp(prefix=".userland-", dir=CACHE)))
    try:
        _install(partial, kernel)
        partial.directory.rename(made.directory)
    finally:
        shutil.rmtree(partial.directory, ignore_errors=True)
    return made


@contextlib.contextmanager
def locked(say: Say) -> Iterator[None]:
    """One build at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of L1")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_disk(tree: Path, disk: Path, mebibytes: int) -> None:
    """An ext4 file system with what is in `tree`."""
    options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-m", "0"]
    run_tool("mke2fs", *options, "-d", str(tree), str(disk), f"{mebibytes}M")


def _kernel_package(say: Say) -> Path:
    """Debian's package of the very kernel that our guests run: it can be a KVM host as well."""
    packages = Packages(DEFAULT_CACHE, say)
    known = packages.known() or packages.update()
    (kernel,) = (package for package in known if KERNEL.fullmatch(package.name))
    return packages.directory / kernel.file


def _install(made: Userland, kernel: Path) -> None:
    make_tree(made.root, PACKAGES, variant="minbase")
    scratch = made.directory / "kernel"
    run_tool("dpkg-deb", "-x", str(kernel), str(scratch))
    (modules,) = (scratch / "lib/modules").iterdir()
    shutil.move(modules, made.root / "lib/modules" / modules.name)
    run_tool("chroot", str(made.root), "depmod", "-a", modules.name)
    run_tool("chroot", str(made.root), "groupadd", "--system", "kvm")  # udev's package would
    (bzimage,) = (scratch / "boot").glob("vmlinuz-*")
    lz4 = made.root / "usr/lib/x86_64-linux-gnu/liblz4.so.1"
    made.kernel.write_bytes(extract_vmlinux(bzimage.read_bytes(), lz4))
    shutil.copy(bzimage, made.root / "boot")  # for benchmarks that boot it
    busybox = (made.root / "bin/busybox").read_bytes()
    made.initrd.write_bytes(_initrd(busybox, ModuleTree(made.root / "lib/modules" / modules.name)))
    shutil.rmtree(scratch)
    make_disk(made.root, made.disk, DISK_MIB)


def _initrd(busybox: bytes, modules: ModuleTree) -> bytes:
    base = f"lib/modules/{modules.root.name}"
    chosen = modules.closure(BOOT_MODULES)
    files = {f"{base}/{module.path}": modules.read(module) for module in chosen.values()}
    files |= {f"{base}/{name}": text.encode() for name, text in indexes(chosen).items()}
    parents = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [cpio.directory(name) for name in sorted({"bin", "dev", "proc", "root", "sys", *parents})]
    entries += [cpio.device("dev/console", 5, 1), cpio.file("bin/busybox", busybox, 0o755)]
    applets = ("modprobe", "mount", "poweroff", "sh", "switch_root")
    entries += [cpio.symlink(f"bin/{name}", "busybox") for name in applets]
    entries.append(cpio.file("init", _INIT.replace("@MODULES@", " ".join(BOOT_MODULES)).encode(), 0o755))
    entries += [cpio.file(name, data) for name, data in files.items()]
    return cpio.archive(entries)
