"""What the host saw of a guest's boot, as spans."""

import itertools
from typing import TYPE_CHECKING

from kata_runtime.errors import KataError
from kata_runtime.hypervisor.boot import Boot, BootStage
from kata_telemetry.clock import Clock
from kata_telemetry.recorder import Recorder
from kata_telemetry.span import NO_SPAN, Level, Site, Span

if TYPE_CHECKING:
    from kata_runtime.guest.clock import Reading

__all__ = ["BootSpans"]

_trace = Site(package="virtcontainers", subsystem="boot")

_COARSE = {
    BootStage.KERNEL: "boot.kernel",
    BootStage.INITRAMFS: "boot.initramfs",
    BootStage.AGENT: "boot.agent",
}


class BootSpans:
    """The host's account of the boot. `parent` is the span that the agent's finer one belongs to."""

    def __init__(self) -> None:
        self.parent = NO_SPAN
        # What the agent can tell better.
        self._coarse: list[Span] = []

    @property
    def told(self) -> bool:
        """Whether what the agent can tell better is in the trace already."""
        return any(span.kept for span in self._coarse)

    def leave_to_agent(self, recorder: Recorder) -> None:
        """Forget what the agent will tell."""
        recorder.drop(self._coarse)

    def record(
        self, boot: Boot, reading: "Reading | None", clock: Clock, *, agent_tells: bool, error: object = None
    ) -> None:
        """Make the spans; with `agent_tells` only those of which the agent knows nothing. A clone's boot was another's.

        `reading` is the offset of the guest's clock, which begins with the kernel. Without it the kernel begins where
        the firmware's last line was read: after that the firmware still copies the kernel and the initramfs, and on a
        busy host the line is read late. The stage that a failed boot did not get beyond has its `error`.
        """
        if boot.restored:
            return
        marks = dict(boot.marks)
        if reading is not None and BootStage.FIRMWARE in marks:
            kernel = reading.offset_ns - clock.to_host(0)
            marks[BootStage.KERNEL] = max(kernel, marks[BootStage.FIRMWARE])
        stages = [stage for stage in BootStage if stage in marks]
        names = {BootStage.MACHINE: f"boot.{boot.hypervisor.lower()}", BootStage.FIRMWARE: "boot.firmware"}
        failed = stages[-1] is not BootStage.READY
        if failed or not agent_tells:
            names |= _COARSE
        for stage, following in itertools.pairwise(stages):
            if stage in names:
                span = _trace.record(names[stage], marks[stage], marks[following], level=Level.ESSENTIAL)
                if stage in _COARSE:
                    self._coarse.append(span)
        if failed:
            span = _trace.start(names[stages[-1]], start=marks[stages[-1]], level=Level.ESSENTIAL)
            span.fail(error if isinstance(error, KataError) else "the boot came no further")
            span.finish()
