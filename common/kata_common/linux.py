"""Linux calls that Python 3.11 has no function for, and mount(8)'s words. Blocking ones are for threads or for boot.

Every function raises OSError. Numbers are those of linux/mount.h, linux/sched.h, linux/reboot.h, linux/prctl.h,
linux/openat2.h and asm-generic/unistd.h.
"""

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CLONE_FS",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUTS",
    "MountAttribute",
    "MountFlag",
    "Resolve",
    "become_subreaper",
    "bpf",
    "ctrl_alt_del_as_signal",
    "exchange",
    "kernel_log",
    "mount",
    "mount_flags",
    "mount_setattr",
    "move_mount",
    "open_beneath",
    "open_tree",
    "pivot_root",
    "power_off",
    "prctl",
    "set_domainname",
    "set_io_priority",
    "set_scheduling",
    "setns",
    "spawn",
    "umount",
    "unshare",
    "use_one_heap",
]

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_RB_POWER_OFF = 0x4321FEDC
_RB_DISABLE_CAD = 0
_PR_SET_CHILD_SUBREAPER = 36
_SYSLOG_READ_ALL = 3  # syslog(2)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2)
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442  # on every architecture
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
# openat2(2) gives up where a rename anywhere on the machine could have led it astray, and asks to be tried again.
_TRIES = 128
_SYS_PIDFD_GETFD = 438
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_M_ARENA_MAX = -8  # mallopt(3)
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1

StrPath = str | os.PathLike[str]
# spawn.h
_POSIX_SPAWN_SETSIGDEF, _POSIX_SPAWN_SETSIGMASK = 0x04, 0x08
# More than glibc's posix_spawnattr_t (336 bytes), posix_spawn_file_actions_t (80) and sigset_t (128) on 64 bits.
_SPAWN_SIZE, _SIGSET_SIZE = 512, 128


class MountFlag:
    """MS_* of linux/mount.h."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    MANDLOCK = 64
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


# mount(8)'s words: the bits, and whether the word sets them.
_WORDS = {
    "defaults": (0, True),
    "ro": (MountFlag.RDONLY, True),
    "rw": (MountFlag.RDONLY, False),
    "nosuid": (MountFlag.NOSUID, True),
    "suid": (MountFlag.NOSUID, False),
    "nodev": (MountFlag.NODEV, True),
    "dev": (MountFlag.NODEV, False),
    "noexec": (MountFlag.NOEXEC, True),
    "exec": (MountFlag.NOEXEC, False),
    "sync": (MountFlag.SYNCHRONOUS, True),
    "async": (MountFlag.SYNCHRONOUS, False),
    "mand": (MountFlag.MANDLOCK, True),
    "nomand": (MountFlag.MANDLOCK, False),
    "dirsync": (MountFlag.DIRSYNC, True),
    "noatime": (MountFlag.NOATIME, True),
    "atime": (MountFlag.NOATIME, False),
    "nodiratime": (MountFlag.NODIRATIME, True),
    "diratime": (MountFlag.NODIRATIME, False),
    "relatime": (MountFlag.RELATIME, True),
    "norelatime": (MountFlag.RELATIME, False),
    "strictatime": (MountFlag.STRICTATIME, True),
    "nostrictatime": (MountFlag.STRICTATIME, False),
    "bind": (MountFlag.BIND, True),
    "rbind": (MountFlag.BIND | MountFlag.REC, True),
}
_PROPAGATION = {
    "private": MountFlag.PRIVATE,
    "slave": MountFlag.SLAVE,
    "shared": MountFlag.SHARED,
    "unbindable": MountFlag.UNBINDABLE,
}


def mount_flags(options: Iterable[str]) -> tuple[int, int, list[str]]:
    """mount(2)'s flags, those of propagation for a call of their own, and the options that are the file system's."""
    flags = propagation = 0
    rest = []
    for option in options:
        kind = option.removeprefix("r")
        if option in _WORDS:
            bits, sets = _WORDS[option]
            flags = flags | bits if sets else flags & ~bits
        elif kind in _PROPAGATION:
            propagation = _PROPAGATION[kind] | (0 if kind == option else MountFlag.REC)
        else:
            rest.append(option)
    return flags, propagation, rest


def _checked(result: int, path: StrPath | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path and os.fspath(path))
    return int(result)


def mount(source: StrPath, target: StrPath, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); the filename of its error is the target."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    _checked(result, target)


def umount(target: StrPath, flags: int = MNT_DETACH) -> None:
    """umount2(2); by default the mount point goes at once, the file system when nobody uses it any more."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new: StrPath, old: StrPath) -> None:
    """pivot_root(2): `new` becomes the root of all in this mount namespace; the old one is at `old` then.

    Both may be "."; what is mounted there is the old one then.
    """
    _checked(_libc.pivot_root(os.fsencode(new), os.fsencode(old)), new)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _checked(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """setns(2) for the calling thread; `kind` is CLONE_NEW*."""
    _checked(_libc.setns(fd, kind))


def prctl(*arguments: int) -> int:
    """prctl(2); arguments that are left out are zeros."""
    return _checked(_libc.prctl(*map(ctypes.c_ulong, (*arguments, *(0,) * (5 - len(arguments))))))


def exchange(one: StrPath, other: StrPath) -> None:
    """Two directory entries get each other's name in one step."""
    paths = os.fsencode(one), os.fsencode(other)
    _checked(_libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE), other)


class Resolve:
    """RESOLVE_* of linux/openat2.h: how a path may be walked."""

    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, path: str, flags: int, resolve: int = Resolve.BENEATH | Resolve.NO_SYMLINKS) -> int:
    """openat2(2): a descriptor (close-on-exec) of `path` below the open `directory`, whoever changes what is there.

    By default no symlink is followed. With Resolve.IN_ROOT, `directory` is the root of absolute paths, symlinks and
    `..` alike. ELOOP is for a symlink that is not followed (the kernel's own in /proc never are), EXDEV for a way out.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve | Resolve.NO_MAGICLINKS)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    number, fd = ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory)
    result = -1
    for _ in range(_TRIES):
        result = _libc.syscall(number, fd, os.fsencode(path), ctypes.byref(how), size)
        if result >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return _checked(result, path)


class MountAttribute:
    """MOUNT_ATTR_* of linux/mount.h."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def open_tree(source: int) -> int:
    """open_tree(2): a detached copy of what is mounted at a descriptor, with all that is mounted below it."""
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | _AT_RECURSIVE | os.O_CLOEXEC
    return _checked(_libc.syscall(ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(source), b"", ctypes.c_uint(flags)))


def mount_setattr(tree: int, attributes: int, propagation: int = 0, *, below: bool = True) -> None:
    """mount_setattr(2) for a mount and all `below` it: MountAttribute's to set, and one of MountFlag's propagations."""
    wanted = _MountAttr(attributes, 0, propagation, 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if below else 0))
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    number = ctypes.c_long(_SYS_MOUNT_SETATTR)
    _checked(_libc.syscall(number, ctypes.c_int(tree), b"", flags, ctypes.byref(wanted), size))


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach a detached mount at the place that a descriptor is of."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    number = ctypes.c_long(_SYS_MOVE_MOUNT)
    _checked(_libc.syscall(number, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", flags))


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2); the kernel takes what is missing of `attributes` for zeros."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = ctypes.c_long(_SYS_BPF[os.uname().machine])
    return _checked(_libc.syscall(number, command, buffer, ctypes.c_uint(len(attributes))))


def set_scheduling(pid: int, attributes: bytes) -> None:
    """sched_setattr(2); `attributes` is a struct sched_attr (linux/sched/types.h), pid 0 the calling thread."""
    number = ctypes.c_long(_SYS_SCHED_SETATTR[os.uname().machine])
    _checked(_libc.syscall(number, pid, ctypes.create_string_buffer(attributes, len(attributes)), 0))


def set_io_priority(pid: int, priority: int) -> None:
    """ioprio_set(2); `priority` as in linux/ioprio.h, pid 0 is the calling thread."""
    number = ctypes.c_long(_SYS_IOPRIO_SET[os.uname().machine])
    _checked(_libc.syscall(number, _IOPRIO_WHO_PROCESS, pid, priority))


def take_descriptor(pidfd: int, number: int) -> int:
    """pidfd_getfd(2): a copy of descriptor `number` of another process."""
    call = ctypes.c_long(_SYS_PIDFD_GETFD)
    return _checked(_libc.syscall(call, ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0)))


def use_one_heap() -> None:
    """Let all threads share one heap of malloc's: by default each gets its own, which holds on to its memory."""
    _libc.mallopt(_M_ARENA_MAX, 1)


def set_domainname(name: str) -> None:
    """setdomainname(2), in the calling thread's UTS namespace."""
    encoded = name.encode()
    _checked(_libc.setdomainname(encoded, ctypes.c_size_t(len(encoded))))


def become_subreaper() -> None:
    """Orphans of this process become its children (what PID 1 has by nature)."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def ctrl_alt_del_as_signal() -> None:
    """Let Ctrl-Alt-Del (QEMU's system_powerdown on a keyboard) send SIGINT to PID 1 instead of resetting the guest."""
    _checked(_libc.reboot(_RB_DISABLE_CAD))


def power_off() -> None:
    """Switch the machine off. Data must have been synced. Returns only where the kernel refuses (OSError)."""
    _checked(_libc.reboot(_RB_POWER_OFF))
    raise OSError("the kernel did not power off")


def kernel_log(limit: int) -> bytes:
    """The last `limit` bytes of the kernel's log as text, `<priority>[seconds] line` each; by one call of syslog(2)."""
    buffer = ctypes.create_string_buffer(limit)
    # In two steps: `raw` is a copy, which must be made after the call.
    size = _checked(_libc.klogctl(_SYSLOG_READ_ALL, buffer, limit))
    return buffer.raw[:size]


def spawn(argv: Sequence[str], stdio: Sequence[int], env: Mapping[str, str]) -> int:
    """Start a program found on PATH, with these descriptors as 0, 1, …, no signal blocked and none ignored; its pid.

    `os.posix_spawnp` can't do the last: glibc has the child ignore 32 and 33, which it keeps to itself, unless they are
    in the set of those to be reset, and no function of C or Python puts them there. Raises OSError.
    """
    attributes, actions = (ctypes.create_string_buffer(_SPAWN_SIZE) for _ in range(2))
    every, none = (ctypes.create_string_buffer(byte * _SIGSET_SIZE, _SIGSET_SIZE) for byte in (b"\xff", b"\0"))
    _libc.posix_spawnattr_init(attributes)
    _libc.posix_spawn_file_actions_init(actions)
    try:
        _libc.posix_spawnattr_setsigdefault(attributes, every)
        _libc.posix_spawnattr_setsigmask(attributes, none)
        _libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK))
        for target, fd in enumerate(stdio):
            _libc.posix_spawn_file_actions_adddup2(actions, fd, target)
        pid = ctypes.c_int()
        given = _strings(argv), _strings([f"{name}={value}" for name, value in env.items()])
        code = _libc.posix_spawnp(ctypes.byref(pid), os.fsencode(argv[0]), actions, attributes, *given)
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
        _libc.posix_spawnattr_destroy(attributes)
    if code:
        raise OSError(code, os.strerror(code), argv[0])
    return pid.value


def _strings(values: Sequence[str]) -> "ctypes.Array[ctypes.c_char_p]":
    return (ctypes.c_char_p * (len(values) + 1))(*map(os.fsencode, values), None)
