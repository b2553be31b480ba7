"""Which sides of a sandbox are traced: every state, every wish."""

import itertools

import pytest

from kata_runtime.errors import SandboxError
from kata_runtime.sandbox.trace.state import Tracing, following

# State before, then what follows when (nothing, the runtime, the agent, both) shall be traced; None: refused.
TABLE = {
    Tracing.RECORDING: (Tracing.RECORDING, Tracing.RUNTIME, None, Tracing.BOTH),
    Tracing.RUNTIME: (Tracing.RECORDING, Tracing.RUNTIME, None, Tracing.BOTH),
    Tracing.AGENT: (Tracing.RECORDING, None, Tracing.AGENT, None),
    Tracing.BOTH: (Tracing.RECORDING, Tracing.RUNTIME, Tracing.AGENT, Tracing.BOTH),
}
WISHES = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("before", "wish", "after"),
    [(before, wish, after) for before, row in TABLE.items() for wish, after in zip(WISHES, row, strict=True)],
)
def test_every_transition(before: Tracing, wish: tuple[bool, bool], after: Tracing | None) -> None:
    runtime, agent = wish
    if after is None:
        with pytest.raises(SandboxError):
            following(before, runtime=runtime, agent=agent, recorder=True)
    else:
        found = following(before, runtime=runtime, agent=agent, recorder=True)
        assert found is after
        assert (found.runtime, found.agent) == wish


def test_without_a_flight_recorder_it_is_off() -> None:
    for state, (runtime, agent) in itertools.product(Tracing, WISHES):
        try:
            found = following(state, runtime=runtime, agent=agent, recorder=False)
        except SandboxError:
            continue
        assert found is not Tracing.RECORDING
        assert (found is Tracing.OFF) is not (runtime or agent)
