"""Looks at processes of this host, which may end between two looks.

Whatever is asked about a process that has ended, a zombie included, raises ProcessLookupError and nothing else; a
search leaves out what ends meanwhile.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["children", "descriptors", "find", "mappings", "memory", "open_files", "pids", "processor_time"]


@contextmanager
def _of(pid: int) -> Iterator[Path]:
    """Its directory; what its end makes of reading there is one kind of error."""
    try:
        yield Path(f"/proc/{pid}")
    except (OSError, LookupError, StopIteration) as error:
        raise ProcessLookupError(f"process {pid} has ended") from error


def memory(pid: int, field: str = "RssAnon") -> int:
    """Bytes of one field of proc(5)'s `status`, which a zombie has not."""
    with _of(pid) as process:
        lines = (process / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def processor_time(pid: int) -> float:
    """Seconds of processor time so far."""
    with _of(pid) as process:
        # proc(5): state is field 3, utime and stime 14 and 15; the name before may have anything but the last ')'.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            raise LookupError("a zombie")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    """How many file descriptors it has open."""
    with _of(pid) as process:
        return sum(1 for _ in (process / "fd").iterdir())


def open_files(pid: int) -> dict[Path, str]:
    """Its file descriptors, as paths that lead to the files, and what they are of; not those closed meanwhile."""
    found = {}
    with _of(pid) as process:
        for entry in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                found[entry] = str(entry.readlink())
    return found


def mappings(pid: int, what: str) -> int:
    """How many of its mappings are of files called so."""
    with _of(pid) as process:
        text = (process / "maps").read_text()
        if not text:
            raise LookupError("a zombie")
        return text.count(what)


def children(pid: int) -> dict[str, int]:
    """Child processes by the name of their program."""
    found = {}
    with _of(pid) as process:
        listed = (process / f"task/{pid}/children").read_text().split()
    for child in listed:
        with suppress(OSError):
            found[Path(f"/proc/{child}/exe").readlink().name] = int(child)
    return found


def pids(*marks: bytes, parents: bool = False) -> list[int]:
    """Processes that have all of these in their command line; with `parents` later ones may be in the parent's."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if marks[0] not in command:
                continue
            if parents:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                command += Path(f"/proc/{parent}/cmdline").read_bytes()
            if all(mark in command for mark in marks):
                found.append(int(entry.name))
    return found


def find(*marks: bytes) -> int:
    """The first of them. Raises LookupError."""
    for pid in pids(*marks):
        return pid
    raise LookupError(f"no process has {b' and '.join(marks).decode()} in its command line")
