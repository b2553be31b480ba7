"""`--user U[:G]` and an image's User, resolved by the root filesystem's own /etc/passwd and /etc/group.

The rules are those of docker and runc: a number need not be in the files; a name must; a user given without a group has
the group of his entry and all the groups that list him; what an entry lacks at its end is empty (a user without a group
has group 0). Unlike there, an entry whose uid is no number is nobody's, and not root's.
"""

from collections.abc import Iterator
from pathlib import Path

from kata_runtime.errors import RootfsError
from kata_runtime.oci.inside import NotRegularError, read_inside
from kata_runtime.oci.spec import User

__all__ = ["find_user"]

_LIMIT = 1 << 20
# (uid_t)-1 means "no change" to the kernel.
_MAX_ID = 0xFFFF_FFFE


def find_user(rootfs: Path, wanted: str = "") -> User:
    """The user that `wanted` (`U`, `U:G`; names or numbers; empty for root) means in `rootfs`.

    Raises:
        RootfsError: a name is not there, a number is out of range, or a file can't be trusted.
    """
    name, _, group = wanted.partition(":")
    if not _plain(name) or not _plain(group):
        raise RootfsError(f"user {wanted!r} is none", hint="write --user USER or --user USER:GROUP")
    uid = _number(name or "0")
    entry = None
    try:
        entry = next(
            (found for found in _passwd(rootfs) if (found[1] == uid if uid is not None else found[0] == name)), None
        )
    except NotRegularError:
        if uid is None:
            raise
    if entry is None and uid is None:
        raise RootfsError(f"user {name!r} is not in the container's /etc/passwd", hint="a numeric id always works")
    login, user, own_group, home = entry or ("", uid or 0, 0, "/root" if uid == 0 else "/")
    if group:
        return User(user, _group(rootfs, group), (), home)
    groups = sorted({gid for _, gid, members in _groups(rootfs) if login and login in members} - {own_group})
    return User(user, own_group, tuple(groups), home)


def _group(rootfs: Path, group: str) -> int:
    gid = _number(group)
    if gid is not None:
        return gid
    for name, found, _ in _groups(rootfs):
        if name == group:
            return found
    raise RootfsError(f"group {group!r} is not in the container's /etc/group", hint="a numeric id always works")


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()):
        return None
    if len(text) > 10 or int(text) > _MAX_ID:
        raise RootfsError(f"id {text[:20]} is out of range", hint=f"ids go up to {_MAX_ID}")
    return int(text)


def _passwd(rootfs: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name, uid, gid and home of each entry (passwd(5)); lines that are none are skipped."""
    for fields in _lines(rootfs, "/etc/passwd", 7):
        if _is_id(fields[2]):
            yield fields[0], int(fields[2]), int(fields[3]) if _is_id(fields[3]) else 0, fields[5] or "/"


def _groups(rootfs: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Name, gid and members of each entry (group(5))."""
    for fields in _lines(rootfs, "/etc/group", 4):
        if _is_id(fields[2]):
            yield fields[0], int(fields[2]), fields[3].split(",")


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID


def _plain(text: str) -> bool:
    return ":" not in text and text.isprintable()


def _lines(rootfs: Path, path: str, fields: int) -> Iterator[list[str]]:
    """The lines of a file, each of so many fields, those that it lacks empty."""
    content = read_inside(rootfs, path, _LIMIT) or b""
    for line in content.decode(errors="surrogateescape").split("\n"):
        if line.strip() and not line.startswith("#"):
            found = line.strip().split(":")
            yield found[:fields] + [""] * (fields - len(found))
