"""What the commands of an OCI runtime remember of a container between two calls: `ROOT/<id>/state.json`."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kata_common.documents import parse_json
from kata_common.files import write_atomically
from kata_runtime.errors import HostError, SandboxError
from kata_runtime.sandbox.state import valid_id

__all__ = ["DEFAULT_ROOT", "Record", "Store"]

DEFAULT_ROOT = "/run/kata-runtime"
_STATE = "state.json"


@dataclass(frozen=True)
class Record:
    """A container. `pid` is the process that stands for it, `began` its start in ticks since boot, by which it is known
    again; `address` is the shim's, `created` RFC 3339."""

    id: str
    bundle: str
    rootfs: str = ""
    sandbox: str = ""
    address: str = ""
    pid: int = 0
    began: int = 0
    created: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> bool:
        """Whether the sandbox is its own."""
        return self.sandbox == self.id

    @property
    def stands(self) -> bool:
        """Whether the process that stands for it is there."""
        return self.pid > 0 and began(self.pid) == self.began


def began(pid: int) -> int:
    """When a process began, in ticks since boot; 0 for one that is not there, or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


class Store:
    """The containers of one root."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).absolute()

    def _place(self, container_id: str) -> Path:
        return self.root / valid_id(container_id)

    def reserve(self, record: Record) -> None:
        """Take an id.

        Raises:
            SandboxError: it is taken, or is none.
            HostError: the directory can't be made.
        """
        place = self._place(record.id)
        try:
            self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
            place.mkdir(mode=0o700)
        except FileExistsError:
            raise SandboxError(
                f"container {record.id} exists already", hint=f"kata-runtime delete {record.id}, or another id"
            ) from None
        except OSError as error:
            raise HostError(f"{place}: {error.strerror}", hint="--root DIR, and are you root?") from error
        self.write(record)

    def write(self, record: Record) -> None:
        """Remember it."""
        write_atomically(self._place(record.id) / _STATE, json.dumps(asdict(record)).encode())

    def read(self, container_id: str) -> Record:
        """What is known of a container.

        Raises:
            SandboxError: nothing.
        """
        path = self._place(container_id) / _STATE
        try:
            return Record(**parse_json(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            known = ", ".join(list(self.ids())[:10]) or "none"
            raise SandboxError(
                f"container {container_id!r} does not exist in {self.root}", hint=f"there: {known}"
            ) from error

    def ids(self) -> list[str]:
        """All containers, in the order of their names."""
        try:
            return sorted(path.parent.name for path in self.root.glob(f"*/{_STATE}"))
        except OSError:
            return []

    def forget(self, container_id: str) -> None:
        """Let go of the id."""
        shutil.rmtree(self._place(container_id), ignore_errors=True)
