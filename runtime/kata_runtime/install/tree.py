"""Files below a root directory, named as a process that is chrooted there would name them."""

import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from kata_common.linux import Resolve, open_beneath
from kata_runtime.errors import HostError

__all__ = ["Tree"]


class Tree:
    """The files of `root`; symlinks of it lead to its own, an absolute one as well."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise HostError(f"there is no directory {root}", hint="--root names one that is there")
        self.root = root

    def find(self, path: str) -> Path | None:
        """Where `path` is for us; None where its directory is not there. Its last part is not followed."""
        directory, name = os.path.split(path)
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = open_beneath(root, directory, os.O_PATH | os.O_DIRECTORY, Resolve.IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        finally:
            os.close(root)
        try:
            return Path(f"/proc/self/fd/{found}").readlink() / name
        finally:
            os.close(found)

    def state(self, path: str) -> str | None:
        """As `Item.state` of what is there; None where there is nothing."""
        real = self.find(path)
        if real is None or not os.path.lexists(real):
            return None
        if real.is_symlink():
            return f"link:{real.readlink()}"
        return sha256(real.read_bytes()).hexdigest() if real.is_file() else "directory"

    def read(self, path: str) -> str | None:
        """The text of a file; None where there is none."""
        real = self.find(path)
        return real.read_text() if real is not None and real.is_file() else None

    def write(self, path: str, content: bytes, link: str, made: Callable[[str], None]) -> None:
        """Put a file or symlink there in one step; `made` is told of each directory that had to be made."""
        self._make_parents(path, made)
        real = self.find(path)
        if real is None:
            raise HostError(f"{path}: its directory is a symlink that leads nowhere", hint="mend or remove it")
        # A file that is there keeps its owner's mind about who may read it.
        mode = real.stat().st_mode & 0o7777 if real.is_file() and not real.is_symlink() else 0o644
        temporary = real.with_name(f".{real.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            temporary.unlink()
        if link:
            temporary.symlink_to(link)
        else:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(content)
        temporary.replace(real)

    def _make_parents(self, path: str, made: Callable[[str], None]) -> None:
        missing = []
        directory = os.path.split(path)[0]
        while (real := self.find(directory)) is None or not os.path.lexists(real):
            missing.append(directory)
            directory = os.path.split(directory)[0]
        for directory in reversed(missing):
            real = self.find(directory)
            if real is None:
                raise HostError(f"{directory} can't be made: a symlink leads nowhere", hint="mend or remove it")
            real.mkdir(mode=0o755)
            made(directory)

    def remove(self, path: str) -> None:
        """Remove a file or symlink."""
        real = self.find(path)
        if real is not None:
            real.unlink(missing_ok=True)

    def remove_directory(self, path: str) -> None:
        """Remove a directory that is empty."""
        real = self.find(path)
        if real is not None:
            with suppress(OSError):
                real.rmdir()
