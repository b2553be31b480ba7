"""The task service of `containerd-shim-kata-v2`: where the sandbox comes in."""

from contextlib import AbstractAsyncContextManager

from kata_runtime.errors import HostError
from kata_runtime.shim.service import Shim, TaskService

__all__ = ["open_service"]


def open_service(shim: Shim) -> AbstractAsyncContextManager[TaskService]:
    """Open the service of a sandbox.

    Raises:
        HostError: always; the sandbox is not connected to the shim yet.
    """
    raise HostError(f"sandbox {shim.launch.group.sandbox_id}: this build's shim has no sandbox behind it")
