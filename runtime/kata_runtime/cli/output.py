"""What a detached container writes: a file per sandbox, bounded in size and number; `kata-runtime logs` shows it.

/var/lib/kata-containers/logs/<id>.log      what it wrote last
/var/lib/kata-containers/logs/<id>.log.1    what it wrote before, as long as another file may be
"""

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kata_common import places
from kata_common.files import exists
from kata_runtime.errors import HostError, SandboxError
from kata_runtime.sandbox import reach
from kata_runtime.sandbox.state import valid_id

__all__ = ["add_arguments", "kept_output"]

_DIRECTORY = Path(places.STATE_DIR) / "logs"
# Bytes of each of the two files, and how many sandboxes that have ended may have any.
_MAX_FILE = 8 << 20
_MAX_ENDED = 100
_CHUNK = 64 << 10


@contextmanager
def kept_output(sandbox: str, *, keep: bool, directory: Path = _DIRECTORY, limit: int = _MAX_FILE) -> Iterator[int]:
    """For the block: a descriptor to which a container writes. Without `keep` nothing of it stays.

    Raises:
        HostError: there is no place for it.
    """
    path = _path(sandbox, directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_oldest(directory)
        _remove(path)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    copier = threading.Thread(target=_copy, args=(reading, file, path, limit), name="output", daemon=True)
    copier.start()
    try:
        yield writing
    finally:
        os.close(writing)
        copier.join()
        if not keep:
            _remove(path)


def _path(sandbox: str, directory: Path = _DIRECTORY) -> Path:
    return directory / f"{valid_id(sandbox)}.log"


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _before(path).unlink(missing_ok=True)


def _forget_oldest(directory: Path) -> None:
    lives = {f"{name}.log" for name in reach.running()}
    ended = sorted((path.stat().st_mtime, path) for path in directory.glob("*.log") if path.name not in lives)
    for _, path in ended[: max(0, len(ended) - _MAX_ENDED + 1)]:
        _remove(path)


def _copy(reading: int, file: int, path: Path, limit: int) -> None:
    """Until the pipe ends. A disk that is full costs what does not fit, never the container."""
    size = 0
    while chunk := os.read(reading, _CHUNK):
        with suppress(OSError):
            if size + len(chunk) > limit:
                path.replace(_before(path))
                other = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                os.close(file)
                file, size = other, 0
            size += os.write(file, chunk)
    os.close(reading)
    os.close(file)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `logs`."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what it writes, until it ends")
    parser.add_argument("sandbox", metavar="SANDBOX", help="one that was started with run -d")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the command."""
    reach.require_root()
    path = _path(options.sandbox)
    if not exists(path):
        if options.sandbox in reach.running():
            raise SandboxError(
                f"the output of {options.sandbox} is not kept here",
                hint="who started it has it: ctr, podman logs, kubectl logs; kata-runtime run -d keeps it",
            )
        raise SandboxError(f"there is no output of a sandbox {options.sandbox!r}", hint="kata-runtime run -d keeps it")
    if options.follow:
        try:
            asyncio.run(_follow(path, lambda: options.sandbox in reach.running()))
        except KeyboardInterrupt:
            return 130
        return 0
    for part in (_before(path), path):
        with suppress(FileNotFoundError), part.open("rb") as file:
            _print(file)
    return 0


def _print(file: BinaryIO) -> None:
    """What is left of a file."""
    while chunk := file.read(_CHUNK):
        sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


async def _follow(path: Path, lives: Callable[[], bool]) -> None:
    """Print what is there and what comes, across a change of files, until whoever writes it has closed it."""
    from asyncinotify import Inotify, Mask

    with Inotify() as inotify, ExitStack() as stack:
        inotify.add_watch(path.parent, Mask.MODIFY | Mask.CREATE | Mask.CLOSE_WRITE)
        # Asked when nothing can be missed any more.
        writing = lives()
        with suppress(FileNotFoundError), _before(path).open("rb") as before:
            _print(before)
        file = stack.enter_context(path.open("rb"))
        _print(file)
        while writing:
            event = await inotify.get()
            if str(event.name) != path.name:
                continue
            # Also the end of a file that is the one before now.
            _print(file)
            if event.mask & Mask.CREATE:
                with suppress(FileNotFoundError):  # again another one: its event comes
                    file = stack.enter_context(path.open("rb"))
                    _print(file)
            writing = not event.mask & Mask.CLOSE_WRITE
