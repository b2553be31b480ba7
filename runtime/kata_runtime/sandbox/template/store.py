"""Where templates lie: files in memory that only we may touch, found out where they are not what we left.

    <template_path>/lock               whoever makes one holds it (flock), so that it is free again however that ends
                    <key>.json         what the other two are, and must look like; it comes last
                    <key>.<n>.memory   the guest's memory, sparse, as large as the guest believes it to be
                    <key>.<n>.state    its devices and processors, as the hypervisor saved them

All are unnamed (O_TMPFILE) until the template is whole: one whose maker was killed leaves nothing. <n> is another for
each that is made, and the description takes the place of an older one at once, so that nobody finds parts of two.
Whoever opens a template holds its files, whatever becomes of their names.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from kata_runtime.errors import TemplateError
from kata_runtime.sandbox.template.meta import Meta

__all__ = ["PLACES", "ContendedError", "Template", "TemplateStore", "memory_backed"]

# Kata's place, and one that is in memory also where /run is not.
PLACES: Final = (Path("/run/vc/vm/template"), Path("/dev/shm/kata-template"))  # noqa: S108 - checked before it is used
# How many there may be, and how much memory they may take together (bytes). The longest unused go first.
MOST: Final = 4
MOST_BYTES: Final = 2 << 30
# What a start reads before it believes a word of it, in bytes.
_META_SIZE: Final = 1 << 16
_STATE_SIZE: Final = 64 << 20
_KEY: Final = re.compile(r"[0-9a-f]{64}")
# How often a template may be made anew while somebody looks for it.
_REPLACED: Final = 8


class ContendedError(TemplateError):
    """Somebody else makes one."""


class Template:
    """One that is whole, and ours: its files stay as they are while this is open. A context manager."""

    def __init__(self, meta: Meta, memory_fd: int, state_fd: int) -> None:
        self.meta = meta
        self.memory_fd = memory_fd
        self.state_fd = state_fd

    def __enter__(self) -> "Template":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.memory_fd)
        os.close(self.state_fd)

    def new_memory(self) -> int:
        """A file in memory, of a fixed size, for a copy of the guest's memory; the caller's to close.

        The devices' helpers work in it, so a private mapping of the template's own would not do.
        """
        target = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(target, self.meta.memory_bytes)
        # Whoever has it mapped must not find it shorter.
        fcntl.fcntl(target, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return target

    def copy_memory(self, target: int) -> None:
        """Copy the guest's memory to what `new_memory` made. Takes some 60 ms, during which other threads run.

        Raises:
            TemplateError: it can't be read whole.
        """
        # A descriptor of its own: where it stands is nobody else's business.
        with open(f"/proc/self/fd/{target}", "r+b", buffering=0) as file:
            try:
                self._copy(file.fileno())
            except OSError as error:
                raise TemplateError(f"its memory can't be copied: {error.strerror}") from error

    def _copy(self, target: int) -> None:
        at = 0
        while at < self.meta.memory_bytes:
            try:
                at = os.lseek(self.memory_fd, at, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: nothing but a hole up to the end
            end = os.lseek(self.memory_fd, at, os.SEEK_HOLE)
            os.lseek(target, at, os.SEEK_SET)
            while at < end:
                copied = os.sendfile(target, self.memory_fd, at, end - at)
                if not copied:
                    raise TemplateError("its memory ends too early")
                at += copied


def memory_backed(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether `path`, or what of its parents is there, is on a tmpfs."""
    while not path.exists() and path != path.parent:
        path = path.parent
    device = path.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.read_text().splitlines():
        # proc(5): ID, parent, device, root, mount point, options, optional fields up to "-", type.
        fields = line.split()
        if fields[2] == name:
            return fields[fields.index("-") + 1] == "tmpfs"
    return False


class TemplateStore:
    """The templates in one directory. Nothing is made before there is something to keep."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def at(cls, configured: str) -> "TemplateStore":
        """The store at `[factory] template_path`; by default, which Kata's files write down, at the first of `PLACES`
        that is in memory.

        Raises:
            TemplateError: there is none in memory.
        """
        places = (Path(configured),) if configured not in ("", str(PLACES[0])) else PLACES
        for place in places:
            if memory_backed(place):
                return cls(place)
        hint = "correct [factory] template_path, mount a tmpfs there, or set enable_template = false"
        raise TemplateError(f"templates belong in memory, and {' and '.join(map(str, places))} is no tmpfs", hint=hint)

    def find(self, key: str) -> Template | None:
        """The template of this key; None where there is none.

        Raises:
            TemplateError: it is not what we left, or not ours alone: it must not be used, and be made again.
        """
        with self._opened() as directory:
            if directory is None:
                return None
            template = self._whole(directory, key)
            if template is None:
                return None
            with suppress(OSError):  # when it was last used
                os.utime(f"{key}.json", dir_fd=directory, follow_symlinks=False)
            return template

    def _whole(self, directory: int, key: str) -> Template | None:
        meta = None
        for _ in range(_REPLACED):
            before = meta
            try:
                meta = self._meta(directory, key)
            except FileNotFoundError:
                return None
            if meta == before:
                raise TemplateError(f"template {key[:12]} lacks a file")
            with suppress(FileNotFoundError):  # it has been made anew meanwhile, or lacks a file
                return self._open(directory, meta)
        raise TemplateError(f"template {key[:12]} is made over and over")

    def _open(self, directory: int, meta: Meta) -> Template:
        fds: list[int] = []
        try:
            for part in ("memory", "state"):
                fds.append(self._part(directory, f"{meta.name}.{part}"))
            memory = os.fstat(fds[0])
            if not memory.st_nlink:
                # Replaced since we have opened it, which is a change as well.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), meta.name)
            if _looks(memory) != (meta.memory_bytes, *meta.memory_looks):
                raise TemplateError(f"template {meta.key[:12]}: its memory has been changed since it was made")
            if os.fstat(fds[1]).st_size > _STATE_SIZE or _sha256(fds[1]) != meta.state_sha256:
                raise TemplateError(f"template {meta.key[:12]}: its state has been changed since it was made")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return Template(meta, fds[0], fds[1])

    def _meta(self, directory: int, key: str) -> Meta:
        fd = self._part(directory, f"{key}.json")
        try:
            meta = Meta.parse(os.read(fd, _META_SIZE))
        except ValueError as error:
            raise TemplateError(f"template {key[:12]}: {error}") from error
        finally:
            os.close(fd)
        if meta.key != key:
            raise TemplateError(f"template {key[:12]} says that it is {str(meta.key)[:12]!r}")
        return meta

    def _part(self, directory: int, name: str) -> int:
        """One of a template's files, which must be a plain file of ours alone."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TemplateError(f"{self.directory / name}: {error.strerror}") from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            os.close(fd)
            raise TemplateError(f"{self.directory / name} is not a file of ours alone")
        return fd

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Our directory, or None where there is none. Raises TemplateError where others may change what is in it."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise TemplateError(f"{self.directory}: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                hint = "remove it, or name another directory as [factory] template_path (is it root's, mode 0700?)"
                raise TemplateError(f"{self.directory} is not a directory of ours alone", hint=hint)
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Be the one who makes templates here for the block; yields the directory. What a killed one left is removed.

        Raises:
            TemplateError: somebody else is, or the directory can't be used.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TemplateError(f"{self.directory}: {error.strerror}") from error
        with self._opened() as directory:
            if directory is None:
                raise TemplateError(f"{self.directory} vanishes")
            lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise ContendedError(f"somebody else makes a template in {self.directory}") from None
            try:
                self._tidy(directory)
                yield directory
            finally:
                os.close(lock)

    def new_file(self, directory: int, size: int = 0) -> int:
        """A file without a name, for `publish`. Raises TemplateError."""
        try:
            fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
            os.ftruncate(fd, size)
        except OSError as error:
            raise TemplateError(f"{self.directory}: {error.strerror}") from error
        return fd

    def publish(self, directory: int, meta: Meta, memory_fd: int, state_fd: int) -> Meta:
        """Give a whole template its names; `meta` is completed. From now on `find` finds it, and no older one.

        Both files must be open nowhere else any more; they are closed here.

        Raises:
            TemplateError: it can't be done, or somebody may still write to one of them.
        """
        given = [memory_fd, state_fd]
        try:
            for number, fd in enumerate(given):
                os.fchown(fd, os.geteuid(), os.getegid())
                os.fchmod(fd, 0o400)
                given[number] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                os.close(fd)
            for fd in given:
                _require_no_writer(fd)
            name = f"{meta.key}.{secrets.token_hex(8)}"
            for fd, part in zip(given, ("memory", "state"), strict=True):
                os.link(f"/proc/self/fd/{fd}", f"{name}.{part}", dst_dir_fd=directory, follow_symlinks=True)
            memory = os.fstat(given[0])
            size, *looks = _looks(memory)
            whole = replace(
                meta,
                name=name,
                memory_bytes=size,
                memory_looks=tuple(looks),
                state_sha256=_sha256(given[1]),
                taken=memory.st_blocks * 512,
            )
            self._describe(directory, whole)
            self._remove_parts(directory, meta.key, but=name)
        except OSError as error:
            raise TemplateError(f"the template can't be kept in {self.directory}: {error.strerror}") from error
        finally:
            for fd in given:
                os.close(fd)
        return whole

    def _describe(self, directory: int, meta: Meta) -> None:
        """Put the description into the place of what may be there."""
        description = self.new_file(directory)
        try:
            os.write(description, json.dumps(asdict(meta)).encode())
            new = f"{meta.name}.json"
            os.link(f"/proc/self/fd/{description}", new, dst_dir_fd=directory, follow_symlinks=True)
            os.rename(new, f"{meta.key}.json", src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(description)

    def remove(self, directory: int, key: str) -> None:
        """Remove a template; those who have it open keep it. Its description goes first."""
        with suppress(FileNotFoundError):
            os.unlink(f"{key}.json", dir_fd=directory)
        self._remove_parts(directory, key)

    def _remove_parts(self, directory: int, key: str, but: str = "") -> None:
        for name in _names(directory):
            if name.startswith(f"{key}.") and name != f"{key}.json" and not (but and name.startswith(but)):
                self._remove_foreign(directory, name)

    def _tidy(self, directory: int) -> None:
        """Remove what is stale, broken or foreign, and the longest unused of too many."""
        kept: list[tuple[float, Meta, int]] = []
        for key, used in self._keys(directory).items():
            try:
                meta = self._meta(directory, key)
                if meta.stale:
                    raise TemplateError("stale")
                with self._open(directory, meta) as template:
                    kept.append((used, meta, os.fstat(template.memory_fd).st_blocks * 512))
            except (TemplateError, OSError):
                self.remove(directory, key)
        kept.sort(key=lambda each: each[0], reverse=True)
        total = 0
        known = {"lock"}
        # Room for one more.
        for number, (_, meta, size) in enumerate(kept, 1):
            total += size
            if number < MOST and total <= MOST_BYTES:
                known |= {f"{meta.key}.json", f"{meta.name}.memory", f"{meta.name}.state"}
        for name in _names(directory):
            if name not in known:
                self._remove_foreign(directory, name)

    def _remove_foreign(self, directory: int, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)

    def _keys(self, directory: int) -> dict[str, float]:
        """All that have a description, and when each was last used."""
        found = {}
        for name in _names(directory):
            key, _, part = name.partition(".")
            if part == "json" and _KEY.fullmatch(key):
                with suppress(OSError):
                    found[key] = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
        return found

    def all(self) -> list[tuple[str, Meta | TemplateError]]:
        """Every template by its key: what is known of it, or what is wrong with it.

        Raises:
            TemplateError: the directory is not ours alone.
        """
        found: list[tuple[str, Meta | TemplateError]] = []
        with self._opened() as directory:
            if directory is None:
                return found
            for key in sorted(self._keys(directory)):
                try:
                    meta = self._meta(directory, key)
                    self._open(directory, meta).__exit__()
                    found.append((key, meta))
                except (TemplateError, OSError) as error:
                    trouble = error if isinstance(error, TemplateError) else TemplateError(str(error))
                    found.append((key, trouble))
        return found

    def destroy(self) -> int:
        """Remove all templates and the directory; how many there were.

        Raises:
            TemplateError: one is being made, or the directory is not ours alone.
        """
        with self._opened() as directory:
            if directory is None:
                return 0
        with self.locked() as directory:
            keys = self._keys(directory)
            for name in _names(directory):
                self._remove_foreign(directory, name)
        with suppress(OSError):
            self.directory.rmdir()
        return len(keys)

    def room(self, directory: int, memory: int) -> str:
        """Why there is no room for a template of a guest with `memory` MiB; empty where there is.

        A guest touches some 120 MiB while it boots, and a twentieth of what it has for the kernel's own tables.
        """
        needed = (160 + memory // 16) << 20
        status = os.fstatvfs(directory)
        if (free := status.f_bavail * status.f_frsize) < needed:
            return f"{self.directory} has {free >> 20} MiB left, and a template takes up to {needed >> 20}"
        with suppress(OSError, ValueError, StopIteration):
            lines = Path("/proc/meminfo").read_text().splitlines()
            available = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
            # The guest that it is made by, and one clone.
            if available < 3 * needed:
                takes = f"a template and its clone take {3 * needed >> 20}"
                return f"the host has {available >> 20} MiB of memory left, and {takes}"
        return ""


def _names(directory: int) -> list[str]:
    """Descriptions first: what goes in this order is no template before it lacks a file."""
    return sorted(os.listdir(directory), key=lambda name: not name.endswith(".json"))


def _looks(found: os.stat_result) -> tuple[int, ...]:
    """What a file is and was when anybody last changed it: size, inode, times of change (ns).

    Nobody can set a ctime, and nothing but a change moves it: reading, memory that runs short, swapping and huge pages
    don't. How many blocks it takes (st_blocks) is no such thing: tmpfs counts pages that were only read, and drops
    them again (mm/shmem.c, `shmem_recalc_inode`).
    """
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _require_no_writer(fd: int) -> None:
    """Nobody has this file open, or mapped, so that it could be changed. Raises TemplateError, OSError."""
    try:
        # fcntl(2): a lease for reading is only to be had where nobody has the file open for writing.
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise TemplateError("somebody may still write to the template's files") from error
        if error.errno != errno.EINVAL:  # sysctl fs.leases-enable = 0: nobody can tell
            raise


def _sha256(fd: int) -> str:
    digest = hashlib.sha256()
    at = 0
    while chunk := os.pread(fd, 1 << 20, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()
