"""Tar archives that others made, read within bounds: of bytes (unpacked ones), entries, headers and time.

A compressed archive of a megabyte may hold gigabytes, a million empty files, or a header that is one long name. Nothing
here is kept in memory but one entry and what `tarfile` reads of its headers.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

__all__ = ["UNREADABLE", "Bounds", "BoundsError", "Meter", "entries", "gunzip", "is_gzip", "opened"]

# What reading a hostile archive may raise.
UNREADABLE = (
    *(OSError, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    *(ValueError, TypeError, AttributeError, OverflowError, RecursionError),
)
_CHUNK = 1 << 20
_XZ_MEMORY = 128 << 20
_GZIP = b"\x1f\x8b"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


class BoundsError(Exception):
    """An archive goes beyond what is allowed; says which bound that is."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an image may take: bytes and entries of all its layers unpacked; bytes of headers for one entry; seconds."""

    layers: int = 256
    size: int = 64 << 30
    entries: int = 1_000_000
    headers: int = 2 << 20
    seconds: float = 600


class Meter:
    """Adds up what the archives of one image take."""

    def __init__(self, bounds: Bounds, room: int | None = None) -> None:
        """`room` is how many bytes there are for it on the disk."""
        self.bounds = bounds
        self.size = 0
        self.entries = 0
        self._room = room
        self._until = time.monotonic() + bounds.seconds

    def tick(self) -> None:
        """Some time has gone by."""
        if time.monotonic() > self._until:
            raise BoundsError(f"reading it takes longer than {self.bounds.seconds:g} s")

    def entry(self, size: int) -> None:
        """One more entry, whose content takes `size` bytes."""
        self.entries += 1
        if self.entries > self.bounds.entries:
            raise BoundsError(f"more than {self.bounds.entries} files and directories")
        self.take(size)

    def take(self, size: int) -> None:
        """So many more bytes."""
        self.size += size
        if size < 0 or self.size > self.bounds.size:
            raise BoundsError(f"more than {self.bounds.size} bytes unpacked")
        if self._room is not None and self.size > self._room:
            raise BoundsError(f"more than the {self._room} bytes that are free on the disk")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Forward:
    """A file for `tarfile` that only goes forward, and hands out no more at once than an entry's headers may take."""

    def __init__(self, file: _Readable, meter: Meter) -> None:
        self._file = file
        self._meter = meter
        self._position = 0
        self.left = meter.bounds.headers
        self.read_bytes = 0

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise BoundsError(f"headers of one entry that take more than {self._meter.bounds.headers} bytes")
        content = b""
        # Decompressors return less than is asked for.
        while len(content) < size and (more := self._file.read(size - len(content))):
            content += more
        self._position += len(content)
        return content

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("an entry lies before its header")
        while self._position < position:
            self._meter.tick()
            skipped = len(self._file.read(min(position - self._position, _CHUNK)))
            if not skipped:
                break
            self._position += skipped
        return self._position


class _Xz(io.RawIOBase):
    """Like lzma.LZMAFile, with a bound on memory, which a file may ask gigabytes of."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if self._stream.eof:
                self._rest = self._stream.unused_data.lstrip(b"\0") or self._file.read(_CHUNK)
                if not self._rest:
                    return b""
                self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            given = self._rest
            if not given and self._stream.needs_input:
                given = self._file.read(1 << 16)
                if not given:
                    raise EOFError("it ends too early")
            self._rest = b""
            if content := self._stream.decompress(given, size):
                return content


@contextmanager
def opened(path: Path) -> Iterator[_Readable]:
    """The bytes of the tar archive at `path`, whatever it is compressed with.

    Raises:
        BoundsError: by something that is not understood here.
    """
    with path.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        if magic.startswith(_ZSTANDARD):
            raise BoundsError("it is compressed with zstd, which is not supported; gzip is")
        if magic.startswith(_GZIP):
            yield gzip.GzipFile(fileobj=file)
        elif magic.startswith(b"BZh"):
            yield bz2.BZ2File(file)
        elif magic.startswith(b"\xfd7zXZ\0"):
            yield _Xz(file)
        else:
            yield file


def is_gzip(path: Path) -> bool:
    """Whether the file at `path` is compressed by gzip."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def gunzip(path: Path, target: Path, meter: Meter) -> None:
    """Write what is in the gzip file `path` to `target`. Raises as `entries`."""
    with opened(path) as archive, target.open("xb") as file:
        while chunk := archive.read(_CHUNK):
            meter.tick()
            meter.take(len(chunk))
            file.write(chunk)


def entries(archive: _Readable, meter: Meter) -> Iterator[tuple[tarfile.TarInfo, _Forward]]:
    """Each entry of a tar archive, and the file, which stands at its content: `left` says how much may be read of it.

    Raises:
        BoundsError: it goes beyond the meter's bounds.
        Others of UNREADABLE: it is no tar archive, or broken.
    """
    file = _Forward(archive, meter)
    with tarfile.open(fileobj=cast("BinaryIO", file), mode="r:") as tar:
        while True:
            file.left = meter.bounds.headers
            member = tar.next()
            if member is None:
                return
            tar.pax_headers = {}  # of global headers, which umoci refuses
            tar.members.clear()  # type: ignore[attr-defined] # not in the stubs; else every entry stays in memory
            meter.tick()
            # A size in a global header is not that of the content, holes in a sparse file are not in the archive.
            meter.entry(max(member.size, tar.offset - member.offset_data))
            yield member, file
