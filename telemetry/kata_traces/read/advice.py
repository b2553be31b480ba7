"""What would make a start faster: what of the host, the configuration or the collector cost time, and what to do."""

from collections.abc import Iterator
from typing import Final

from kata_telemetry.conventions import (
    ACCELERATOR,
    CPU_PRESSURE,
    HOST_CPUS,
    IO_PRESSURE,
    LOAD,
    MEMORY_PRESSURE,
    STEAL,
)
from kata_traces.read.analysis import split
from kata_traces.read.cells import crop, printable
from kata_traces.read.stages import Stage
from kata_traces.read.trace import Trace
from kata_traces.read.units import duration, percent

__all__ = ["advice"]

# What of a sandbox's start runs in the guest.
IN_GUEST: Final = (
    Stage.FIRMWARE,
    Stage.KERNEL,
    Stage.INITRAMFS,
    Stage.AGENT,
    Stage.SANDBOX,
    Stage.CONTAINER,
    Stage.EXEC,
)
# Shares from which on a pressure is worth a word. Waiting for a processor is common and costs less than the others.
BUSY_CPU: Final = 0.3
BUSY_IO: Final = 0.15
BUSY_MEMORY: Final = 0.05
STOLEN: Final = 0.05
OVERLOAD: Final = 1.5
# Of a trace, from which on time in an emulated guest is.
EMULATED: Final = 0.1


def advice(trace: Trace) -> Iterator[str]:
    """One line for each cause, the one that cost most first: what it is, and what would change it."""
    yield from _emulation(trace)
    yield from _host(trace)
    for target, error in trace.undelivered.items():
        words = crop(printable(error), 160)
        what = f"The collector {printable(target)} does not have all of it ({words})"
        yield f"{what}: `kata-runtime trace push` sends the rest."


def _emulation(trace: Trace) -> Iterator[str]:
    chosen = next((span for span in trace.spans if span.name == "chooseAccelerator"), None)
    accelerator = trace.root.attributes.get(ACCELERATOR) or (chosen.attributes.get("accelerator") if chosen else "")
    if accelerator != "tcg":
        return
    stages = split(trace).stages
    guest = sum(took for stage, took in stages.items() if stage in IN_GUEST)
    if guest < EMULATED * trace.root.duration:
        return
    why = ""
    if chosen is not None:
        reason = crop(printable(str(chosen.attributes.get("reason", ""))), 320)
        why = f" {reason}." if reason else " The configuration asks for it ([hypervisor.qemu] accelerator)."
    price = f"{duration(guest)} in the guest ({percent(guest, trace.root.duration)})"
    yield (
        f"QEMU emulates the guest's processor, some ten times slower than KVM: most of {price} is its price; KVM would "
        f"change that (`kata-runtime check` says what it lacks).{why}"
    )


def _share(trace: Trace, name: str) -> float:
    value = trace.root.attributes.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _host(trace: Trace) -> Iterator[str]:
    found: list[tuple[float, str]] = []
    io, memory = _share(trace, IO_PRESSURE), _share(trace, MEMORY_PRESSURE)
    cpu, steal = _share(trace, CPU_PRESSURE), _share(trace, STEAL)
    load, cpus = _share(trace, LOAD), _share(trace, HOST_CPUS)
    if io >= BUSY_IO:
        what = f"The host's disks were busy: tasks waited for them {io:.0%} of the start"
        found.append((io, f"{what}; a faster disk for images and volumes, or less beside it, would change that."))
    if memory >= BUSY_MEMORY:
        what = f"The host was short of memory: tasks waited for it {memory:.0%} of the start"
        found.append((memory, f"{what}; smaller or fewer sandboxes (default_memory) would change that."))
    if cpu >= BUSY_CPU or (cpus and load > OVERLOAD * cpus):
        waited = f"tasks waited for a processor {cpu:.0%} of the start, " if cpu else ""
        what = f"The host was busy: {waited}load {load:g} on {cpus:g} processors when it began"
        found.append((cpu, f"{what}; fewer starts at a time would change that."))
    if steal >= STOLEN:
        what = f"The host is a virtual machine itself, and {steal:.0%} of its processor time was taken away meanwhile"
        found.append((steal, f"{what}; another host would change that."))
    yield from (text for _, text in sorted(found, reverse=True))
