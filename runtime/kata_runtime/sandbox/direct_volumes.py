"""Direct-assigned volumes: a block device with a file system that only the guest mounts.

Who makes a volume (a CSI driver) says by a file what is behind its path; a container that mounts the path gets that.

    /run/kata-containers/shared/direct-volumes/<base64url of the path>/mountInfo.json
                                                                      /<id of the sandbox that has it>

Names and fields are Kata's (src/runtime/pkg/direct-volume/utils.go, docs/design/direct-blk-device-assignment.md).
"""

import base64
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_common.documents import parse_json
from kata_common.files import write_atomically
from kata_runtime.errors import RootfsError
from kata_runtime.sandbox.state import valid_id

__all__ = ["DIRECTORY", "DirectVolume", "add", "find", "home_of", "record", "remove", "sandbox_of"]

DIRECTORY: Final = Path("/run/kata-containers/shared/direct-volumes")
_INFO: Final = "mountInfo.json"
_MAX_INFO: Final = 64 << 10
# How the guest can mount it; an empty type is a block device with a file system all the same (Kata's default).
_TYPES: Final = ("", "directvol", "block")
FILE_SYSTEMS: Final = ("ext4", "xfs")
_FIELDS: Final = frozenset({"volume-type", "device", "fstype", "metadata", "options"})


@dataclass(frozen=True, slots=True)
class DirectVolume:
    """What is behind the volume `path`."""

    path: str
    device: str
    fstype: str
    options: tuple[str, ...] = ()


def home_of(path: str, directory: Path = DIRECTORY) -> Path:
    """The directory that tells of a volume."""
    return directory / base64.urlsafe_b64encode(path.encode()).decode()


def find(path: str, directory: Path = DIRECTORY) -> DirectVolume | None:
    """The volume at `path`, if it is one.

    Raises:
        RootfsError: what is said of it can't be done.
    """
    file = home_of(path, directory) / _INFO
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_INFO)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == 36:  # ENAMETOOLONG: nobody can have told of it
            return None
        raise RootfsError(f"{file}: {error.strerror}") from error
    return parse(path, content, str(file))


def parse(path: str, content: bytes | str, where: str) -> DirectVolume:
    """What `content`, of the file `where`, says of the volume `path`.

    Raises:
        RootfsError: as `find`.
    """
    try:
        info: Any = parse_json(content)
    except ValueError as error:
        raise RootfsError(f"{where}: no JSON: {error}") from error
    if not isinstance(info, dict) or not isinstance(info.get("device"), str) or not info["device"].startswith("/"):
        raise RootfsError(f"{where}: expected an object with the absolute path of a block device as device")
    _check(info, where)
    return DirectVolume(path, info["device"], info["fstype"], tuple(info.get("options") or ()))


def _check(info: Mapping[str, Any], where: str) -> None:
    if unknown := sorted(set(info) - _FIELDS):
        raise RootfsError(f"{where}: {unknown[0][:60]!r} is unknown", hint=f"there are {', '.join(sorted(_FIELDS))}")
    if info.get("volume-type", "") not in _TYPES:
        raise RootfsError(f"{where}: volume-type {str(info['volume-type'])[:60]!r} can't be had", hint="use directvol")
    if info.get("fstype") not in FILE_SYSTEMS:
        raise RootfsError(
            f"{where}: fstype {str(info.get('fstype'))[:60]!r} can't be mounted by the guest",
            hint=f"use {' or '.join(FILE_SYSTEMS)}",
        )
    options = info.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise RootfsError(f"{where}: options is no list of strings")
    metadata = info.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise RootfsError(f"{where}: metadata is no object")
    for name in metadata:
        if name in ("fsGroup", "fsGroupChangePolicy", "encryptionType"):
            raise RootfsError(
                f"{where}: metadata.{name} can't be had: the guest changes nothing in a volume",
                hint="give its files their group when it is made",
            )


def add(path: str, content: str, directory: Path = DIRECTORY) -> None:
    """Tell of a volume.

    Raises:
        RootfsError: what is said can't be done, or not be kept.
    """
    parse(path, content, "--mount-info")
    home = home_of(path, directory)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(str(home / _INFO), content.encode())
    except OSError as error:
        raise RootfsError(f"{home}: {error.strerror}") from error


def remove(path: str, directory: Path = DIRECTORY) -> None:
    """Tell no more; whoever has it keeps it. Raises RootfsError."""
    try:
        shutil.rmtree(home_of(path, directory))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RootfsError(f"{error.filename}: {error.strerror}") from error


def record(path: str, sandbox_id: str, directory: Path = DIRECTORY) -> None:
    """A sandbox has the volume."""
    with suppress(OSError):  # it is for commands that ask who has it
        (home_of(path, directory) / sandbox_id).touch()


def sandbox_of(path: str, directory: Path = DIRECTORY) -> str:
    """The sandbox that has the volume.

    Raises:
        RootfsError: none has.
    """
    with suppress(OSError):
        names = [entry.name for entry in home_of(path, directory).iterdir() if entry.name != _INFO]
        for name in sorted(names):
            return valid_id(name)
    raise RootfsError(f"no sandbox has the volume {path}", hint="its pod must have been started")
