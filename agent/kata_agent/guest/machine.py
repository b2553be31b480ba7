"""The guest itself: what PID 1 mounts, its clock, its random numbers, what it is made of."""

import fcntl
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from kata_agent.errors import InvalidError, SetupError
from kata_common import linux
from kata_common.linux import MountFlag

__all__ = ["Details", "details", "prepare", "renew", "reseed", "set_time"]

_SAFE: Final = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
# Mount point, type, flags, data; in order. What the initramfs has already mounted is left as it is.
_MOUNTS: Final = (
    ("/proc", "proc", _SAFE, ""),
    ("/sys", "sysfs", _SAFE, ""),
    ("/dev", "devtmpfs", MountFlag.NOSUID, "mode=0755"),
    ("/dev/pts", "devpts", MountFlag.NOSUID | MountFlag.NOEXEC, "mode=0620,gid=5,ptmxmode=0666"),
    ("/dev/shm", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=1777"),  # noqa: S108
    ("/dev/mqueue", "mqueue", _SAFE, ""),
    ("/run", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=0755"),
    ("/tmp", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=1777"),  # noqa: S108
    ("/sys/fs/cgroup", "cgroup2", _SAFE, "nsdelegate,memory_recursiveprot"),
)
_LINKS: Final = (
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
# Nodes whose drivers are loaded when they are opened (Linux's devices.txt); udev would make them.
_NODES: Final = (("/dev/net/tun", 10, 200),)
# asm-generic/ioctls: linux/random.h RNDADDENTROPY and RNDRESEEDCRNG; linux/sockios.h SIOCSIFFLAGS; linux/if.h.
RNDADDENTROPY: Final = 0x40085203
RNDRESEEDCRNG: Final = 0x5207
SIOCSIFFLAGS: Final = 0x8914
IFF_UP_RUNNING: Final = 0x41
MAX_ENTROPY: Final = 4096
MACHINE_ID: Final = Path("/run/machine-id")


def prepare(done: Callable[[str], None] = lambda _: None) -> None:
    """What a machine needs before anything can run in it. For PID 1, once. `done` hears of each step.

    Raises SetupError.
    """
    for point, fstype, flags, data in _MOUNTS:
        try:
            _mount(point, fstype, flags, data)
        except OSError as error:
            raise SetupError(f"can't mount {fstype} at {point}: {error.strerror}") from error
        done(point.strip("/").replace("/", "_"))
    for link, target in _LINKS:
        with suppress(OSError):
            Path(link).unlink(missing_ok=True)
            Path(link).symlink_to(target)
    for node, major, minor in _NODES:
        with suppress(OSError):
            Path(node).parent.mkdir(exist_ok=True)
            os.mknod(node, stat.S_IFCHR, os.makedev(major, minor))
            Path(node).chmod(0o666)
    done("links")
    with suppress(OSError):
        _enable_controllers(Path("/sys/fs/cgroup"))
    done("controllers")
    _loopback_up()
    done("loopback")
    with suppress(OSError):
        # The kernel's own limit (fs/file.c, sysctl_nr_open_max): a host's RLIMIT_NOFILE may be as high.
        Path("/proc/sys/fs/nr_open").write_text(str(0x7FFF_FFC0))
    with suppress(OSError):
        socket.sethostname("kata")
    # Where the kernel must give up (the agent is killed), QEMU shall see it at once instead of a guest that hangs.
    with suppress(OSError):
        Path("/proc/sys/kernel/panic").write_text("-1")
    with suppress(OSError):
        linux.ctrl_alt_del_as_signal()


def _mount(point: str, fstype: str, flags: int, data: str) -> None:
    path = Path(point)
    with suppress(OSError):
        # Another device than the parent's: something is mounted here.
        if path.stat().st_dev != path.parent.stat().st_dev:
            return
    with suppress(OSError):
        path.mkdir(exist_ok=True)
    try:
        linux.mount(fstype, point, fstype, flags, data)
    except OSError as error:
        if error.errno != 16:  # EBUSY: it is mounted
            raise


def _enable_controllers(root: Path) -> None:
    """Let the children of `root` have every controller that there is. Raises OSError."""
    for name in (root / "cgroup.controllers").read_text().split():
        # One by one: a controller that can't be enabled must not keep the others off.
        with suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"+{name}")


def _loopback_up() -> None:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))


def set_time(realtime_ns: int) -> None:
    """Set CLOCK_REALTIME. Raises SetupError."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, realtime_ns)
    except (OSError, OverflowError) as error:
        raise SetupError(f"can't set the clock to {realtime_ns} ns: {error}") from error


def reseed(data: bytes) -> None:
    """Credit `data` as entropy and reseed, so that clones of one template don't share random numbers (random(4))."""
    if not 0 < len(data) <= MAX_ENTROPY:
        raise InvalidError(f"{len(data)} bytes of entropy; 1 to {MAX_ENTROPY} are taken")
    try:
        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, RNDADDENTROPY, struct.pack(f"ii{len(data)}s", len(data) * 8, len(data), data))
            fcntl.ioctl(fd, RNDRESEEDCRNG)
        finally:
            os.close(fd)
    except OSError as error:
        raise SetupError(f"can't reseed the kernel's random numbers: {error.strerror}") from error


def renew(entropy: bytes) -> None:
    """Be one guest among the clones of a template: random numbers and a machine id of its own.

    Raises InvalidError, SetupError.
    """
    reseed(entropy)
    if "random" in sys.modules:
        sys.modules["random"].seed()
    with suppress(OSError):
        # machine-id(5); /etc/machine-id of the image is a link to it.
        MACHINE_ID.write_text(f"{os.urandom(16).hex()}\n")


class Details(NamedTuple):
    """What the guest is made of; `memory` in bytes."""

    memory: int
    cpus: int
    kernel: str
    init: bool
    seccomp: bool
    python: str
    crun: str


def details(crun: str) -> Details:
    """Collect them; `crun` is its version."""
    return Details(
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cpus=os.sysconf("SC_NPROCESSORS_ONLN"),
        kernel=os.uname().release,
        init=os.getpid() == 1,
        seccomp=_has_seccomp(),
        python=".".join(map(str, sys.version_info[:3])),
        crun=crun,
    )


def _has_seccomp() -> bool:
    return "\nSeccomp:" in Path("/proc/self/status").read_text()
