"""`list` and `ps`: the containers here, whoever started them, and the processes in one."""

import argparse
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from kata_common.text import printable
from kata_runtime.engine.life import state_of
from kata_runtime.engine.store import Store
from kata_runtime.errors import SandboxError
from kata_runtime.sandbox import reach

__all__ = ["add_arguments"]


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands and their options."""
    listed = commands.add_parser("list", help="list the containers and their sandboxes")
    listed.add_argument("-q", "--quiet", action="store_true", help="their ids alone")
    _add_format(listed)
    listed.set_defaults(run=lambda options: _show(options, quiet=options.quiet))
    ps = commands.add_parser("ps", help="list the processes of a container, or (without one) what list does")
    _add_format(ps)
    ps.add_argument("container", nargs="?", default="", metavar="CONTAINER", help="container or sandbox")
    ps.set_defaults(run=_ps)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table", help="(default: table)")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")


@dataclass(frozen=True)
class _Entry:
    """A container, by runc's names where it has them."""

    id: str
    pid: int
    status: str
    bundle: str
    created: str
    owner: str
    sandbox: str
    command: list[str]


def _entries(root: str) -> list[_Entry]:
    reach.require_root()
    states = reach.states()
    commands = {entry["id"]: entry["args"] for said in states.values() for entry in said["containers"]}
    store = Store(root)
    found: dict[str, _Entry] = {}
    for name in store.ids():
        try:
            record = store.read(name)
            state = state_of(record)
        except SandboxError:
            continue  # it was removed meanwhile
        pid = record.pid if state["pid"] else 0
        command = commands.get(name, [])
        entry = _Entry(name, pid, str(state["status"]), record.bundle, record.created, "root", record.sandbox, command)
        found[name] = entry
    for sandbox, said in states.items():
        for entry in said["containers"]:
            created = datetime.fromtimestamp(entry["created"] // 1_000_000_000, UTC).isoformat().replace("+00:00", "Z")
            found.setdefault(
                entry["id"],
                _Entry(entry["id"], said["pid"], entry["state"], "", created, "root", sandbox, entry["args"]),
            )
    return [found[name] for name in sorted(found)]


def _show(options: argparse.Namespace, *, quiet: bool = False) -> int:
    entries = _entries(options.root)
    if quiet:
        for entry in entries:
            print(entry.id)
    elif options.format == "json":
        print(json.dumps([asdict(entry) for entry in entries]))
    else:
        rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "SANDBOX", "CREATED", "COMMAND")]
        rows += [
            (e.id, str(e.pid), e.status, "-" if e.sandbox == e.id else e.sandbox, e.created, _shown(e.command))
            for e in entries
        ]
        _table(rows)
    return 0


def _shown(command: list[str]) -> str:
    """A command in a table: one line, escaped, cut."""
    text = printable(" ".join(command).replace("\n", " "))
    return text if len(text) <= 40 else text[:39] + "…"


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _ps(options: argparse.Namespace) -> int:
    if not options.container:
        return _show(options)
    reach.require_root()
    target = reach.find(options.container)
    with reach.Connection.open(target.sandbox) as connection:
        pids = connection.ask({"op": "pids", "container": target.container})["pids"]
    if options.format == "json":
        print(json.dumps(pids))
    else:
        print("PID (in the guest)", *pids, sep="\n")
    return 0
