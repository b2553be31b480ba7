"""Which sides of a sandbox are traced, and what may follow on what."""

from enum import StrEnum

from kata_runtime.errors import SandboxError

__all__ = ["Tracing", "following"]


class Tracing(StrEnum):
    """Which sides put their spans into the sandbox's store. While RECORDING both keep their last ones in memory."""

    OFF = "off"
    RECORDING = "recording"
    RUNTIME = "runtime"
    AGENT = "agent"
    BOTH = "both"

    @classmethod
    def of(cls, *, runtime: bool, agent: bool, recorder: bool) -> "Tracing":
        """The state in which just these sides are traced; `recorder` is whether there are flight recorders."""
        if runtime:
            return cls.BOTH if agent else cls.RUNTIME
        if agent:
            return cls.AGENT
        return cls.RECORDING if recorder else cls.OFF

    @property
    def runtime(self) -> bool:
        """Whether the runtime is traced."""
        return self in (Tracing.RUNTIME, Tracing.BOTH)

    @property
    def agent(self) -> bool:
        """Whether the agent is traced."""
        return self in (Tracing.AGENT, Tracing.BOTH)


def following(state: Tracing, *, runtime: bool, agent: bool, recorder: bool) -> Tracing:
    """The state after `state` in which these sides are traced.

    Raises:
        SandboxError: the two sides would not make one trace.
    """
    if runtime and state is Tracing.AGENT:
        raise SandboxError(
            "the agent of this sandbox traces alone, and the runtime can't join its trace",
            hint="set enable_tracing in [runtime], too",
        )
    if agent and not (runtime or state.agent):
        raise SandboxError("the agent's spans belong under the runtime's: trace both, or the runtime alone")
    return Tracing.of(runtime=runtime, agent=agent, recorder=recorder)
