"""What the backend gives up before it reads a byte of QEMU's or the guest's: root, capabilities, paths, system calls.

The filter is classic BPF over seccomp's data (linux/seccomp.h, linux/filter.h, linux/bpf_common.h); the numbers of
system calls are x86_64's (arch/x86/entry/syscalls/syscall_64.tbl). A call that is not on the list ends the process:
nothing here needs it, so somebody else is at work.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from kata_common import linux
from kata_common.linux import MountFlag, prctl

__all__ = ["become", "filter_program", "restrict_calls"]

# linux/prctl.h, linux/seccomp.h, linux/audit.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_KILL_PROCESS, _ALLOW = 0x8000_0000, 0x7FFF_0000
_ARCH_X86_64 = 0xC000_003E
# Offsets in struct seccomp_data; arguments are 64 bits wide, the low half first.
_NR, _ARCH, _ARGS = 0, 4, 16
# BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JSET | BPF_K, BPF_RET | BPF_K
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_INSTRUCTION = struct.Struct("=HBBI")

_AF_UNIX = 1
_PROT_EXEC = 4
_FIONBIO = 0x5421
# Of newfstatat, by which glibc does fstat: the descriptor itself is meant.
_AT_EMPTY_PATH = 0x1000
# Whatever they are called with.
CALLS: Final[Mapping[str, int]] = {
    "read": 0,
    "write": 1,
    "close": 3,
    "fstat": 5,
    "lseek": 8,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "readv": 19,
    "writev": 20,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "getpid": 39,
    "connect": 42,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "shutdown": 48,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
    "exit": 60,
    "fcntl": 72,
    "sigaltstack": 131,
    "gettid": 186,
    "futex": 202,
    "restart_syscall": 219,
    "clock_gettime": 228,
    "exit_group": 231,
    "epoll_wait": 232,
    "epoll_ctl": 233,
    "epoll_pwait": 281,
    "accept4": 288,
    "getrandom": 318,
}
# Allowed for some values of one argument. What opens a file or starts a program is nowhere here.
_MMAP, _MPROTECT, _SOCKET, _IOCTL, _NEWFSTATAT = 9, 10, 41, 16, 262


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)


def filter_program(calls: Iterable[int]) -> bytes:
    """The filter that lets these calls pass, and AF_UNIX sockets, memory that is not executable, FIONBIO, fstat."""
    program = [
        _instruction(_LOAD, _ARCH),
        _instruction(_IF_EQUAL, _ARCH_X86_64, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        # Numbers of the x32 ABI have bit 30 set, and are on no list.
        _instruction(_LOAD, _NR),
    ]
    for number in calls:
        program += [_instruction(_IF_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    for number, argument, test, value in (
        (_MMAP, 2, _IF_SET, _PROT_EXEC),
        (_MPROTECT, 2, _IF_SET, _PROT_EXEC),
        (_SOCKET, 0, _IF_EQUAL, _AF_UNIX),
        (_IOCTL, 1, _IF_EQUAL, _FIONBIO),
        (_NEWFSTATAT, 3, _IF_EQUAL, _AT_EMPTY_PATH),
    ):
        good = (1, 0) if test == _IF_EQUAL else (0, 1)  # where to go: 1 is the second of the two ends
        program += [
            _instruction(_IF_EQUAL, number, 0, 4),
            _instruction(_LOAD, _ARGS + 8 * argument),
            _instruction(test, value, *good),
            _instruction(_RETURN, _KILL_PROCESS),
            _instruction(_RETURN, _ALLOW),
        ]
    return b"".join([*program, _instruction(_RETURN, _KILL_PROCESS)])


def restrict_calls() -> None:
    """From now on this process makes no system call but those above. Raises OSError where the kernel has no seccomp."""
    program = filter_program(CALLS.values())
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    fprog = struct.pack("HxxxxxxQ", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
    pointer = ctypes.create_string_buffer(fprog, len(fprog))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(pointer))


def _enter_for_good() -> None:
    """Not chroot(2), which leaves the mounts of the host in the process's namespace."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", MountFlag.REC | MountFlag.PRIVATE)
    here = os.getcwd()  # noqa: PTH109 - pathlib is not imported here
    linux.mount(here, here, "", MountFlag.BIND)
    harmless = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
    linux.mount("none", here, "", MountFlag.BIND | MountFlag.REMOUNT | harmless)
    os.chdir(here)
    linux.pivot_root(".", ".")
    linux.umount(".")


def become(uid: int, gid: int) -> None:
    """Drop root for good, and the working directory becomes all that there is, to be read. Raises OSError."""
    _enter_for_good()
    capability = 0
    while True:
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # the first number that the kernel does not know (EINVAL)
        capability += 1
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
