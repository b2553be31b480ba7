"""Where agents come from, and which sandbox each connection is: by the socket it came to, or by its context id.

Hybrid vsock (Firecracker's convention, as Kata uses it): what a guest connects to on port N of the host comes to the
unix socket `<path>_N`, for which somebody has to listen. `<path>` may have `{ID}` in one of its parts; then a socket is
made for each sandbox that appears (inotify tells), and goes with it.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from kata_common.ids import is_id
from kata_traces.forwarder.inbox import Origin
from kata_traces.store.announce import Announcement

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify

__all__ = ["HybridSource", "ListenError", "SourceError", "Template", "VsockSource"]

_log = logging.getLogger("kata.forwarder")

Accept = Callable[[socket.socket, Origin], None]

BACKLOG: Final = 16
_MARK: Final = "{ID}"


class SourceError(ValueError):
    """A path or address that can't be listened at; says what it should be."""


class ListenError(OSError):
    """Nothing can be listened at."""


@dataclass(frozen=True, slots=True)
class Template:
    """`base` is a directory; `parts` are what follows, of which one has the `{ID}` (or none does)."""

    base: Path
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises SourceError."""
        path = Path(text)
        if not path.is_absolute() or path.name in ("", "..") or ".." in path.parts:
            raise SourceError(f"--socket-path {text!r} is no absolute path of a socket")
        marked = [index for index, part in enumerate(path.parts) if _MARK in part]
        if len(marked) > 1 or text.count(_MARK) > 1:
            raise SourceError(f"--socket-path {text!r} has {_MARK} more than once")
        first = marked[0] if marked else len(path.parts) - 1
        return cls(Path(*path.parts[:first]), path.parts[first:])

    def id_of(self, level: int, name: str) -> str | None:
        """The sandbox's id in `name`, an entry at that level; "" where that has none, None where it doesn't fit."""
        before, mark, after = self.parts[level].partition(_MARK)
        if not mark:
            return "" if name == before else None
        if not (name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)):
            return None
        found = name[len(before) : len(name) - len(after)]
        return found if is_id(found) else None


@dataclass(slots=True)
class _Place:
    """A directory that is watched: its level in the template, the sandbox's id as far as it is known, and the topmost
    directory of that sandbox.
    """

    level: int
    sandbox_id: str
    top: Path


class HybridSource:
    """Listens for port `port` at `template`, until `run` is cancelled. `changed` tells that a socket came or went."""

    def __init__(self, template: Template, port: int, accept: Accept, changed: Callable[[], None]) -> None:
        self._template = template
        self._port = port
        self._accept = accept
        self._changed = changed
        self._inotify: Inotify | None = None
        self._places: dict[Path, _Place] = {}
        self._listeners: dict[Path, socket.socket] = {}

    @property
    def sockets(self) -> list[Path]:
        """Where it listens now."""
        return list(self._listeners)

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Raises ListenError where the directory of the sandboxes can't be watched."""
        from asyncinotify import Inotify

        with Inotify() as inotify:
            self._inotify = inotify
            try:
                self._begin()
                ready()
                async for event in inotify:
                    self._happened(event)
            finally:
                for path in list(self._listeners):
                    self._close(path, unlink=True)

    def _begin(self) -> None:
        base = self._template.base
        try:
            # The runtime makes it with its first sandbox, in the same way.
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ListenError(error.errno, f"{base}: {error.strerror}") from error
        self._enter(base, _Place(0, "", base))
        if base not in self._places:
            raise ListenError(errno.EACCES, f"{base} can't be watched")

    def _enter(self, path: Path, place: _Place) -> None:
        """Watch a directory, then look at what is in it: nothing that comes meanwhile is missed."""
        from asyncinotify import Mask

        assert self._inotify is not None
        if path in self._places:
            return
        try:
            self._inotify.add_watch(path, Mask.CREATE | Mask.MOVED_TO | Mask.DELETE | Mask.MOVE_SELF | Mask.ONLYDIR)
            self._places[path] = place
            names = [entry.name for entry in path.iterdir()]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                _log.error("%s can't be watched: %s", path, error.strerror)
            return
        if place.level == len(self._template.parts) - 1 and _MARK not in self._template.parts[-1]:
            self._listen(path / self._template.parts[-1], place.sandbox_id or _plain_id(path), place.top)
            return
        for name in names:
            self._seen(path, name)

    def _seen(self, directory: Path, name: str) -> None:
        place = self._places[directory]
        found = self._template.id_of(place.level, name)
        if found is None:
            return
        path = directory / name
        sandbox_id = place.sandbox_id or found
        if place.level < len(self._template.parts) - 1:
            self._enter(path, _Place(place.level + 1, sandbox_id, path if found else place.top))
        else:
            # The hypervisor's own socket tells that there is a sandbox.
            with contextlib.suppress(OSError):
                if found and stat.S_ISSOCK(path.lstat().st_mode):
                    self._listen(path, found, path)

    def _happened(self, event: "Event") -> None:
        from asyncinotify import Mask

        if event.mask & Mask.Q_OVERFLOW:
            self._look_again()
            return
        watched = event.watch.path if event.watch else None
        if watched is None or Path(watched) not in self._places:
            return
        directory = Path(watched)
        if event.mask & (Mask.IGNORED | Mask.MOVE_SELF):
            self._leave(directory)
        elif event.name is not None and event.mask & (Mask.CREATE | Mask.MOVED_TO):
            self._seen(directory, str(event.name))
        elif event.name is not None and event.mask & Mask.DELETE:
            # A directory tells of its own end only when nobody has it any more, and our listener has it.
            self._leave(directory / str(event.name))

    def _look_again(self) -> None:
        """More happened than the kernel kept."""
        for path in list(self._places):
            if not path.is_dir():
                self._leave(path)
        for path in list(self._places):
            with contextlib.suppress(OSError):
                for entry in list(path.iterdir()):
                    self._seen(path, entry.name)

    def _leave(self, gone: Path) -> None:
        """A directory or a hypervisor's socket is no longer there, nor what was below it."""
        for place in [place for place in self._places if place == gone or gone in place.parents]:
            del self._places[place]
        for path in [path for path in self._listeners if path == gone or gone in path.parents]:
            self._close(path, unlink=path == gone)
        if gone == self._template.base:
            self._begin()

    def _listen(self, path: Path, sandbox_id: str, top: Path) -> None:
        if path in self._listeners:
            return
        try:
            listener = _bound(path.parent, f"{path.name}_{self._port}")
        except OSError as error:
            _log.error("nothing can be listened at %s_%d: %s", path, self._port, error.strerror or error)
            return
        self._listeners[path] = listener

        def ready() -> None:
            with contextlib.suppress(OSError):  # it is gone already, or descriptors ran out
                stream, _ = listener.accept()
                stream.setblocking(False)
                # Now, not before: the runtime has announced the sandbox by the time its agent connects.
                self._accept(stream, Origin(sandbox_id, top, Announcement.read(top)))

        asyncio.get_running_loop().add_reader(listener, ready)
        _log.info("listening", extra={"sandbox": sandbox_id, "socket": f"{path}_{self._port}"})
        self._changed()

    def _close(self, path: Path, *, unlink: bool) -> None:
        listener = self._listeners.pop(path, None)
        if listener is None:
            return
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()
        if unlink:
            Path(f"{path}_{self._port}").unlink(missing_ok=True)
        self._changed()


def _plain_id(directory: Path) -> str:
    """A name for the only sandbox of a path without `{ID}`: that of its directory, as Kata has them."""
    return directory.name if is_id(directory.name) else "sandbox"


def _bound(directory: Path, name: str) -> socket.socket:
    """A listening socket. Its group is the directory's where that is set-group-id, and may connect."""
    # By the directory's descriptor: sun_path holds 107 bytes, and ids may be long.
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    address = f"/proc/self/fd/{parent}/{name}"
    try:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _answers(address):
                raise
            Path(address).unlink()  # of a forwarder that was killed
            listener.bind(address)
        Path(address).chmod(0o660)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(parent)
    return listener


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


class VsockSource:
    """The host's vsock port (kernel's vhost-vsock). A peer is the sandbox that announced its context id."""

    def __init__(self, cid: int, port: int, run_dir: Path, accept: Accept) -> None:
        self._address = (cid, port)
        self._run_dir = run_dir
        self._accept = accept
        # Of context ids that were asked for: a directory that said so last time.
        self._directories: dict[int, Path] = {}
        self._strangers = 0

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Raises ListenError."""
        try:
            listener = self._listener()
        except OSError as error:
            cid, port = self._address
            raise ListenError(error.errno, f"vsock port {port} of context id {cid}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        with listener:
            ready()
            while True:
                try:
                    stream, address = await loop.sock_accept(listener)
                except OSError as error:
                    _log.warning("a connection could not be accepted: %s", error)
                    await asyncio.sleep(1)  # as long as descriptors are short, nothing tells when they no longer are
                    continue
                cid = self._cid(address)
                origin = self.find(cid)
                if origin is None:
                    self._strange(cid)
                    stream.close()
                    continue
                stream.setblocking(False)
                self._accept(stream, origin)

    def find(self, cid: int) -> Origin | None:
        """The sandbox that has a context id, by the announcements of the runtimes."""
        known = self._directories.get(cid)
        candidates = [known] if known else []
        with contextlib.suppress(OSError):
            candidates += [path for path in self._run_dir.iterdir() if path != known]
        for directory in candidates:
            said = Announcement.read(directory)
            if said and said.cid == cid and cid:
                self._directories[cid] = directory
                return Origin(said.sandbox_id, directory, said)
        self._directories.pop(cid, None)
        return None

    def _strange(self, cid: int) -> None:
        self._strangers += 1
        if self._strangers <= 10:
            _log.warning("context id %d is refused: no sandbox below %s has announced it", cid, self._run_dir)

    # Two seams, so that all but AF_VSOCK itself can be tested where there is none.

    def _listener(self) -> socket.socket:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(self._address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def _cid(self, address: object) -> int:
        return int(address[0]) if isinstance(address, tuple) else 0
