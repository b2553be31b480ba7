"""Whether what a guest boots from is what was built: the digests of its files, beside those in the manifest.

A file is read whole once after each boot of the host, and again when it is another one (`identify`): what was found is
remembered where only root writes. The manifest is the one in the file's own directory; what has none there is somebody
else's, and nobody knows what it should be (docs/decisions/0064).
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from kata_common import places
from kata_common.documents import parse_json
from kata_common.files import Identity, identify, write_atomically
from kata_runtime.errors import ImageError

__all__ = ["digest_of", "verify"]

# No sandbox has a name with a dot in front. Empty after a boot, as all of the directory.
_MEMORY: Final = Path(places.RUN_DIR) / ".image-digests"
# How many files are remembered; and how large a manifest may be, in bytes.
_MOST: Final = 64
_MANIFEST_SIZE: Final = 1 << 20
_MANIFEST: Final = "manifest.json"


def verify(paths: Iterable[Path], memory: Path = _MEMORY) -> list[Path]:
    """Compare files with their manifests; takes as long as reading those that are not remembered. Those without one.

    Raises:
        ImageError: one is not what was built, or can't be read; the message says which, and both digests.
    """
    known = _remembered(memory)
    learned, unverified = False, []
    try:
        for path in (Path(os.path.realpath(path)) for path in paths):
            wanted = _wanted(path)
            if not wanted:
                unverified.append(path)
                continue
            identity = identify(path)
            found = known.get(identity)
            if found is None:
                identity, found = _read(path)
                known = {other: digest for other, digest in known.items() if other[0] != identity[0]}
                known[identity] = found
                learned = True
            if found != wanted:
                raise ImageError(
                    f"the guest image's {path.name} is not what was built: {path} has sha256 {found}, and"
                    f" {path.with_name(_MANIFEST)} says {wanted}",
                    hint=f"build it again: kata-runtime image build --output {path.parent}",
                )
    except OSError as error:
        raise ImageError(f"the guest image can't be read: {error.filename}: {error.strerror}") from error
    finally:
        if learned:
            _remember(memory, known)
    return unverified


def digest_of(path: Path) -> str:
    """Its sha256, as in a manifest. Raises OSError."""
    return _read(path)[1]


def _wanted(path: Path) -> str:
    """What the manifest beside it says; empty where there is none, or where it says nothing of this file."""
    manifest = path.with_name(_MANIFEST)
    try:
        with manifest.open("rb") as file:
            fields = parse_json(file.read(_MANIFEST_SIZE))
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise ImageError(
            f"the guest image's manifest is damaged: {manifest}: {error}",
            hint=f"build it again: kata-runtime image build --output {path.parent}",
        ) from error
    # Other tools have a file of that name, too.
    digests = fields.get("sha256") if isinstance(fields, dict) else None
    digest = digests.get(path.name) if isinstance(digests, dict) else None
    return digest if isinstance(digest, str) else ""


def _read(path: Path) -> tuple[Identity, str]:
    with path.open("rb") as file:
        before = identify(path, file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if identify(path, file.fileno()) != before:
            raise ImageError(f"the guest image is being written: {path}", hint="try again when that is over")
    return before, digest


def _remembered(memory: Path) -> dict[Identity, str]:
    """What was found since the host booted; nothing where there is no such file of ours alone."""
    with suppress(OSError, ValueError, TypeError):
        fd = os.open(memory, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            state = os.fstat(fd)
            if state.st_uid == os.geteuid() and not state.st_mode & 0o022:
                return {_identity(*identity): str(digest) for identity, digest in parse_json(file.read())}
    return {}


def _identity(name: str, device: int, inode: int, size: int, mtime_ns: int, ctime_ns: int) -> Identity:
    return (name, device, inode, size, mtime_ns, ctime_ns)


def _remember(memory: Path, known: dict[Identity, str]) -> None:
    # Where it can't be kept, it is found out again.
    with suppress(OSError):
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(list(known.items())[-_MOST:]).encode())
