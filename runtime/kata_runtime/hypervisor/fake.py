"""A hypervisor without a machine: its guest says what it is told to say, and ends when it is told to. For tests."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from kata_common import marks
from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.boot import Boot
from kata_runtime.hypervisor.findings import Finding, Verdict
from kata_runtime.hypervisor.machine import Device, End, Identity, MachineSpec, Online, Plugged, Surroundings, Terms

__all__ = ["BOOTS", "FakeHypervisor", "FakeMachine"]

# What a guest says on its console that boots as it should.
BOOTS = ("Linux version 6.1", marks.INITRAMFS, marks.AGENT_START, marks.READY)
# What it saves.
SAVED = b"a fake machine"
_KILLED = -9
_SPEC = MachineSpec(name="fake", kernel=Path(), initrd=Path(), image=Path(), memory=0, vcpus=0)
# Beyond the highest process id that Linux gives (proc(5), pid_max).
_NOBODYS = 1 << 22
_numbers = itertools.count(1)


class FakePlugged:
    """See `Plugged`. `sizes` are those that it was told to have."""

    def __init__(self, machine: "FakeMachine", device: Device) -> None:
        self.sizes: list[int] = []
        self._machine = machine
        self._device = device

    async def remove(self) -> None:
        """See Plugged."""
        self._machine.devices.remove(self._device)
        self._machine.places += 1

    async def grow(self, size: int) -> None:
        """See Plugged."""
        self.sizes.append(size)


class FakeMachine:
    """See `Machine`. `devices` are those that it has; it holds `places` more."""

    def __init__(self, spec: MachineSpec | None = None, boot: Boot | None = None, *, places: int = 4) -> None:
        self.spec = spec or _SPEC
        self.boot = boot or Boot("fake")
        self.pid = _NOBODYS + next(_numbers)
        self.output = ""
        self.devices: list[Device] = list(self.spec.devices)
        self.paused = False
        self.vcpus, self.memory = self.spec.vcpus, self.spec.memory
        self.places = places if self.spec.hotplug else 0
        self._lines: list[str] = []
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    def say(self, *lines: str) -> None:
        """Lines of the guest's console."""
        for line in lines:
            self._lines.append(line)
            self.boot.line(line, time.monotonic_ns())

    def die(self, status: int, output: str = "") -> None:
        """It ends by itself, with these last words of its hypervisor."""
        if not self._end.done():
            self.output = output
            self._end.set_result(End(status))

    @property
    def end(self) -> End | None:
        """See Machine."""
        return self._end.result() if self._end.done() else None

    def console(self, count: int) -> list[str]:
        """See Machine."""
        return self._lines[-count:]

    async def wait(self) -> End:
        """See Machine."""
        return await asyncio.shield(self._end)

    def kill(self) -> None:
        """See Machine."""
        self.die(_KILLED, self.output)

    async def plug(self, device: Device) -> Plugged:
        """See Machine."""
        self._require_running()
        if not self.places:
            raise HypervisorError(f"the VM has no place for {device.id}")
        self.places -= 1
        self.devices.append(device)
        return FakePlugged(self, device)

    async def resize(self, vcpus: int, memory: int, online: Online) -> tuple[int, int]:
        """See Machine."""
        self._require_running()
        if vcpus > max(self.spec.vcpus, self.spec.max_vcpus) or memory > max(self.spec.memory, self.spec.max_memory):
            raise HypervisorError(f"the machine can't have {vcpus} CPUs and {memory} MiB")
        more, grows = max(vcpus - self.vcpus, 0), memory > self.memory
        self.vcpus, self.memory = vcpus, max(memory, self.spec.memory)
        if more or grows:
            await online(more, grows)
        return self.vcpus, self.memory

    async def save(self, fd: int) -> None:
        """See Machine."""
        self._require_running()
        self.devices.clear()
        self.paused = True
        os.write(fd, SAVED)

    async def pause(self) -> None:
        """See Machine."""
        self._require_running()
        self.paused = True

    async def resume(self) -> None:
        """See Machine."""
        self._require_running()
        self.paused = False

    def _require_running(self) -> None:
        if self._end.done():
            raise HypervisorError("the machine has ended")


class FakeHypervisor:
    """See `Hypervisor`. Its guests say `says` at once; `machines` are those that it has launched."""

    name = "fake"

    def __init__(self, says: Sequence[str] = BOOTS, terms: Terms | None = None) -> None:
        self.machines: list[FakeMachine] = []
        self._says = says
        self._terms = terms or Terms()

    @contextmanager
    def prepared(self, _name: str) -> Iterator[Terms]:
        """See Hypervisor."""
        yield self._terms

    @asynccontextmanager
    async def launch(self, spec: MachineSpec, where: Surroundings) -> AsyncIterator[FakeMachine]:
        """See Hypervisor."""
        machine = FakeMachine(spec, Boot(self.name, where.on_console))
        self.machines.append(machine)
        if where.before is not None:
            await where.before()
        if spec.saved_fd < 0:
            machine.say(*self._says)
        elif os.pread(spec.saved_fd, len(SAVED), 0) == SAVED:
            machine.boot.restored = machine.paused = True
        else:
            raise HypervisorError("that is nothing that was saved")
        try:
            yield machine
        finally:
            machine.kill()

    def identity(self, spec: MachineSpec) -> Identity:
        """See Hypervisor."""
        return Identity({"memory": spec.memory, "vcpus": spec.vcpus}, (spec.kernel, spec.initrd, spec.image))

    def examine(self, _root: Path) -> Iterator[Finding]:
        """See Hypervisor."""
        yield Finding("fake", Verdict.OK, "needs nothing")
