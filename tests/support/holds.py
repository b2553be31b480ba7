"""Slows stages of a sandbox's start by known times, without a back door in the product.

On the host a program is replaced by a wrapper that waits and then becomes it. In the guest an archive behind the
initramfs' own replaces one of its programs (the kernel unpacks both, the later file wins): `switch_root` waits,
puts a `crun` that waits in front of the real one and starts the agent by a script that waits at an import, at mount(2)
and at an interface. Each wait says when it began and ended, so that a test can ask the trace about exactly that time,
however slow the machine is meanwhile.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from kata_runtime.image import Artifacts, cpio

__all__ = ["Hold", "Holds", "virtiofsd"]

_CONSOLE = re.compile(r"kata-test: hold (\w+) ([\d.]+) ([\d.]+)")

# --- on the host ----------------------------------------------------------------------------------------------------

_WAIT = """#!/bin/sh
if [ "$1" = --version ]; then exec {program} "$@"; fi
sleep {after}
begin=$(date +%s%N); sleep {seconds}; echo "{stage} $begin $(date +%s%N)" >>{log}
exec {program} "$@"
"""
# Becomes slow when it is asked to end. Without the wrapper it would be gone with QEMU already.
_LINGER = """#!{python} -IS
import os, signal, subprocess, sys, time
if sys.argv[1:] == ["--version"]:
    os.execv("/bin/sh", ["sh", "-c", 'exec {program} "$@"', "sh", *sys.argv[1:]])
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
child = subprocess.Popen(["/bin/sh", "-c", 'exec {program} "$@"', "sh", *sys.argv[1:]], close_fds=False)
signal.sigwait({{signal.SIGTERM}})
begin = time.time_ns()
time.sleep({seconds})
with open({log!r}, "a") as log:
    log.write(f"{stage} {{begin}} {{time.time_ns()}}\\n")
child.kill()
child.wait()
"""
# Prologues of `kata-runtime` (`Kata.prologue`).
_LATE = """
import time
begin = time.time_ns()
time.sleep({seconds})
with open({log!r}, "a") as log:
    log.write(f"{stage} {{begin}} {{time.time_ns()}}\\n")
"""
_HELPERS = """
import sys
sys.executable = {python!r}
"""

# A kernel that answers late when it is asked for a filter of tc (RTM_NEWTFILTER, linux/rtnetlink.h).
_SLOW_TC = """
import socket, struct, time
plain = socket.socket.send

def send(self, data, *flags):
    if self.family == socket.AF_NETLINK and struct.unpack_from("=IH", data)[1] == 44:
        socket.socket.send = plain
        begin = time.time_ns()
        time.sleep({seconds})
        with open({log!r}, "a") as log:
            log.write(f"{stage} {{begin}} {{time.time_ns()}}\\n")
    return plain(self, data, *flags)

socket.socket.send = send
"""

# --- in the guest ---------------------------------------------------------------------------------------------------

_SHELL = """#!/bin/sh
hold() {
	[ "$2" != 0 ] || return 0
	read -r begin rest </proc/uptime
	busybox sleep "$2"
	read -r end rest </proc/uptime
	echo "kata-test: hold $1 $begin $end" >/dev/console
}
"""
_CRUN = """case " $* " in
*" create "*) hold create {create} ;;
*" delete "*) hold delete {delete} ;;
esac
exec /usr/bin/crun "$@"
"""
# "Waiting 1sec" is what the kernel says when resumedelay= makes it wait.
_SWITCH_ROOT = """#!/bin/sh
busybox dmesg |
	busybox sed -n 's/^\\[ *\\([0-9.]*\\)\\] .*Waiting 1sec before.*/kata-test: hold kernel \\1 \\1/p' >/dev/console
if [ {initramfs} != 0 ]; then
	read -r begin rest </root/proc/uptime
	busybox sleep {initramfs}
	read -r end rest </root/proc/uptime
	echo "kata-test: hold initramfs $begin $end" >/dev/console
fi
busybox mount -t tmpfs -o mode=755 holds /root/mnt
busybox cp /holds/crun /holds/agent.py /root/mnt
export PATH=/mnt:$PATH
exec busybox switch_root /root /usr/bin/python3.11 -I -S /mnt/agent.py
"""
_AGENT = """
import marshal
import time

def hold(stage, seconds):
    if not seconds:
        return
    begin = time.monotonic_ns()
    time.sleep(seconds)
    end = time.monotonic_ns()
    with open("/dev/console", "w") as console:
        console.write(f"kata-test: hold {stage} {begin / 1e9:.6f} {end / 1e9:.6f}\\n")

launcher = {"__name__": "launcher"}
with open("/usr/lib/kata-agent/launcher.pyc", "rb") as file:
    exec(marshal.loads(file.read()[16:]), launcher)
seconds = @SECONDS@

class Bundle(launcher["Bundle"]):
    def exec_module(self, module):
        if module.__name__ == "grpc":
            hold("agent", seconds["agent"])
        super().exec_module(module)
        if module.__name__ == "kata_agent.guest.mounts":
            mount = module._mount
            def slow(storage, point):
                if storage.driver == "virtio-fs":
                    hold("mount", seconds["mount"])
                return mount(storage, point)
            module._mount = slow
        if module.__name__ == "kata_agent.guest.network":
            set_up = module._set_up
            def slow_set_up(*arguments):
                hold("interface", seconds["interface"])
                return set_up(*arguments)
            module._set_up = slow_set_up

launcher["Bundle"] = Bundle
launcher["main"]()
"""


def virtiofsd() -> str:
    """The host's virtiofsd, as a wrapper calls it."""
    rust = Path("/usr/libexec/virtiofsd")
    return str(rust) if rust.exists() else "/usr/lib/qemu/virtiofsd"


@dataclass(frozen=True)
class Hold:
    """A stage that waited; host time in ns."""

    stage: str
    begin: int
    end: int


@dataclass
class Holds:
    """Makes the wrappers in `directory` and collects what they said."""

    directory: Path
    _log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        # The programs run as somebody else.
        self._log = self.directory / "holds.log"
        self._log.touch()
        self._log.chmod(0o666)

    def wrap(self, stage: str, program: str, seconds: float, *, after: float = 0) -> str:
        """A program that waits and becomes `program`. It is asked about its wait only from `after` seconds on."""
        return self._script(stage, _WAIT.replace("{after}", str(after)), program, seconds)

    def linger(self, stage: str, program: str, seconds: float) -> str:
        """A program that does as `program` and waits when it gets SIGTERM."""
        return self._script(stage, _LINGER, program, seconds)

    def _script(self, stage: str, template: str, program: str, seconds: float) -> str:
        path = self.directory / stage / Path(program.split(maxsplit=1)[0]).name
        path.parent.mkdir()
        text = template.format(stage=stage, program=program, seconds=seconds, log=str(self._log), python=sys.executable)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def late(self, stage: str, seconds: float) -> str:
        """A prologue that makes the runtime itself wait before its first import."""
        return _LATE.format(stage=stage, seconds=seconds, log=str(self._log))

    def late_helpers(self, stage: str, seconds: float) -> str:
        """A prologue with which the runtime's helpers in Python wait before they start."""
        return _HELPERS.format(python=self.wrap(stage, sys.executable, seconds))

    def slow_tc(self, stage: str, seconds: float) -> str:
        """A prologue with which the first filter that the runtime wants of tc comes late."""
        return _SLOW_TC.format(stage=stage, seconds=seconds, log=str(self._log))

    def initrd(self, image: Path, **seconds: float) -> str:
        """The initramfs of `image` with waits in `initramfs`, `agent`, `mount`, `create`, `delete` and `interface`."""
        seconds = dict.fromkeys(("initramfs", "agent", "mount", "create", "delete", "interface"), 0.0) | seconds
        seconds = {stage: wait or 0 for stage, wait in seconds.items()}
        scripts = {
            "bin/switch_root": _SWITCH_ROOT.format(initramfs=seconds["initramfs"]),
            "holds/crun": _SHELL + _CRUN.format(**seconds),
            "holds/agent.py": _AGENT.replace("@SECONDS@", repr(seconds)),
        }
        entries = [cpio.directory("holds"), *(cpio.file(name, text.encode(), 0o755) for name, text in scripts.items())]
        path = self.directory / "initrd.img"
        original = Artifacts.at(image).initrd.read_bytes()
        # Archives begin at multiples of four bytes.
        path.write_bytes(original + bytes(-len(original) % 4) + cpio.archive(entries))
        return str(path)

    def add(self, stage: str, begin: int, end: int) -> None:
        """A wait of the test's own; host time in ns."""
        with self._log.open("a") as log:
            log.write(f"{stage} {begin} {end}\n")

    def all(self, console: Path, offset: int) -> dict[str, Hold]:
        """Every wait by its stage; `offset` (ns) turns the guest's clock into the host's."""
        found = [line.split() for line in self._log.read_text().splitlines()]
        holds = [Hold(stage, int(begin), int(end)) for stage, begin, end in found]
        for stage, begin, end in _CONSOLE.findall(console.read_text(errors="replace")):
            length = 1_000_000_000 if stage == "kernel" else 0
            holds.append(Hold(stage, _ns(begin) + offset, _ns(end) + length + offset))
        assert len({hold.stage for hold in holds}) == len(holds), holds
        return {hold.stage: hold for hold in holds}


def _ns(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or "0")
