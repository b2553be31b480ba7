"""Writes what is to be installed and keeps a record of it, by which it is taken away again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from kata_common.documents import parse_json
from kata_runtime.errors import HostError
from kata_runtime.install import containerd
from kata_runtime.install.items import Item
from kata_runtime.install.tree import Tree

__all__ = ["RECORD", "Installer", "Record"]

RECORD = "/var/lib/kata-containers/install.json"
_HINT = "remove it, or say --force"


@dataclass
class Record:
    """What an installation has written: of each path its state then, directories in the order of their making."""

    version: str = ""
    items: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    containerd: bool = False

    @classmethod
    def of(cls, tree: Tree) -> Self:
        """That of `tree`; an empty one where nothing is installed.

        Raises:
            HostError: it can't be read.
        """
        text = tree.read(RECORD)
        if text is None:
            return cls()
        try:
            return cls(**parse_json(text))
        except (ValueError, TypeError) as error:
            raise HostError(f"{RECORD} is no record of an installation: {error}", hint="remove it") from error


class Installer:
    """Changes `tree`, or with `dry_run` only says how; `say` gets a line for each step."""

    def __init__(self, tree: Tree, say: Callable[[str], None], *, dry_run: bool, version: str) -> None:
        self._tree = tree
        self._say = say
        self._dry_run = dry_run
        self.record = Record.of(tree)
        self._version = version

    def install(self, items: Sequence[Item], *, force: bool = False) -> None:
        """Write them, and remove what an earlier installation had and this one has not.

        Raises:
            HostError: something is there that is not ours; nothing has been changed then, unless `force`.
        """
        foreign = [item.path for item in items if not force and self._is_foreign(item)]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise HostError(f"{foreign[0]}{more} is there and not of an installation of ours", hint=_HINT)
        self.record.version = self._version
        for item in items:
            self._put(item)
        wanted = {item.path for item in items}
        for path in [path for path in self.record.items if path not in wanted and path != containerd.DROP_IN]:
            self._take(path)
        self._save()

    def _is_foreign(self, item: Item) -> bool:
        state = self._tree.state(item.path)
        return not item.settings and state not in (None, item.state, self.record.items.get(item.path))

    def _put(self, item: Item) -> None:
        state = self._tree.state(item.path)
        if state == item.state:
            self._say(f"is there   {item.path}")
            # Whoever else wrote the same keeps it.
            if item.path in self.record.items or not item.settings:
                self.record.items[item.path] = state
            return
        if item.settings and state is not None and state != self.record.items.get(item.path):
            self._say(f"kept       {item.path}: yours")
            return
        self._say(f"{'wrote' if state is None else 'renewed':10} {item.path}{f' -> {item.link}' if item.link else ''}")
        self._write(item.path, item.content, item.link)
        self.record.items[item.path] = item.state
        # Whatever ends us, what was written can be taken away.
        self._save()

    def _write(self, path: str, content: bytes, link: str = "") -> None:
        if not self._dry_run:
            self._tree.write(path, content, link, self._made)

    def _made(self, directory: str) -> None:
        self.record.directories.append(directory)

    def _take(self, path: str) -> None:
        recorded = self.record.items.pop(path)
        state = self._tree.state(path)
        if state is None:
            return
        if state != recorded:
            self._say(f"kept       {path}: changed since")
            return
        self._say(f"removed    {path}")
        if not self._dry_run:
            self._tree.remove(path)

    def check_containerd(self) -> None:
        """Raise HostError where `configure_containerd` would."""
        containerd.change(self._tree.read(containerd.CONFIG))

    def configure_containerd(self) -> None:
        """Tell containerd of the runtime `kata`.

        Raises:
            HostError: its configuration can't have it.
        """
        before = self._tree.read(containerd.CONFIG)
        change = containerd.change(before)
        if change.config is not None and change.config != before:
            self._say(f"{'wrote' if before is None else 'changed':10} {containerd.CONFIG}: the runtime kata")
            self._write(containerd.CONFIG, change.config.encode())
        else:
            self._say(f"is there   {containerd.CONFIG}")
        self.record.containerd = True
        if change.drop_in:
            self._put(Item(containerd.DROP_IN, change.drop_in.encode()))
        self._save()

    def _save(self) -> None:
        known = len(self.record.directories)
        self._write(RECORD, json.dumps(asdict(self.record), indent=1).encode())
        if len(self.record.directories) > known:  # made for itself
            self._write(RECORD, json.dumps(asdict(self.record), indent=1).encode())

    def uninstall(self) -> None:
        """Remove what was installed and nobody has changed since.

        Raises:
            HostError: nothing is installed.
        """
        if not self.record.version:
            raise HostError("nothing is installed", hint=f"{self._tree.root} has no {RECORD}")
        if self.record.containerd:
            self._forget_containerd()
        for path in reversed(list(self.record.items)):
            self._take(path)
        self._say(f"removed    {RECORD}")
        if not self._dry_run:
            self._tree.remove(RECORD)
            for directory in reversed(self.record.directories):
                self._tree.remove_directory(directory)

    def _forget_containerd(self) -> None:
        before = self._tree.read(containerd.CONFIG)
        after = containerd.undo(before) if before is not None else None
        if after == before or after is None:
            return
        if after:
            self._say(f"changed    {containerd.CONFIG}: without the runtime kata")
            self._write(containerd.CONFIG, after.encode())
        else:
            self._say(f"removed    {containerd.CONFIG}")
            if not self._dry_run:
                self._tree.remove(containerd.CONFIG)
