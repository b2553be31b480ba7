"""The cpio archives that Linux unpacks as initramfs ("newc" format; Documentation/driver-api/early-userspace)."""

import stat
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Entry", "archive", "device", "directory", "file", "symlink"]


class Entry(NamedTuple):
    """One member; `mode` has the type bits of stat(2), `device` is major and minor of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A directory; its parents must have been added before it."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries` in their order, all owned by root and dated to the epoch: same input, same bytes."""
    output = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        output += b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (name, entry.data):
            output += part
            output += bytes(-len(output) % 4)
    return bytes(output)
