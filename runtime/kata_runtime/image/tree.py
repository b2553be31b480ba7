"""The guest's root file system and the default container's, as directory trees on the host."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from kata_runtime.image import bundle, compiler, tools
from kata_runtime.image.kernel import ModuleTree, indexes
from kata_runtime.image.packages import KERNEL, Package
from kata_runtime.image.wheels import Wheel, Wheels

__all__ = [
    "AGENT_DIRECTORY",
    "GUEST_MODULES",
    "GUEST_MODULE_FOLDERS",
    "PYTHON",
    "default_rootfs",
    "guest_modules",
    "install_agent",
    "root_tree",
    "unpack",
]

PYTHON = "/usr/bin/python3.11"
STDLIB = "usr/lib/python3.11"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# The agent, what it imports from PyPI, and the launcher.
AGENT_DIRECTORY = "usr/lib/kata-agent"
LAUNCHER = Path(__file__).with_name("launcher.py")
BUNDLE = f"{AGENT_DIRECTORY}/bundle"
IMPORT_PATH = (f"/{STDLIB}", f"/{AGENT_DIRECTORY}", f"/{STDLIB}/lib-dynload")
BUSYBOX = "usr/bin/busybox"
# Everything in the image gets this time stamp (ns); zero would look like a broken one.
TIMESTAMP_NS = 10**9

# Beyond those of the initramfs: what containers, networks and hotplugged devices may ask for. None is loaded before the
# kernel asks for it (by modprobe), so the boot doesn't know of them.
GUEST_MODULES = (
    *("overlay", "xfs", "squashfs", "erofs", "loop", "isofs", "vfat", "cuse", "binfmt_misc", "virtio_scsi", "sd_mod"),
    *("virtio_net", "virtio_rng", "virtio_balloon", "virtio_mem", "virtio_console", "virtio_pmem", "nd_pmem"),
    *("tun", "bridge", "veth", "macvlan", "macvtap", "ipvlan", "dummy", "8021q", "vxlan", "geneve", "ifb", "bonding"),
    *("wireguard", "sctp", "tls", "xfrm_user", "xfrm_interface", "af_key", "unix_diag", "netlink_diag"),
    *("nfs", "nfsv2", "nfsv3", "nfsv4", "nfs_layout_nfsv41_files", "nfs_layout_flexfiles", "rpcsec_gss_krb5", "cifs"),
)
# All that is in these folders of the kernel's modules: firewalls (iptables and nft), tunnels, traffic control, and
# ciphers, which file systems and tunnels ask for by name.
GUEST_MODULE_FOLDERS = (
    *("net/netfilter", "net/ipv4", "net/ipv6", "net/bridge/netfilter", "net/sched", "fs/nls"),
    *("crypto", "arch/x86/crypto"),
)

# Debian's layout before /usr was merged, which its packages still have.
MERGED = ("bin", "sbin", "lib", "lib64")
# Paths and patterns below the root that no guest needs.
PRUNED = (
    *("etc/*", "usr/share/*", "usr/include", "usr/lib/udev", "usr/lib/debug", "usr/src", "boot", "var/*"),
    *(f"{LIBRARIES}/{name}" for name in ("gconv", "audit", "*.a", "*.o", "perl*", "libnss_hesiod*", "libnss_compat*")),
    *(f"{LIBRARIES}/{name}" for name in ("libmvec*", "libnsl*", "libthread_db*", "libc_malloc_debug*", "libmemusage*")),
    *(f"{LIBRARIES}/{name}" for name in ("libpcprofile*", "libBrokenLocale*")),
    *(f"{STDLIB}/{name}" for name in ("test", "idlelib", "lib2to3", "ensurepip", "distutils", "tkinter", "turtle*")),
    *(f"{STDLIB}/{name}" for name in ("unittest", "pydoc*", "doctest.py", "dbm", "sqlite3", "curses", "wsgiref")),
    *(f"{STDLIB}/{name}" for name in ("xml", "xmlrpc", "venv", "zipapp.py", "ssl.py", "nturl2path.py", "msilib")),
    *(f"{STDLIB}/{name}" for name in ("sitecustomize.py", "LICENSE.txt", "config-3.11*", "__phello__*", "this.py")),
    *(f"{STDLIB}/{name}" for name in ("antigravity.py", "imaplib.py", "smtpd.py", "smtplib.py", "poplib.py")),
    *(f"{STDLIB}/{name}" for name in ("nntplib.py", "telnetlib.py", "ftplib.py", "mailbox.py", "cgi*.py")),
    *(f"{STDLIB}/lib-dynload/{name}.cpython-311-x86_64-linux-gnu.so" for name in (
        *("_test*", "xx*", "_xx*", "_ctypes_test", "_ssl", "_hashlib", "nis", "_dbm", "_sqlite3", "_curses*"),
        *("readline", "ossaudiodev", "_tkinter", "_codecs_*", "_multibytecodec", "audioop", "_crypt"),
    )),
)  # fmt: skip
# The same for the wheels: sources and tools of builders, certificates of a TLS that no one speaks here.
PRUNED_WHEELS = ("grpc/_cython/_credentials", "**/*.pyx", "**/*.pxd", "**/*.pxi", "**/*.pyi", "**/py.typed")
# Of a distribution's metadata importlib.metadata reads these two.
METADATA = frozenset({"METADATA", "entry_points.txt"})

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
# With a read-only root these mount points must be there; /run and /tmp become file systems in memory.
MOUNT_POINTS = ("dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp")
# What the agent writes lies in /run.
LINKS = {
    "etc/hostname": "/run/hostname",
    "etc/mtab": "/proc/self/mounts",
    "etc/resolv.conf": "/run/resolv.conf",
    "etc/machine-id": "/run/machine-id",
    "var/run": "/run",
}


def unpack(packages: Iterable[Package], source: Path, root: Path, kernel: Path) -> str:
    """Unpack the kernel's package into `kernel` and all others into `root`; the kernel's version."""
    version = ""
    for package in packages:
        is_kernel = KERNEL.fullmatch(package.name)
        if is_kernel:
            version = package.name.removeprefix("linux-image-")
        tools.run(
            ["dpkg-deb", "--extract", source / package.file, kernel if is_kernel else root],
            doing=f"unpack {package.file}",
            hint="if the file is damaged, remove it and build again; else look at the free space",
        )
    return version


def guest_modules(modules: ModuleTree) -> list[str]:
    """The modules that the guest has beyond those of its initramfs. Raises ImageError where a folder has none."""
    return [*GUEST_MODULES, *(name for folder in GUEST_MODULE_FOLDERS for name in modules.below(folder))]


def root_tree(root: Path, wheels: Wheels, chosen: Iterable[Wheel], modules: ModuleTree, names: Iterable[str]) -> None:
    """Turn the unpacked packages in `root` into the guest's root file system, but for the agent's own packages.

    `names` are the kernel modules to have, `chosen` the wheels.
    """
    merge_usr(root)
    prune(root, PRUNED)
    site = root / AGENT_DIRECTORY
    site.mkdir(parents=True)
    for wheel in chosen:
        wheels.unpack(wheel, site)
    prune(site, PRUNED_WHEELS)
    for metadata in site.glob("*.dist-info"):
        remove(path for path in metadata.iterdir() if path.name not in METADATA)
    install_busybox(root, "usr/bin")
    install_modules(root / "usr/lib/modules", modules, names)
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    write_files(root, FILES)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    shutil.copyfile(LAUNCHER, site / LAUNCHER.name)
    compiler.compile_tree(root, [f"/{STDLIB}", f"/{AGENT_DIRECTORY}"])
    settle(root)


def install_agent(root: Path, packages: Iterable[Path]) -> None:
    """Replace the agent's own packages in `root` by what is in these directories."""
    site = root / AGENT_DIRECTORY
    names = []
    for package in packages:
        target = site / package.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
        names.append(f"/{AGENT_DIRECTORY}/{package.name}")
    compiler.compile_tree(root, names)
    (root / BUNDLE).write_bytes(bundle.build(root, PYTHON, IMPORT_PATH))
    for path in [*(root / name[1:] for name in names), root / BUNDLE]:
        settle(path)
    os.utime(site, ns=(TIMESTAMP_NS, TIMESTAMP_NS))


def default_rootfs(root: Path, busybox: Path) -> None:
    """Make the container that runs where the user names none: busybox and what a program expects around it."""
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp"):
        (root / name).mkdir(parents=True)
    for link, target in {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin", "var/run": "/run"}.items():
        (root / link).symlink_to(target)
    shutil.copyfile(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    install_busybox(root, "bin")
    write_files(root, FILES)
    settle(root)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)


def merge_usr(root: Path) -> None:
    """Move what lies in /bin, /lib and so on below /usr, and leave links in their place."""
    for name in MERGED:
        old, new = root / name, root / "usr" / name
        new.mkdir(parents=True, exist_ok=True)
        if old.is_dir():
            _move_into(old, new)
            old.rmdir()
        old.symlink_to(f"usr/{name}")


def _move_into(old: Path, new: Path) -> None:
    for entry in sorted(old.iterdir()):
        target = new / entry.name
        if entry.is_dir() and not entry.is_symlink() and target.is_dir():
            _move_into(entry, target)
            entry.rmdir()
        else:
            entry.rename(target)


def prune(root: Path, patterns: Iterable[str]) -> None:
    """Remove what matches any of `patterns` below `root`."""
    for pattern in patterns:
        remove(list(root.glob(pattern)))


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def install_busybox(root: Path, directory: str) -> None:
    """Links to busybox for each of its commands that is not there yet."""
    listing = tools.run([root / directory / "busybox", "--list"], doing="ask busybox for its commands")
    for name in listing.split():
        path = root / directory / name
        if not path.exists() and not path.is_symlink():
            path.symlink_to("busybox")
    if directory == "usr/bin":
        # The kernel calls this path when it wants a module.
        (root / "usr/sbin/modprobe").symlink_to("../bin/busybox")


def install_modules(directory: Path, modules: ModuleTree, names: Iterable[str]) -> None:
    """The named modules with what they depend on and the indexes for modprobe."""
    chosen = modules.closure(names)
    target = directory / modules.root.name
    for module in chosen.values():
        path = target / module.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(modules.read(module))
    write_files(target, indexes(chosen))


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def settle(root: Path) -> None:
    """Give `root` and all below it the owner, modes and time stamps that do not depend on who built it when."""
    for path in [*root.rglob("*"), root]:
        if os.geteuid() == 0:
            os.chown(path, 0, 0, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    # Last, since all of that changes the directories.
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(TIMESTAMP_NS, TIMESTAMP_NS), follow_symlinks=False)
