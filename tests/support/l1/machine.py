"""Boots L1 and carries what it says to this terminal; whatever happens, nothing of it stays."""

import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.hypervisor import virtiofsd
from kata_runtime.hypervisor.qemu import accelerator
from kata_runtime.process import find_program
from support.l1.userland import Userland

__all__ = ["Machine", "nested_kvm"]

# Two L2 guests of 2 GiB, of which they use a quarter, and what containers write to /tmp.
_MEMORY_MIB = 6144
_CPUS = 2
# init_on_alloc=0 is safe here, emulated or not (docs/decisions/0005): no code comes through L1's virtiofs.
_PARAMETERS = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check tsc=reliable rcupdate.rcu_expedited=1"
_PARAMETERS += " init_on_alloc=0"
_TCG = ("-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off,+svm")
_KVM = ("-accel", "kvm", "-cpu", "host")


def nested_kvm(modules: Path = Path("/sys/module")) -> bool:
    """Whether this host's KVM works and gives its guests a KVM of their own."""
    if not accelerator.kvm_usability().usable:
        return False
    switches = (modules / name / "parameters/nested" for name in ("kvm_amd", "kvm_intel"))
    return any(switch.read_text().strip() in ("1", "Y") for switch in switches if switch.exists())


@dataclass(frozen=True)
class Machine:
    """One boot. `share` is the host's directory that L1 sees; `order` (shell variables) tells its init what to do."""

    userland: Userland
    product: Path
    share: Path
    order: Mapping[str, str]

    def run(self, timeout: float) -> int | None:
        """Boot, show what L1 says, and wait for its end; the status of its command, None where it took too long."""
        log = self.share / "l1"
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir(parents=True)
        (log / "order").write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in self.order.items()))
        with ExitStack() as stack:
            shared = stack.enter_context(self._virtiofsd(log))
            shell = bool(self.order["shell"])
            command = self._argv(shared.fileno(), log, mux=shell)
            if shell:
                stack.enter_context(_raw_terminal())
            pipe = None if shell else subprocess.PIPE
            qemu = stack.enter_context(_child(command, log / "qemu.log", pass_fds=(shared.fileno(),), stdout=pipe))
            ended = qemu.wait() is not None if shell else _carry(qemu, timeout)
        if not ended:
            return None
        status = log / "status"
        return int(status.read_text()) if status.exists() and status.read_text().strip() else 1

    def _argv(self, shared: int, log: Path, *, mux: bool) -> list[str]:
        kvm = nested_kvm()
        options = "hpet=off,i8042=off,sata=off,smbus=off,vmport=off,memory-backend=memory"
        argv = [find_program("qemu-system-x86_64", package="qemu-system-x86"), *(_KVM if kvm else _TCG)]
        argv += ["-name", "l1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-machine", f"q35,{options}", "-smp", str(_CPUS), "-m", f"{_MEMORY_MIB}M"]
        argv += ["-object", f"memory-backend-memfd,id=memory,size={_MEMORY_MIB}M,share=on"]
        argv += ["-kernel", str(self.userland.kernel), "-initrd", str(self.userland.initrd), "-append", _PARAMETERS]
        for serial, disk in (("root", self.userland.disk), ("product", self.product)):
            # What L1 writes is gone with it.
            argv += ["-drive", f"id={serial},if=none,file={disk},format=raw,snapshot=on"]
            argv += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
        argv += ["-chardev", f"socket,id=shared,fd={shared}"]
        argv += ["-device", "vhost-user-fs-pci,chardev=shared,tag=artifacts", "-device", "virtio-rng-pci"]
        return [*argv, "-serial", f"file:{log / 'console.log'}", "-serial", "mon:stdio" if mux else "stdio"]

    @contextmanager
    def _virtiofsd(self, log: Path) -> Iterator[socket.socket]:
        program = find_program("virtiofsd", package="virtiofsd", also=virtiofsd.PROGRAMS)
        path = log / "virtiofs.sock"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as end:
            # A socket's name is short, that of a directory may not be.
            here = os.open(log, os.O_PATH)
            try:
                name = f"/proc/self/fd/{here}/{path.name}"
                listener.bind(name)
                listener.listen(1)
                end.connect(name)
            finally:
                os.close(here)
            path.unlink()
            argv = virtiofsd.to_argv(program, listener.fileno(), self.share, cache="auto", extra=())
            with _child(argv, log / "virtiofsd.log", pass_fds=(listener.fileno(),), stdout=subprocess.DEVNULL):
                yield end


@contextmanager
def _child(
    argv: list[str], log: Path, *, pass_fds: tuple[int, ...], stdout: int | None
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that ends with the block, and with this process; a Ctrl-C at the terminal is not for it."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    terminal = stdout is None
    with log.open("wb") as errors:
        child = subprocess.Popen(
            command,
            stdin=None if terminal else subprocess.DEVNULL,
            stdout=stdout,
            stderr=errors,
            pass_fds=pass_fds,
            # A shell's QEMU must stay in the terminal's foreground to read it; its Ctrl-C is a character then.
            start_new_session=not terminal,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _carry(qemu: "subprocess.Popen[bytes]", timeout: float) -> bool:
    """Show what comes until it ends; False where that is later than `timeout` seconds from now."""
    assert qemu.stdout is not None
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if not select.select([qemu.stdout], [], [], left)[0]:
            continue
        data = os.read(qemu.stdout.fileno(), 65536)
        if not data:
            try:
                qemu.wait(max(left, 0))
            except subprocess.TimeoutExpired:
                return False
            return True
        sys.stdout.buffer.write(data.replace(b"\r", b""))
        sys.stdout.buffer.flush()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
