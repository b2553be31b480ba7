"""What the vsock backend is told when it starts: one JSON object, made and read by the same fields."""

import json
import os
from typing import Any, Final, NamedTuple, NoReturn

from kata_common.documents import parse_json
from kata_common.ids import MAX_SOCKET_PATH

__all__ = ["LEVELS", "Settings", "UsageError"]

LEVELS: Final = ("error", "warning", "info", "debug")
# "_4294967295" follows it; the directory before it becomes the working directory.
MAX_NAME: Final = MAX_SOCKET_PATH - len("_4294967295")
_MAX_FD: Final = 1 << 20
_MAX_PORT: Final = 0xFFFF_FFFE


class UsageError(Exception):
    """The settings are wrong."""


class Settings(NamedTuple):
    """Descriptors are those that the parent leaves open. `forwards` are pairs of a port of the guest and a listener;
    `user` is a pair of a user's and a group's id; `hold_timeout` is in seconds.
    """

    vhost_fd: int
    guest_cid: int
    hybrid_fd: int | None = None
    uds_path: str = ""
    forwards: tuple[tuple[int, int], ...] = ()
    hold_timeout: float = 60.0
    log_level: str = "info"
    user: tuple[int, int] | None = None

    def to_json(self) -> str:
        """As the program takes it."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Raises UsageError, which names what is wrong."""
        try:
            given = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the settings are not JSON: {error}") from error
        if not isinstance(given, dict):
            raise UsageError("the settings are not a JSON object")
        if unknown := sorted(set(given) - set(cls._fields)):
            raise UsageError(f"there is no setting {unknown[0]!r}; there are {', '.join(cls._fields)}")
        if missing := {"vhost_fd", "guest_cid"} - set(given):
            raise UsageError(f"{min(missing)} is missing")
        given["forwards"] = tuple(_pair("forwards", pair) for pair in _list("forwards", given.get("forwards", [])))
        if given.get("user") is not None:
            given["user"] = _pair("user", given["user"])
        settings = cls(**given)
        settings._check()
        return settings

    def _check(self) -> None:
        _whole("vhost_fd", self.vhost_fd, 0, _MAX_FD)
        # 0, 1 and 2 are reserved, as is 2^32 - 1 (virtio 1.2, 5.10.4).
        _whole("guest_cid", self.guest_cid, 3, 0xFFFF_FFFE)
        if self.hybrid_fd is not None:
            _whole("hybrid_fd", self.hybrid_fd, 0, _MAX_FD)
        path: object = self.uds_path  # JSON has other types as well
        if not isinstance(path, str) or "\0" in self.uds_path:
            _bad("uds_path", self.uds_path)
        if len(os.fsencode(os.path.basename(self.uds_path))) > MAX_NAME:  # noqa: PTH119 - pathlib is not imported here
            raise UsageError(f"uds_path has a name longer than {MAX_NAME} bytes, which leaves no room for a port")
        if (self.hybrid_fd is not None) != bool(self.uds_path):
            raise UsageError("hybrid_fd and uds_path belong together")
        for port, fd in self.forwards:
            _whole("forwards", port, 0, _MAX_PORT)
            _whole("forwards", fd, 0, _MAX_FD)
        if type(self.hold_timeout) not in (int, float) or not 0 < self.hold_timeout <= 86400:
            _bad("hold_timeout", self.hold_timeout)
        if self.log_level not in LEVELS:
            _bad("log_level", self.log_level)
        for number in self.user or ():
            # 0 would be no drop at all, 2^32 - 1 is setresuid's "leave as it is".
            _whole("user", number, 1, 0xFFFF_FFFE)


def _list(name: str, value: object) -> list[Any]:
    return value if isinstance(value, list) else _bad(name, value)


def _pair(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or [type(each) for each in value] != [int, int]:
        _bad(name, value)
    return value[0], value[1]


def _whole(name: str, value: object, low: int, high: int) -> None:
    # A bool is an int to Python, not to anybody else.
    if type(value) is not int or not low <= value <= high:
        _bad(name, value)


def _bad(name: str, value: object) -> NoReturn:
    raise UsageError(f"{name} can't be {str(value)[:80]!r}")
