"""What the backend can't do any more once it serves."""

import ast
import os
import signal
import subprocess
import sys

import pytest

PRELUDE = """
import ctypes, mmap, os, signal, socket, sys
from kata_runtime.hypervisor.vsock.device import confine
ends = os.pipe()
"""
NEEDED = {
    "a unix socket": "socket.socket(socket.AF_UNIX).close()",
    "a pair that talks": "os.write(ends[1], b'x'); os.read(ends[0], 1)",
    "memory of a file": "mmap.mmap(-1, 1 << 20).close()",
    "non-blocking": "os.set_blocking(ends[0], False)",
    "randomness": "os.urandom(8)",
    "much memory": "bytearray(64 << 20)",
    "the end": "sys.exit(0)",
}
FORBIDDEN = {
    "open": "os.open('/etc/passwd', os.O_RDONLY)",
    "exec": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "a network socket": "socket.socket(socket.AF_INET)",
    "a vsock": "socket.socket(40)",
    "a netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a unix pair by another call": "socket.socketpair()",
    "executable memory": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "a signal to others": "os.kill(os.getppid(), 0)",
    "a look at a file": "os.stat('/')",
    "another root": "os.chroot('.')",
    "a terminal's input": "import fcntl, termios; fcntl.ioctl(ends[0], termios.TIOCSTI, b'x')",
    "a listener": "s = socket.socket(socket.AF_UNIX); s.bind('')",
    "ptrace": "ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "32 bits of x86": "ctypes.CDLL(None).syscall(0x40000000 + 39)",
}


def confined(code: str) -> int:
    """Exit status of a process that runs `code` under the filter; negative for a signal."""
    program = f"{PRELUDE}import fcntl, termios\nconfine.restrict_calls()\n{code}\nos._exit(0)"
    return subprocess.run([sys.executable, "-P", "-c", program], check=False, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("code", NEEDED.values(), ids=NEEDED)
def test_what_it_needs(code: str) -> None:
    assert confined(code) == 0


@pytest.mark.parametrize("code", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_it_can_not_do(code: str) -> None:
    assert confined(code) == -signal.SIGSYS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can stop being root")
def test_who_becomes_somebody_keeps_nothing() -> None:
    code = f"""{PRELUDE}
os.chdir("/proc")
confine.become(12345, 12345)
print(open("/self/status").read())
print("mounts:\\t", open("/self/mountinfo").read().splitlines())
"""
    told = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout
    status = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["12345"] * 4
    assert status["Gid"].split() == ["12345"] * 4
    assert status["Groups"].split() == []
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    [mount] = ast.literal_eval(status["mounts"].strip())
    assert mount.split()[4:6] == ["/", "ro,nosuid,nodev,noexec,relatime"]
