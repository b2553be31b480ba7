"""The sandbox's side of `delete`: what a shim that was killed has left.

QEMU, virtiofsd and the vsock backend died with the shim (`kata_runtime.process`), its mounts with its mount namespace.
Directories remain, in which nobody holds the lock.
"""

import os
import time

from kata_common import places
from kata_runtime.shim.delete import Cleanup
from kata_runtime.shim.launch import Launch, read_file

__all__ = ["VM_PID_FILE", "KataCleanup"]

# In the bundle; the process id that stood for the container, which may be another process's by now.
VM_PID_FILE = "vm.pid"
# Seconds for all hooks, and for removing files: containerd allows 5 for all of `delete`. A later run removes the rest.
_HOOKS = 2.0
_REMOVAL = 2.0


class KataCleanup(Cleanup):
    """See `Cleanup`."""

    def sandbox(self, launch: Launch) -> int:
        """Remove the sandbox's directories unless it lives (then it is another one of this id)."""
        if any(os.path.isdir(f"{place}/{launch.group.sandbox_id}") for place in (places.RUN_DIR, places.LAYERS_DIR)):
            self._remove(launch.group.sandbox_id)
            self._run_hooks(launch)
        return self.container(launch)

    def container(self, launch: Launch) -> int:
        """Nothing is left to be freed: what a container holds is its sandbox's."""
        pid = read_file(f"{launch.bundle}/{VM_PID_FILE}")
        return int(pid) if pid.isdecimal() else 0

    def _remove(self, sandbox_id: str) -> None:
        from kata_runtime.errors import SandboxError
        from kata_runtime.sandbox.state import Directories, SandboxDirectory, valid_id

        directory = SandboxDirectory(Directories(), valid_id(sandbox_id))
        try:
            with directory.locked():
                directory.close_trace()
                left = directory.remove(until=time.monotonic() + _REMOVAL)
            directory.roots.sweep_users()
            if left:
                import logging

                log = logging.getLogger("kata.sandbox")
                log.warning("what sandbox %s leaves can't be removed: %s", sandbox_id, left)
        except SandboxError:
            if not os.path.isdir(directory.run):
                raise

    def _run_hooks(self, launch: Launch) -> None:
        """Those that the shim did not come to run: an engine takes its network down by them."""
        try:
            with open(f"{launch.bundle}/config.json", "rb") as file:
                if b'"poststop"' not in file.read():
                    return
        except FileNotFoundError:
            return  # containerd was quicker
        import asyncio
        import logging
        from pathlib import Path

        from kata_runtime.oci.bundle import read_spec
        from kata_runtime.sandbox.hooks import AFTER_END, HookState, run_hooks

        spec = read_spec(Path(launch.bundle))
        annotations = spec.get("annotations") or {}
        state = HookState(launch.id, "stopped", self.container(launch), launch.bundle, annotations)

        async def run() -> None:
            async with asyncio.timeout(_HOOKS):
                await run_hooks(spec.get("hooks") or {}, AFTER_END, state, strict=False)

        try:
            asyncio.run(run())
        except TimeoutError:
            # A failure of theirs is nobody's but theirs (runtime.md of the OCI specification, "Lifecycle").
            logging.getLogger("kata.hooks").warning("poststop hooks were ended after %g s", _HOOKS)
