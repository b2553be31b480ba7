"""Mounts of what a kernel makes itself, /dev, /proc and /sys: the guest has its own, the host's is not shared."""

from collections.abc import Sequence
from typing import Any

from kata_runtime.errors import RootfsError

__all__ = ["OWN_DEVICES", "own_mount", "refused"]

# Devices that are the same in every kernel (Linux's devices.txt), by number: the guest's own takes their place.
OWN_DEVICES = {
    (1, 3): "/dev/null",
    (1, 5): "/dev/zero",
    (1, 7): "/dev/full",
    (1, 8): "/dev/random",
    (1, 9): "/dev/urandom",
    (5, 0): "/dev/tty",
    (10, 200): "/dev/net/tun",
    (10, 229): "/dev/fuse",
}
_DIRECTORIES = ("/dev", "/proc", "/sys")
# Ordinary files, wherever they lie.
_FILES = "/dev/shm"  # noqa: S108 -- a mount point
# File systems that the guest's kernel mounts in their place, wherever the container wants them.
_FILESYSTEMS = {"/dev/mqueue": "mqueue", "/proc": "proc", "/sys": "sysfs", "/sys/fs/cgroup": "cgroup"}
# Options of bind mounts alone.
_OF_BINDS = frozenset(
    {
        "bind",
        "rbind",
        "rro",
        "rrw",
        *(f"{r}{p}" for r in ("", "r") for p in ("private", "slave", "shared", "unbindable")),
    }
)


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def refused(source: str) -> bool:
    """Whether `source`, an absolute path of the host, is a kernel's, and none that a guest has as well."""
    return (
        any(_below(source, kernel) for kernel in _DIRECTORIES)
        and not _below(source, _FILES)
        and source not in OWN_DEVICES.values()
    )


def own_mount(source: str, destination: str, options: Sequence[str], notes: list[str]) -> dict[str, Any] | None:
    """The guest's own mount in place of a bind of `source`; None where it is not a kernel's. `notes` is told of it.

    Raises:
        RootfsError: it is a kernel's, and nothing of the guest's can take its place.
    """
    if not refused(source):
        return None
    kind = _FILESYSTEMS.get(source)
    if kind is None:
        raise RootfsError(
            f"mount at {destination}: {source} of the host can't be had in a VM, whose kernel has its own",
            hint=f"leave it out; devices that every kernel has can be mounted: {', '.join(OWN_DEVICES.values())}",
        )
    notes.append(f"mounts: {source} for {destination} is the guest's own, not the host's")
    read = ["ro"] if {"ro", "rro"} & set(options) else []
    kept = [option for option in options if option not in _OF_BINDS and option not in ("ro", "rw")]
    return {"destination": destination, "type": kind, "source": kind, "options": [*kept, *read]}
