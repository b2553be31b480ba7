"""The ways a sandbox starts, to be compared: cold, from a template, from the pool; each plain and traced."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["COLD", "TRACED", "Contestant", "await_member", "command", "contestants", "ready", "undisturbed"]

COLD: Final = "cold"
TRACED: Final = {path: f"{path}, traced" for path in (COLD, "template", "pool")}
_RUNTIME: Final = str(Path(sys.executable).with_name("kata-runtime"))
# How many members of the pool may be needed before they can be replaced.
_MEMBERS: Final = 1
_PATIENCE: Final = 120


class Contestant(NamedTuple):
    """`measure()` runs one round and returns seconds."""

    name: str
    measure: Callable[[], float]


def contestants(scratch: Path, first_output: Callable[[list[str]], float]) -> list[Contestant]:
    """Each by a configuration of its own in `scratch`; `first_output` measures a `kata-runtime run`."""
    found = []
    for path, traced in TRACED.items():
        config = scratch / f"{path}.toml"
        config.write_text(
            f'[runtime]\ntrace_dir = "{scratch}/traces"\n[factory]\nenable_template = {str(path != COLD).lower()}\n'
            f'template_path = "{_templates()}"\ntemplate_on_demand = false\n'
            f'vm_cache_number = {_MEMBERS if path == "pool" else 0}\nvm_cache_endpoint = "{scratch}/pool.sock"\n'
        )
        for name, options in ((path, []), (traced, ["--trace"])):
            argv = [*command(scratch, path), *options]
            found.append(Contestant(name, partial(first_output, argv)))
    return found


def command(scratch: Path, path: str) -> list[str]:
    """`kata-runtime run` by a path whose configuration `contestants` has written."""
    return [_RUNTIME, "--config", str(scratch / f"{path}.toml"), "run"]


def undisturbed(contestants: Iterable[Contestant]) -> list[Contestant]:
    """The same, each begun when a member of the pool waits: one in the making would run beside whoever is next."""

    def measure(contestant: Contestant) -> float:
        await_member()
        return contestant.measure()

    return [Contestant(contestant.name, partial(measure, contestant)) for contestant in contestants]


@contextmanager
def ready(scratch: Path) -> Iterator[None]:
    """A template, and a pool that serves, for the block."""
    config = ["--config", str(scratch / "pool.toml")]
    subprocess.run([_RUNTIME, *config, "factory", "init"], check=True, stderr=subprocess.DEVNULL)
    with subprocess.Popen([_RUNTIME, *config, "factory", "serve"], stderr=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(_PATIENCE)
            subprocess.run([_RUNTIME, *config, "factory", "destroy"], check=True)


def _templates() -> str:
    return f"/dev/shm/kata-bench-{os.getpid()}"


def await_member() -> None:
    """Wait until a member of the pool waits. What is measured does not include that, nor runs beside it."""
    end = time.monotonic() + _PATIENCE
    while not any(_waits(path) for path in Path("/run/kata").glob("pool-*")):
        if time.monotonic() > end:
            raise SystemExit("no member of the pool gets ready")
        time.sleep(0.1)


def _waits(directory: Path) -> bool:
    """A member runs at a start's own pace when it is ready."""
    try:
        return os.getpriority(os.PRIO_PROCESS, int(directory.name.removeprefix("pool-"))) == 0
    except (ProcessLookupError, ValueError):
        return False
