"""`delete`: clean up after a shim that containerd can't reach any more.

containerd runs it whenever a connection to a shim ends: after every regular end too, and for one container of a pod
while the shim of the others is well. So a shim of this very container gets time to finish (it may be writing its
trace), and a sandbox is only touched where this container is the sandbox's own.
"""

import os
import select
import signal
import time
from contextlib import suppress

from kata_runtime.shim import bootstrap, grouping
from kata_runtime.shim.arguments import Arguments
from kata_runtime.shim.grouping import Group, read_group
from kata_runtime.shim.launch import ADDRESS_FILE, PID_FILE, SOCKET_DIR, Launch, read_file

__all__ = ["EXIT_STATUS", "Cleanup", "delete"]

# What the container is said to have ended with: 128 + SIGKILL, as from containerd's own shims.
EXIT_STATUS = 137
# Seconds for a shim to end by itself. containerd allows 5 for all of `delete` (io.containerd.timeout.shim.cleanup).
_PATIENCE = 3.0
_MNT_DETACH = 2  # umount2(2)
_UMOUNT_NOFOLLOW = 8


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
        group = read_group(bundle, arguments.id)
    except Exception as error:
        # Nothing can be said about a pod, so only what is surely this container's is touched.
        errors.append(error)
        group = Group(grouping.SINGLE, arguments.id)
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
    except OSError as error:
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
        except OSError:
            handle = -1  # gone
        if handle >= 0:
            try:
                if _is_shim_of(int(pid), launch.bundle) and not _ended(handle, _PATIENCE):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    _ended(handle, _PATIENCE)
            finally:
                os.close(handle)
    path = launch.address.removeprefix("unix://")
    # The file is in a directory that only root can write; still, nothing but a shim's socket is removed.
    if path.startswith(f"{SOCKET_DIR}/") or (path and _is_socket(path)):
        with suppress(FileNotFoundError):
            os.unlink(path)


def _is_shim_of(pid: int, bundle: str) -> bool:
    """Whether the process works in the bundle. Process ids are used again; a pidfd, once open, is not."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", bundle)
    except OSError:
        return False


def _ended(handle: int, patience: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def _is_socket(path: str) -> bool:
    try:
        return os.stat(path, follow_symlinks=False).st_mode & 0o170000 == 0o140000  # S_ISSOCK
    except OSError:
        return False


def _unmount_below(directory: str) -> None:
    """Unmount everything at and below `directory`, the last mounts first."""
    import ctypes

    with open("/proc/self/mountinfo", "rb") as file:
        # proc_pid_mountinfo(5): the fifth field, with white space and backslashes as octal numbers.
        places = [line.split(b" ", 5)[4].decode("unicode_escape").encode("latin-1") for line in file]
    root = os.fsencode(directory)
    libc = ctypes.CDLL(None, use_errno=True)
    for place in reversed(places):
        if place != root and not place.startswith(root + b"/"):
            continue
        if libc.umount2(place, _MNT_DETACH | _UMOUNT_NOFOLLOW):
            number = ctypes.get_errno()
            raise OSError(number, f"can't unmount: {os.strerror(number)}", os.fsdecode(place))
