"""Where a command's output goes: the terminal, a pipe, or a file that belongs to who asked for it."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TextIO

from kata_traces.store.errors import StoreError

__all__ = ["format_of", "to_stdout", "write_file"]

# By the end of a file's name, the longer ones first.
SUFFIXES: Final[Mapping[str, str]] = {
    ".jaeger.json": "jaeger",
    ".perfetto.json": "perfetto",
    ".pftrace.json": "perfetto",
    ".html": "html",
    ".htm": "html",
    ".svg": "svg",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".jsonl": "otlp",
    ".otlp": "otlp",
    ".json": "json",
    ".txt": "text",
}


def format_of(path: Path | None, default: str = "text") -> str:
    """The format that a file's name asks for."""
    name = path.name.lower() if path else ""
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), default)


def to_stdout(write: Callable[[TextIO], object]) -> int:
    """Call `write` with stdout; the exit status."""
    # Whoever reads may stop reading: `trace show | head` is no error.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        write(sys.stdout)
        sys.stdout.flush()
        return 0
    # What is still buffered must not be tried again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def write_file(path: Path, content: bytes) -> None:
    """Replace a file, or write into what is none (/dev/stdout, a named pipe). Raises StoreError.

    Under sudo a new file belongs to who called sudo; one that was there stays its owner's.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(path, content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    print(f"{path}: {len(content):,} bytes", file=sys.stderr)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # What lies there already is nobody's that we would follow: the directory may be another user's.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            if (owner := _owner(path)) is not None:
                os.fchown(file.fileno(), *owner)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _owner(path: Path) -> tuple[int, int] | None:
    """Whose the file shall be; None where it is ours anyway."""
    if os.geteuid() != 0:
        return None
    if path.is_file():
        there = path.stat()
        return there.st_uid, there.st_gid
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    return (int(uid), int(gid)) if uid.isdecimal() and gid.isdecimal() else None
