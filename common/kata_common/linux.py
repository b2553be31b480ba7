"""Linux calls that Python 3.11 has no function for. Blocking ones are for threads or for boot.

Numbers are those of linux/mount.h, linux/sched.h, linux/reboot.h and linux/prctl.h.
"""

import ctypes
import os

__all__ = [
    "MountFlag",
    "become_subreaper",
    "ctrl_alt_del_as_signal",
    "kernel_log",
    "mount",
    "power_off",
    "umount",
    "unshare",
]

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
MNT_DETACH = 2
_RB_POWER_OFF = 0x4321FEDC
_RB_DISABLE_CAD = 0
_PR_SET_CHILD_SUBREAPER = 36
_SYSLOG_READ_ALL = 3  # syslog(2)


class MountFlag:
    """MS_* of linux/mount.h."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    DIRSYNC = 128
    NOATIME = 1024
    NODIRATIME = 2048
    BIND = 4096
    REC = 16384
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError, its filename is the target."""
    _check(
        _libc.mount(
            source.encode(), target.encode(), fstype.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        ),
        target,
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2); by default the mount point goes at once, the file system when nobody uses it any more."""
    _check(_libc.umount2(target.encode(), flags), target)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _check(_libc.unshare(flags))


def become_subreaper() -> None:
    """Orphans of this process become its children (what PID 1 has by nature)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def ctrl_alt_del_as_signal() -> None:
    """Let Ctrl-Alt-Del (QEMU's system_powerdown on a keyboard) send SIGINT to PID 1 instead of resetting the guest."""
    _check(_libc.reboot(_RB_DISABLE_CAD))


def power_off() -> None:
    """Switch the machine off. Data must have been synced. Returns only where the kernel refuses (OSError)."""
    _check(_libc.reboot(_RB_POWER_OFF))
    raise OSError("the kernel did not power off")


def kernel_log(limit: int) -> bytes:
    """The last `limit` bytes of the kernel's log as text, `<priority>[seconds] line` each; by one call of syslog(2)."""
    buffer = ctypes.create_string_buffer(limit)
    size = _libc.klogctl(_SYSLOG_READ_ALL, buffer, limit)
    if size < 0:
        _check(-1)
    return buffer.raw[:size]
