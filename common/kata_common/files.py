"""Files that several processes use: replaced whole, locked while somebody lives."""

import contextlib
import fcntl
import os
import struct

__all__ = ["Identity", "Lock", "exists", "identify", "is_directory", "is_file", "write_atomically"]

StrPath = str | os.PathLike[str]
Identity = tuple[str, int, int, int, int, int]


def exists(path: StrPath) -> bool:
    """Whether something is there. As the two below for paths that others give: pathlib's raise where one is too long
    for any file, or can't be looked at.
    """
    return os.path.exists(path)


def is_directory(path: StrPath) -> bool:
    """Whether a directory is there."""
    return os.path.isdir(path)


def is_file(path: StrPath) -> bool:
    """Whether a regular file is there."""
    return os.path.isfile(path)


class Lock:
    """A file lock that ends with its holder, however that ends, and that others can look at without disturbing it.

    "Open file description" locks of Linux (fcntl(2)): unlike flock(2) they have a query.
    """

    # struct flock: l_type, l_whence, l_start, l_len, l_pid.
    _LAYOUT = "hhqqi4x"

    def __init__(self, path: StrPath) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Take it without waiting; False where another holds it."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, self._request())
        except (BlockingIOError, PermissionError):
            self.release()
            return False
        return True

    @classmethod
    def await_free(cls, path: StrPath, timeout: float) -> bool:
        """Wait at most `timeout` seconds until nobody holds the lock at `path`; whether that came.

        When a process is killed, the kernel may close its pipes a moment before its locks go.
        """
        import threading  # who only writes files is in a hurry

        def wait() -> None:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, cls._request())
                finally:
                    os.close(fd)

        # fcntl has no timeout; where nobody lets go, the thread is left behind.
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(timeout)
        return not waiting.is_alive()

    def release(self) -> None:
        """Let go; does nothing where it isn't held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @classmethod
    def held(cls, path: StrPath) -> bool:
        """Whether anyone holds the lock at `path`."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, cls._request())
            return int(struct.unpack(cls._LAYOUT, answer)[0]) != fcntl.F_UNLCK
        finally:
            os.close(fd)

    @classmethod
    def _request(cls) -> bytes:
        return struct.pack(cls._LAYOUT, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def identify(path: StrPath, fd: int | None = None) -> Identity:
    """What tells one version of a file from another: name, device, inode, size, times of change (ns). Raises OSError.

    A file that is written anew, or replaced, has another time of change (ctime), and nobody can set that. `fd` is the
    file where it is open already.
    """
    found = os.stat(path if fd is None else fd)
    return (os.fspath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def write_atomically(path: StrPath, content: bytes) -> None:
    """Replace `path` so that a reader sees the old or the new content, never half of one. For root's eyes alone.

    Raises OSError; nothing has changed then.
    """
    directory, name = os.path.split(os.fspath(path))
    # The process in the name: an exporter and a push of another process may meet.
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
