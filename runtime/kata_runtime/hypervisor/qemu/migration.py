"""Saving a paused machine beside its memory, and going on from there: QEMU's migration, by QMP.

`x-ignore-shared` leaves memory that is a shared file where it is (QEMU, migration/ram.c), so what is written is a third
of a MiB. Such a state is of a paused machine: whoever restores it has to let it go on.
"""

import asyncio
from collections.abc import Mapping

from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.qemu.qmp import Qmp

__all__ = ["restore", "save"]

# Seconds. It takes some ms; on a busy host more.
_TIMEOUT = 30.0
_NAME = "state"


async def save(qmp: Qmp, fd: int) -> None:
    """See `Machine.save`."""
    await _migrate(qmp, fd, "migrate")


async def restore(qmp: Qmp, fd: int) -> None:
    """See `Machine.restore`."""
    await _migrate(qmp, fd, "migrate-incoming")


async def _migrate(qmp: Qmp, fd: int, command: str) -> None:
    wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    await qmp.execute("migrate-set-capabilities", {"capabilities": wanted})
    await qmp.send_fd(_NAME, fd)
    with qmp.expecting("MIGRATION", _is_over) as over:
        await qmp.execute(command, {"uri": f"fd:{_NAME}"})
        try:
            async with asyncio.timeout(_TIMEOUT):
                status = (await over)["status"]
        except TimeoutError:
            raise HypervisorError(f"QEMU did not end {command} within {_TIMEOUT:g} s") from None
    if status != "completed":
        raise HypervisorError(f"QEMU's {command} has {status}")


def _is_over(data: Mapping[str, object]) -> bool:
    return data.get("status") in ("completed", "failed", "cancelled")
