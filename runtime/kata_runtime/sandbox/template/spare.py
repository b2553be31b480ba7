"""A VM that this process has had ready before it was wanted, as processes of the pool do."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.sandbox.template.meta import Meta
from kata_runtime.sandbox.vm import Vm

__all__ = ["Spare", "discard", "keep", "spare_for"]


@dataclass(frozen=True)
class Spare:
    """A clone of the template `meta` that runs, has been rehearsed and has forgotten it.

    Its helpers' sockets are in `directory`; `stack` ends it.
    """

    meta: Meta
    vm: Vm
    directory: Path
    stack: AsyncExitStack


_spare: Spare | None = None


def keep(spare: Spare) -> None:
    """This is for the first sandbox of this process that it fits."""
    global _spare  # noqa: PLW0603 - a process has one
    _spare = spare


def spare_for(key: str) -> Spare | None:
    """The one that fits, which is the caller's now."""
    global _spare
    if _spare is None or _spare.meta.key != key or _spare.vm.machine.end is not None:
        return None
    found, _spare = _spare, None
    return found


async def discard() -> None:
    """End the one that nobody has taken."""
    global _spare
    if _spare is not None:
        found, _spare = _spare, None
        await found.stack.aclose()
