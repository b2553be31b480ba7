"""How far a guest's boot has come, by what it says, and what is said of one that came no further."""

import asyncio
import re
import signal
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from kata_common import marks
from kata_runtime.errors import BootError
from kata_telemetry.span import Site

if TYPE_CHECKING:
    from kata_runtime.hypervisor.machine import Machine

__all__ = ["Boot", "BootStage", "hint_of_death", "last_words", "wait_ready"]

_trace = Site(package="virtcontainers", subsystem="hypervisor")

# Of the console, in which a kernel that gives up says why: what it prints after that is long.
_LAST_LINES = 150
# Of these, what an error quotes.
_QUOTED_LINES = 15
# How the kernel begins a line, and what tells that a line says why it ended: a panic, else what the initramfs can't do
# (image/init.sh), else an exception of the agent.
_TIMESTAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ")
_CAUSES = (
    re.compile(r"Kernel panic - not syncing: (.+)"),
    re.compile(rf"^{marks.BOOT_FAILED}.+"),
    re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception)\b.*)"),
)


class BootStage(StrEnum):
    """How far a boot has come; in order."""

    MACHINE = "machine started"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    INITRAMFS = "initramfs"
    AGENT = "agent start"
    READY = "agent ready"


_ORDER = list(BootStage)
# What tells on the console that a stage has begun: the kernel's first line, and our own guest's.
_MARKS = (
    ("Linux version", BootStage.KERNEL),
    (marks.INITRAMFS, BootStage.INITRAMFS),
    (marks.AGENT_START, BootStage.AGENT),
    (marks.READY, BootStage.READY),
)


class Boot:
    """`marks` has CLOCK_MONOTONIC (ns) of each stage's first sign; `hypervisor` is what people call it."""

    def __init__(self, hypervisor: str, on_console: Callable[[str], None] | None = None) -> None:
        self.hypervisor = hypervisor
        self.marks: dict[BootStage, int] = {BootStage.MACHINE: time.monotonic_ns()}
        # Whether it is a clone's, so that all before it answered was another guest's boot.
        self.restored = False
        self._on_console = on_console
        self._ready = asyncio.Event()

    @property
    def stage(self) -> BootStage:
        """How far it has come."""
        return max(self.marks, key=_ORDER.index)

    def hear(self, on_console: Callable[[str], None] | None) -> None:
        """From now on somebody else gets the lines of the console."""
        self._on_console = on_console

    def line(self, text: str, when: int) -> None:
        """A line of the console, and when it came (CLOCK_MONOTONIC, ns)."""
        if self._on_console is not None:
            self._on_console(text)
        for sign, stage in _MARKS:
            if sign in text:
                self.reached(stage, when)

    def reached(self, stage: BootStage, when: int) -> None:
        """A stage has shown itself; only its first sign counts."""
        self.marks.setdefault(stage, when)
        if stage is BootStage.READY:
            self._ready.set()

    def helpers_served_at(self, when: int) -> None:
        """What the machine connects to served from `when` on (CLOCK_MONOTONIC, ns): its own part begins there."""
        first_sign = self.marks.get(BootStage.FIRMWARE, when)
        self.marks[BootStage.MACHINE] = min(max(self.marks[BootStage.MACHINE], when), first_sign)

    async def ready(self) -> None:
        """Wait until the agent says that it listens."""
        await self._ready.wait()


async def wait_ready(machine: "Machine", timeout: float) -> None:
    """Wait until the guest's agent says that it listens.

    Raises:
        BootError: the machine ended, or `timeout` seconds passed; it has everything that is known about the boot.
    """
    with _trace.stage("waitVM") as span:
        ready = asyncio.ensure_future(machine.boot.ready())
        ended = asyncio.ensure_future(machine.wait())
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
            span.set(stage=str(machine.boot.stage))
        if ready in done:
            return
        if ended in done:
            raise _boot_error(
                machine,
                f"{machine.boot.hypervisor} ended while the guest was booting ({ended.result()})",
                hint_of_death(machine.console(_LAST_LINES), ended.result().status),
            )
        raise _boot_error(
            machine,
            f"the guest's agent did not become ready within {timeout:g} s",
            "a slow host needs a higher [agent.kata] dial_timeout",
        )


def _boot_error(machine: "Machine", message: str, hint: str) -> BootError:
    cause, lines = last_words(machine.console(_LAST_LINES))
    return BootError(
        message,
        stage=machine.boot.stage,
        console=lines,
        hypervisor=machine.boot.hypervisor,
        output=machine.output,
        hint=hint,
        cause=cause,
    )


def hint_of_death(console: Sequence[str], status: int | None) -> str:
    """What to do about a VM that ended while it booted, by the console's last lines and its hypervisor's status."""
    said = "\n".join(console).lower()
    if "out of memory" in said or "deadlocked on memory" in said:
        return "the guest ran out of memory: more --memory, or [hypervisor.qemu] default_memory"
    if "kernel panic" in said or marks.BOOT_FAILED in said:
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
