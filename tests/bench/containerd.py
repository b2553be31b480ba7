"""Containers of containerd with us beside runc: whole runs, the wait for `start`, exec, memory of the shim.

`nox -s bench -- --containerd` runs it (root), with a containerd of its own. Both runtimes take turns in one run,
because these machines are shared and noisy; absolute times are printed, not judged. What is judged: the shim's memory
(PSS, idle after the start of a container, with tracing and without).
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import processes
from support.containerd import IMAGE, Containerd, make_image, missing, running, write_shim

__all__ = ["main"]

_RUNTIMES = {"runc": "io.containerd.runc.v2", "kata": "io.containerd.kata.v2"}
_TIMEOUT = 240
# Runs the shim and notes how long containerd waited for the answer to `start`, in ns.
_TIMED = """#!/bin/sh
case "$*" in
*start) ;;
*) exec {shim} "$@" ;;
esac
begin=$(date +%s%N)
{shim} "$@"
status=$?
echo $(($(date +%s%N) - begin)) >> {record}
exit $status
"""
_CONFIGURATION = (
    '[runtime]\ntrace_dir = "{directory}/traces"\nenable_tracing = {on}\n[agent.kata]\nenable_tracing = {on}\n'
)


def main() -> int:
    """Print a table and write it as JSON; the exit code says whether the limit was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pss", type=float, default=45, help="limit of the shim's memory, MiB")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench-containerd.json"))
    options = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as name:
        result = _measure(Path(name), options.rounds)
    for what, samples in result.items():
        unit = "MiB" if what.startswith("PSS") else "ms"
        print(f"{what}:")
        for who, values in samples.items():
            print(f"  {who:12} {statistics.median(values):8.1f} {unit}  ({min(values):.1f} to {max(values):.1f})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    ours = result["PSS of the shim"]
    worst = max(statistics.median(values) for who, values in ours.items() if who.startswith("kata"))
    print(f"the shim takes {worst:.1f} MiB at most (limit {options.pss:g})")
    return 0 if worst <= options.pss else 1


def _measure(scratch: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Samples in ms, of memory in MiB; by what and by whom."""
    configuration = scratch / "configuration.toml"
    configuration.write_text(_CONFIGURATION.format(directory=scratch, on="false"))
    os.environ["KATA_CONF_FILE"] = str(configuration)
    runs: dict[str, list[float]] = {name: [] for name in _RUNTIMES}
    execs: dict[str, list[float]] = {name: [] for name in _RUNTIMES}
    memory: dict[str, list[float]] = {}
    with running(_shims(scratch), make_image(scratch)) as containerd:
        for number in range(rounds + 1):  # the first one warms the page cache
            for name, runtime in _RUNTIMES.items():
                taken = _ctr(containerd, "run", "--rm", "--runtime", runtime, IMAGE, f"{name}{number}", "true")
                runs[name] += [taken] if number else []
            print(f"run {number} of {rounds}", file=sys.stderr)
        starts = {name: _waits(scratch, name)[1:] for name in _RUNTIMES}
        with _living(containerd, "live"):
            memory |= {name: [_pss(_shim(containerd, f"live-{name}"))] for name in _RUNTIMES}
            for number in range(2 * rounds + 1):
                for name in _RUNTIMES:
                    taken = _ctr(containerd, "tasks", "exec", "--exec-id", f"e{number}", f"live-{name}", "true")
                    execs[name] += [taken] if number else []
        configuration.write_text(_CONFIGURATION.format(directory=scratch, on="true"))
        with _living(containerd, "traced"):
            memory["kata, traced"] = [_pss(_shim(containerd, "traced-kata"))]
    return {
        "ctr run --rm … true": runs,
        "what containerd waits for `start`": starts,
        "ctr tasks exec … true": execs,
        "PSS of the shim": memory,
    }


def _shims(scratch: Path) -> Path:
    """A directory for containerd's PATH: both shims, timed."""
    shims = scratch / "shims"
    shims.mkdir()
    kata = shims / "kata-shim"
    write_shim(kata, sys.executable, Path(__file__).parent.parent / "support/kata_shim.py")
    for name, shim in (("kata", str(kata)), ("runc", shutil.which("containerd-shim-runc-v2"))):
        timed = shims / f"containerd-shim-{name}-v2"
        timed.write_text(_TIMED.format(shim=shim, record=scratch / f"start.{name}"))
        timed.chmod(0o755)
    return shims


def _waits(scratch: Path, name: str) -> list[float]:
    return [int(line) / 1e6 for line in (scratch / f"start.{name}").read_text().split()]


@contextmanager
def _living(containerd: Containerd, prefix: str) -> Iterator[None]:
    """A container of each runtime that sleeps."""
    with ExitStack() as stack:
        for name, runtime in _RUNTIMES.items():
            container = f"{prefix}-{name}"
            _ctr(containerd, "run", "--detach", "--runtime", runtime, IMAGE, container, "sleep", "1000")
            stack.callback(containerd.ctr, "tasks", "delete", "--force", container, timeout=_TIMEOUT, check=False)
        yield


def _ctr(containerd: Containerd, *arguments: str) -> float:
    """Run it; milliseconds."""
    return containerd.timed(*arguments, timeout=_TIMEOUT) * 1e3


def _shim(containerd: Containerd, name: str) -> int:
    """The daemon of this container. runc's shim leaves no file with its process id."""
    return processes.find(b"-id\0" + name.encode() + b"\0", str(containerd.address).encode())


def _pss(pid: int) -> float:
    """Memory of a process in MiB, what it shares by share (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"the kernel does not tell the memory of process {pid}")


if __name__ == "__main__":
    sys.exit(main())
