"""One QEMU process from exec to exit."""

import asyncio
import functools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kata_runtime.cage import Cage
from kata_runtime.errors import HypervisorError, quoted
from kata_runtime.hypervisor.boot import Boot, BootStage
from kata_runtime.hypervisor.console import Console
from kata_runtime.hypervisor.machine import Device, Disk, End, MachineSpec, Online, Plugged, Surroundings
from kata_runtime.hypervisor.qemu import hotplug, migration
from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.argv import ports_of, to_argv
from kata_runtime.hypervisor.qemu.disks import Disks
from kata_runtime.hypervisor.qemu.qmp import Qmp, Transcript
from kata_runtime.hypervisor.qemu.resize import Resizer
from kata_runtime.hypervisor.qemu.spec import Channels, QemuSpec
from kata_runtime.hypervisor.root import Root
from kata_runtime.process import Child, Privileges, describe, launch
from kata_telemetry.span import Site

__all__ = ["QemuMachine", "launch_qemu"]

_trace = Site(package="virtcontainers", subsystem="hypervisor")
_log = logging.getLogger("kata.qemu")

_NAME = "QEMU"
# Of the firmware's port: SeaBIOS' first word, and its last one before the kernel's.
_FIRMWARE_MARKS = (("SeaBIOS", BootStage.FIRMWARE), ("Booting from", BootStage.KERNEL))


class QemuMachine:
    """A running QEMU: see `Machine`."""

    def __init__(self, child: Child, boot: Boot, console: Console, qmp: Qmp, machine: MachineSpec) -> None:
        self.boot = boot
        self._child = child
        self._console = console
        self._qmp = qmp
        # The places for devices that come later.
        self._free_ports = ports_of(machine)
        self._places = len(self._free_ports)
        self._plugged: list[str] = []
        self._resizer = Resizer(qmp, machine, self._take_port)
        self._disks = Disks(qmp, self._take_port, self._free_ports.append)

    @property
    def pid(self) -> int:
        """See Machine."""
        return self._child.pid

    @property
    def end(self) -> End | None:
        """See Machine."""
        return None if self._child.status is None else End(self._child.status)

    @property
    def output(self) -> str:
        """See Machine."""
        return self._child.output

    def console(self, count: int) -> list[str]:
        """See Machine."""
        return self._console.tail(count)

    async def wait(self) -> End:
        """See Machine."""
        return End(await self._child.wait())

    def kill(self) -> None:
        """See Machine."""
        self._child.send_signal(signal.SIGKILL)

    async def plug(self, device: Device) -> Plugged:
        """See Machine."""
        if isinstance(device, Disk):
            with _trace.span("HotplugAddDevice", device=device.id):
                return await self._disks.add(device)
        port = self._take_port(device.id)
        try:
            with _trace.span("HotplugAddDevice", device=device.id, port=port):
                await hotplug.add_device(self._qmp, device, port)
        except HypervisorError:
            self._free_ports.insert(0, port)
            raise
        self._plugged.append(device.id)
        return _Plugged(self._qmp, device.id, self._plugged)

    def _take_port(self, name: str) -> str:
        if not self._free_ports:
            raise HypervisorError(
                f"the VM has no place for {name}: only {self._places} devices can come while it runs",
                hint="network interfaces that are there before the container is created need no such place",
            )
        return self._free_ports.pop(0)

    async def resize(self, vcpus: int, memory: int, online: Online) -> tuple[int, int]:
        """See Machine."""
        return await self._resizer.resize(vcpus, memory, online)

    async def save(self, fd: int) -> None:
        """See Machine."""
        with _trace.stage("saveVM"):
            for device in list(self._plugged):
                await _Plugged(self._qmp, device, self._plugged).remove()
            await self.pause()
            await migration.save(self._qmp, fd)

    async def pause(self) -> None:
        """See Machine."""
        with _trace.span("PauseVM"):
            await self._qmp.execute("stop")

    async def resume(self) -> None:
        """See Machine."""
        with _trace.span("ResumeVM"):
            await self._qmp.execute("cont")


class _Plugged:
    """See `Plugged`: what is no disk. Its place is not used again."""

    def __init__(self, qmp: Qmp, name: str, among: list[str]) -> None:
        self._qmp = qmp
        self._name = name
        self._among = among

    async def remove(self) -> None:
        """See Plugged."""
        with _trace.span("HotplugRemoveDevice", device=self._name):
            await hotplug.remove_device(self._qmp, self._name)
        self._among.remove(self._name)

    async def grow(self, size: int) -> None:
        """See Plugged."""
        raise HypervisorError(f"{self._name} is no disk: it can't have {size} bytes")


@asynccontextmanager
async def launch_qemu(
    spec: QemuSpec, where: Surroundings, *, privileges: Privileges | None, timeout: float = 30.0
) -> AsyncIterator[QemuMachine]:
    """Run a VM for the block; it is booting when this yields, with its monitor connected.

    `where.logs_dir` receives `console.log`, `firmware.log`, `qemu.log` and, at the end, `qmp.log`.

    Raises:
        HypervisorError: QEMU ended, or its monitor did not answer within `timeout` seconds; QEMU's words are in it.
    """
    machine, logs_dir = spec.machine, where.logs_dir
    async with AsyncExitStack() as stack:
        with _trace.stage("launchQemu", accelerator=spec.accelerator) as span:
            span.set(vcpus=machine.vcpus, memory_mib=machine.memory)
            ours, channels, theirs = _channels(stack)
            root = await stack.enter_async_context(Root.made())
            devices = [fd for device in machine.devices for fd in device.fds]
            devices += [machine.memory_fd] if machine.memory_fd >= 0 else []
            launched = launch(
                to_argv(spec, channels),
                pass_fds=[*devices, channels.qmp, channels.console, channels.firmware],
                privileges=privileges,
                cage=_cage(where, root),
                log_path=_file(logs_dir, "qemu.log"),
                grace=0,
            )
            with theirs:
                child = await stack.enter_async_context(launched)
            span.set(pid=child.pid)
            boot = Boot(_NAME, where.on_console)
            console = await Console.attach(ours["console"], boot.line, _file(logs_dir, "console.log"))
            stack.callback(console.close)
            on_firmware = functools.partial(_firmware_line, boot)
            firmware = await Console.attach(ours["firmware"], on_firmware, _file(logs_dir, "firmware.log"))
            stack.callback(firmware.close)
            transcript = Transcript()
            if logs_dir:
                stack.callback(transcript.save, logs_dir / "qmp.log")
            monitor = Qmp.connected(ours["qmp"], name=machine.name, transcript=transcript, timeout=timeout)
            try:
                qmp = await stack.enter_async_context(monitor)
            except HypervisorError as error:
                told = await _launch_error(child, error)
                raise told from (error.__cause__ if told is error else error)
            if spec.accelerator is Accelerator.KVM:
                await _confirm_kvm(qmp)
            # It has opened all that it needs by a name, and no instruction of the guest has run yet.
            await root.empty()
        if where.before is not None:
            await where.before()
        if machine.saved_fd < 0:
            await qmp.execute("cont")
        else:
            with _trace.stage("restoreVM"):
                await migration.restore(qmp, machine.saved_fd)
            boot.restored = True
        yield QemuMachine(child, boot, console, qmp, machine)


def _cage(where: Surroundings, root: Root) -> Cage:
    """The network of a pod is there for its taps, which are open by then; without one there is none to have."""
    if where.namespace:
        return replace(where.cage, network=where.namespace, mounts=root.path, namespaces=("ipc", "uts"))
    return replace(where.cage, mounts=root.path, namespaces=("net", "ipc", "uts"))


def _firmware_line(boot: Boot, text: str, when: int) -> None:
    for sign, stage in _FIRMWARE_MARKS:
        if sign in text:
            boot.reached(stage, when)


async def _confirm_kvm(qmp: Qmp) -> None:
    """Have QEMU itself say that KVM runs the guest; its word is in the trace and in the transcript.

    Raises:
        HypervisorError: it emulates the guest.
    """
    if await qmp.execute("query-kvm") != {"enabled": True, "present": True}:
        raise HypervisorError(
            "QEMU was told to use KVM, and does not", hint="is [hypervisor.qemu] path a QEMU built with KVM?"
        )


def _channels(stack: AsyncExitStack) -> tuple[Mapping[str, socket.socket], Channels, ExitStack]:
    """Our ends by name, QEMU's ends, and the stack that closes those on our side."""
    ours: dict[str, socket.socket] = {}
    fds: dict[str, int] = {}
    theirs = ExitStack()
    for name in ("qmp", "console", "firmware"):
        mine, other = socket.socketpair()
        mine.setblocking(False)
        ours[name] = stack.enter_context(mine)
        fds[name] = theirs.enter_context(other).fileno()
    return ours, Channels(**fds), theirs


async def _launch_error(child: Child, error: HypervisorError) -> HypervisorError:
    # QEMU's end explains more than the silence of its monitor; it closes the monitor a moment before it ends.
    try:
        async with asyncio.timeout(2):
            status = await child.wait()
    except TimeoutError:
        return error
    _log.debug("QEMU ended at start", extra={"status": status})
    return HypervisorError(
        f"QEMU did not start ({describe(status)})" + quoted(_NAME, child.output),
        hint="what it was asked for is in [hypervisor.qemu], --memory and --cpus",
    )


def _file(directory: Path | None, name: str) -> Path | None:
    return directory / name if directory else None
