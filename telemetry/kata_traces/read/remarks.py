"""What is wrong with a trace itself, in words."""

from collections.abc import Iterator

from kata_common.contract import AGENT_SERVICE as AGENT
from kata_traces.read.cells import printable
from kata_traces.read.trace import Trace
from kata_traces.read.units import duration

__all__ = ["remarks"]


def remarks(trace: Trace) -> Iterator[str]:
    """One line for each thing."""
    if trace.live and AGENT not in trace.services:
        # What the kernel and the initramfs did comes by the agent, too.
        yield "no span of the guest is here yet; if its agent is traced, they come when the first process runs"
    told = {span.name for span in trace.spans}
    if not trace.live and "waitVM" in told and "boot.firmware" in told and "boot.kernel" not in told:
        yield (
            "the guest ended before its agent told of its boot: kernel, initramfs and the agent's start are one "
            "stretch here, waitVM"
        )
    for reason, count in trace.meta.lost.items():
        yield f"not in this trace: {count} {printable(reason)}"
    if trace.broken:
        yield f"{trace.broken} lines could not be read"
    if trace.orphans:
        yield f"{len(trace.orphans)} spans have no parent here"
    if trace.negative():
        yield f"{len(trace.negative())} spans end before they start"
    # A guest's clock is known to a fraction of a ms; what happens beside its parent on purpose is no fault.
    early = [misfit for misfit in trace.misfits() if misfit.before > 1_000_000]
    if early:
        worst = max(early, key=lambda misfit: misfit.before)
        yield f"{len(early)} spans start before their parent, {printable(worst.span.name)} by {duration(worst.before)}"
