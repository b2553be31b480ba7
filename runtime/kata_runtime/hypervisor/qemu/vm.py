"""One QEMU process from exec to exit, and how far its guest has come."""

import asyncio
import dataclasses
import functools
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from enum import StrEnum
from pathlib import Path

from kata_common import marks
from kata_runtime.errors import BootError, HypervisorError, quoted
from kata_runtime.hypervisor.qemu import hotplug
from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.argv import hotplug_ports, to_argv
from kata_runtime.hypervisor.qemu.console import Console
from kata_runtime.hypervisor.qemu.qmp import Qmp, Transcript
from kata_runtime.hypervisor.qemu.spec import HOTPLUG_PORTS, NetDevice, VmSpec
from kata_runtime.process import Child, Privileges, describe, launch
from kata_telemetry.span import Site

__all__ = ["BootStage", "Vm", "hint_of_death", "last_words", "launch_qemu"]

_trace = Site(package="virtcontainers", subsystem="hypervisor")
_log = logging.getLogger("kata.qemu")

# Of the console, in which a kernel that gives up says why: what it prints after that is long.
_LAST_LINES = 150
# Of these, what an error quotes.
_QUOTED_LINES = 15
# How the kernel begins a line, and what tells that a line says why it ended: a panic, else an exception of the agent.
_TIMESTAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ")
_CAUSES = (re.compile(r"Kernel panic - not syncing: (.+)"), re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception)\b.*)"))


class BootStage(StrEnum):
    """How far a boot has come, by what QEMU's streams have shown; in order."""

    QEMU = "QEMU started"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    INITRAMFS = "initramfs"
    AGENT = "agent start"
    READY = "agent ready"


# What tells that a stage has begun, and in which stream. "Booting from" is SeaBIOS' last word before the kernel's.
_MARKS = {
    "firmware": (("SeaBIOS", BootStage.FIRMWARE), ("Booting from", BootStage.KERNEL)),
    "console": (
        ("Linux version", BootStage.KERNEL),
        (marks.INITRAMFS, BootStage.INITRAMFS),
        (marks.AGENT_START, BootStage.AGENT),
        (marks.READY, BootStage.READY),
    ),
}
_ORDER = list(BootStage)


class Vm:
    """A running QEMU. `marks` has CLOCK_MONOTONIC (ns) of each stage's first sign."""

    def __init__(self, child: Child, on_console: Callable[[str], None] | None = None) -> None:
        self.child = child
        self._on_console = on_console
        self.qmp: Qmp
        self.console: Console
        self.marks: dict[BootStage, int] = {BootStage.QEMU: time.monotonic_ns()}
        self._ready = asyncio.Event()
        self._free_ports = iter(hotplug_ports())

    @property
    def stage(self) -> BootStage:
        """How far the boot has come."""
        return max(self.marks, key=_ORDER.index)

    def on_line(self, stream: str, text: str, when: int) -> None:
        """A line of the console or the firmware's port."""
        if stream == "console" and self._on_console is not None:
            self._on_console(text)
        for sign, stage in _MARKS[stream]:
            if sign in text and stage not in self.marks:
                self.marks[stage] = when
                if stage is BootStage.READY:
                    self._ready.set()

    def helpers_served_at(self, when: int) -> None:
        """What QEMU connects to served from `when` on (CLOCK_MONOTONIC, ns): QEMU's own part begins there."""
        first_sign = self.marks.get(BootStage.FIRMWARE, when)
        self.marks[BootStage.QEMU] = min(max(self.marks[BootStage.QEMU], when), first_sign)

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the agent says that it listens.

        Raises:
            BootError: QEMU ended, or `timeout` seconds passed.
        """
        with _trace.stage("waitVM") as span:
            ready = asyncio.ensure_future(self._ready.wait())
            ended = asyncio.ensure_future(self.child.wait())
            try:
                done, _ = await asyncio.wait({ready, ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()
                ended.cancel()
                span.set(stage=str(self.stage))
            if ready in done:
                return
            if ended in done:
                raise self.boot_error(
                    f"QEMU ended while the guest was booting ({describe(ended.result())})",
                    hint=hint_of_death(self.console.tail(_LAST_LINES), ended.result()),
                )
            raise self.boot_error(
                f"the guest's agent did not become ready within {timeout:g} s",
                hint="a slow host needs a higher [agent.kata] dial_timeout",
            )

    async def confirm_kvm(self) -> None:
        """Have QEMU itself say that KVM runs the guest; its word is in the trace and in the transcript.

        Raises:
            HypervisorError: it emulates the guest.
        """
        if await self.qmp.execute("query-kvm") != {"enabled": True, "present": True}:
            raise HypervisorError(
                "QEMU was told to use KVM, and does not", hint="is [hypervisor.qemu] path a QEMU built with KVM?"
            )

    def boot_error(self, message: str, *, hint: str = "") -> BootError:
        """An error with everything that is known about the boot."""
        cause, lines = last_words(self.console.tail(_LAST_LINES))
        output = self.child.output
        return BootError(message, stage=self.stage, console=lines, output=output, hint=hint, cause=cause)

    async def add_network(self, device: NetDevice) -> None:
        """Give the running guest one more network device; its file descriptors stay the caller's to close.

        Raises:
            HypervisorError: there is no place left, or QEMU refused; the guest is as it was.
        """
        port = next(self._free_ports, None)
        if port is None:
            raise HypervisorError(
                f"the VM has no place for {device.id}: only {HOTPLUG_PORTS} devices can come while it runs",
                hint="network interfaces that are there before the container is created need no such place",
            )
        with _trace.span("HotplugAddDevice", device=device.id, port=port):
            await hotplug.add_network(self.qmp, device, port)

    async def stop(self, *, grace: float) -> None:
        """End the VM: wait `grace` seconds for it to power off by itself, then kill it."""
        with _trace.stage("StopVM") as span:
            try:
                async with asyncio.timeout(grace):
                    await self.child.wait()
            except TimeoutError:
                span.set(killed=True)
                await self.child.stop(grace=0)


def hint_of_death(console: Sequence[str], status: int) -> str:
    """What to do about a VM that ended while it booted, by the console's last lines and QEMU's exit status."""
    said = "\n".join(console).lower()
    if "out of memory" in said or "deadlocked on memory" in said:
        return "the guest ran out of memory: more --memory, or [hypervisor.qemu] default_memory"
    if "kernel panic" in said:
        return "do kernel, initrd, image and kernel_params of [hypervisor.qemu] fit together?"
    if status == -signal.SIGKILL:
        return "somebody killed it; the host's kernel does where memory runs out, and says so in its log (dmesg)"
    return ""


def last_words(console: Sequence[str]) -> tuple[str, list[str]]:
    """Of a console's last lines the one that says why it ended ("" where none does), and those that are worth quoting:
    the ones up to it, without the stack that the kernel prints behind; else the last.
    """
    lines = list(console)
    for cause in _CAUSES:
        for number, line in reversed(list(enumerate(lines))):
            if found := cause.search(_TIMESTAMP.sub("", line)):
                return found[0], lines[max(number + 1 - _QUOTED_LINES, 0) : number + 1]
    return "", lines[-_QUOTED_LINES:]


@asynccontextmanager
async def launch_qemu(
    spec: VmSpec,
    *,
    privileges: Privileges | None,
    logs_dir: Path | None,
    pass_fds: tuple[int, ...] = (),
    namespace: str = "",
    timeout: float = 30.0,
    on_console: Callable[[str], None] | None = None,
) -> AsyncIterator[Vm]:
    """Run a VM for the block; it is booting when this yields, with its monitor connected.

    It is in the network namespace that the path `namespace` names, if any. `logs_dir` receives `console.log`,
    `qemu.log` and, at the end, `qmp.log`; `on_console` each line of the console.

    Raises:
        HypervisorError: QEMU ended, or its monitor did not answer within `timeout` seconds; QEMU's words are in it.
    """
    async with AsyncExitStack() as stack:
        with _trace.stage("launchQemu", accelerator=spec.accelerator, vcpus=spec.vcpus, memory_mib=spec.memory) as span:
            ours, spec, theirs = _socketpairs(spec, stack)
            argv = to_argv(spec)
            launched = launch(
                argv,
                pass_fds=[*pass_fds, spec.qmp_fd, spec.console_fd, spec.firmware_fd],
                privileges=privileges,
                namespace=namespace,
                log_path=_file(logs_dir, "qemu.log"),
                grace=0,
            )
            with theirs:
                child = await stack.enter_async_context(launched)
            span.set(pid=child.pid)
            vm = Vm(child, on_console)
            for stream in ("console", "firmware"):
                on_line = functools.partial(vm.on_line, stream)
                reader = await Console.attach(ours[stream], on_line, _file(logs_dir, f"{stream}.log"))
                stack.callback(reader.close)
                if stream == "console":
                    vm.console = reader
            transcript = Transcript()
            if logs_dir:
                stack.callback(transcript.save, logs_dir / "qmp.log")
            monitor = Qmp.connected(ours["qmp"], name=spec.name, transcript=transcript, timeout=timeout)
            try:
                vm.qmp = await stack.enter_async_context(monitor)
            except HypervisorError as error:
                raise await _launch_error(child, error) from error
            if spec.accelerator is Accelerator.KVM:
                await vm.confirm_kvm()
        yield vm


def _socketpairs(spec: VmSpec, stack: AsyncExitStack) -> tuple[Mapping[str, socket.socket], VmSpec, ExitStack]:
    """Our ends by name, the spec with QEMU's ends, and the stack that closes QEMU's ends on our side."""
    ours: dict[str, socket.socket] = {}
    fds: dict[str, int] = {}
    theirs = ExitStack()
    for name in ("qmp", "console", "firmware"):
        mine, other = socket.socketpair()
        mine.setblocking(False)
        ours[name] = stack.enter_context(mine)
        fds[f"{name}_fd"] = theirs.enter_context(other).fileno()
    return ours, dataclasses.replace(spec, **fds), theirs  # type: ignore[arg-type]


async def _launch_error(child: Child, error: HypervisorError) -> HypervisorError:
    # QEMU's end explains more than the silence of its monitor; it closes the monitor a moment before it ends.
    try:
        async with asyncio.timeout(2):
            status = await child.wait()
    except TimeoutError:
        return error
    _log.debug("QEMU ended at start", extra={"status": status})
    return HypervisorError(
        f"QEMU did not start ({describe(status)})" + quoted("QEMU", child.output),
        hint="what it was asked for is in [hypervisor.qemu], --memory and --cpus",
    )


def _file(directory: Path | None, name: str) -> Path | None:
    return directory / name if directory else None
