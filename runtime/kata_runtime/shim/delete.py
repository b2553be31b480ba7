"""`delete`: clean up after a shim that containerd can't reach any more.

containerd runs it whenever a connection to a shim ends: after every regular end too, and for one container of a pod
while the shim of the others is well. So a shim of this very container gets time to finish (it may be writing its
trace), and a sandbox is only touched where this container is the sandbox's own.

Clients wait for it (`ctr run --rm`), so it too loads only what it needs, and mostly there is nothing left to do.
"""

import os
import stat
import time

from kata_runtime.shim import bootstrap, grouping
from kata_runtime.shim.arguments import Arguments
from kata_runtime.shim.launch import ADDRESS_FILE, PID_FILE, Launch, read_file

__all__ = ["EXIT_STATUS", "Cleanup", "delete"]

# What the container is said to have ended with: 128 + SIGKILL, as from containerd's own shims.
EXIT_STATUS = 137
# Seconds for a shim to end by itself, and after SIGTERM; then it is killed. containerd allows 5 for all of `delete`
# (io.containerd.timeout.shim.cleanup).
PATIENCE = (1.0, 2.0)


class Cleanup:
    """What is left of a sandbox beyond the shim: the VM, its helpers, network, directories.

    The seam for the sandbox's side of `delete`; this base knows of nothing. Called for what may long be gone.
    """

    def sandbox(self, launch: Launch) -> int:
        """End the sandbox `launch.group.sandbox_id`; returns the process id that containerd knew it by, or 0."""
        return 0

    def container(self, launch: Launch) -> int:
        """Free what one container of a sandbox that lives on holds; returns its process id, or 0."""
        return 0


def delete(arguments: Arguments, cleanup: Cleanup) -> bytes:
    """Answer containerd's `delete`; returns the DeleteResponse to print. Does all it can before it raises.

    Raises:
        ExceptionGroup: what could not be cleaned up.
    """
    bundle = os.path.abspath(arguments.bundle or os.getcwd())
    errors: list[Exception] = []
    try:
        group = grouping.read_group(bundle, arguments.id)
    except Exception as error:
        # Nothing can be said about a pod, so only what is surely this container's is touched.
        errors.append(error)
        group = grouping.Group(grouping.SINGLE, arguments.id)
    launch = Launch(namespace=arguments.namespace, container_id=arguments.id, bundle=bundle, group=group)
    launch.containerd = arguments.address
    launch.debug = arguments.debug
    launch.address = read_file(f"{bundle}/{ADDRESS_FILE}")
    pid = 0
    owner = group.kind != grouping.CONTAINER
    try:
        if owner:
            _end_shim(launch)
        pid = cleanup.sandbox(launch) if owner else cleanup.container(launch)
    except Exception as error:
        errors.append(error)
    try:
        _unmount_below(f"{bundle}/rootfs")
    except Exception as error:
        errors.append(error)
    if errors:
        raise ExceptionGroup(f"container {arguments.id} is not cleaned up", errors)
    return bootstrap.encode_delete_response(pid, EXIT_STATUS, time.time_ns())


def _end_shim(launch: Launch) -> None:
    """Wait for the sandbox's shim, kill it if it does not end, and remove its socket."""
    pid = read_file(f"{launch.bundle}/{PID_FILE}")
    if pid.isdecimal():
        try:
            handle = os.pidfd_open(int(pid))
        except ProcessLookupError:
            pass
        else:
            try:
                if _is_shim_of(int(pid), launch.bundle):
                    _end(handle)
            finally:
                os.close(handle)
    path = launch.address.removeprefix("unix://")
    # Whatever the file says, nothing but a socket is removed.
    try:
        if path and stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass  # the shim has removed it, as it should


def _is_shim_of(pid: int, bundle: str) -> bool:
    """Whether the process works in the bundle. Process ids are used again; a pidfd, once open, is not."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", bundle)
    except OSError:
        return False


def _end(handle: int) -> None:
    import select
    import signal

    poll = select.poll()
    poll.register(handle, select.POLLIN)
    for patience, number in zip(PATIENCE, (signal.SIGTERM, signal.SIGKILL), strict=True):
        if poll.poll(patience * 1000):
            return
        signal.pidfd_send_signal(handle, number)
    poll.poll(1000)


def _unmount_below(directory: str) -> None:
    with open("/proc/self/mountinfo", "rb") as file:
        # Escaped or not, the name of a container's directory is the same: ids hold no blanks.
        if os.fsencode(os.path.basename(os.path.dirname(directory))) not in file.read():
            return
    from pathlib import Path

    from kata_runtime.mount_tree import unmount_below

    unmount_below(Path(directory))
