"""All that is promised of starts, in one run: docs/performance.md, with its JSON and its picture.

`nox -s bench -- --all` runs it (root, a quiet machine, some ten minutes; `--rounds 2` to try it). Everything takes
turns with everything else, because machines are shared and noisy; what counts are ratios of medians of one run. Beside
us stand a stock boot of the same kernel, and runc under the same containerd.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench import crowd, report
from bench.report import Row
from bench.start import first_output, stock_boot, take_turns, tuned_boot
from support import processes
from support import start_paths as paths
from support.containerd import IMAGE, Containerd, make_image, missing, running, write_shim
from support.start_paths import Contestant

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = 240
_STOCK, _TUNED = "stock boot", "boot with a sandbox's own parameters"
_CTR = {path: f"ctr run, {path}" for path in ("runc", "cold", "template", "pool")}
_EXEC = {who: f"ctr tasks exec, {who}" for who in ("runc", "kata")}
_ECHO = {who: f"8 bytes there and back, {who}" for who in ("runc", "kata")}
_ECHOES = 200
# Runs the shim and notes how long containerd waited for the answer to `start`, in ns.
_TIMED = """#!/bin/sh
export KATA_CONF_FILE={config} KATA_POOL={pool}
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


class Living(NamedTuple):
    """A container that sleeps, and one that echoes."""

    who: str
    name: str
    cat: "subprocess.Popen[bytes]"


def main() -> int:
    """Write the document and say what misses its target; the exit code says only whether all could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clones", type=int, default=20, help="how many live at once where memory is measured")
    parser.add_argument("--starts", type=int, default=50, help="how many start, five at a time")
    parser.add_argument("--output", type=Path, default=_ROOT / "docs", help="where performance.md, .json, .svg go")
    options = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    begin = time.monotonic()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as name:
        samples, crowded = _measure(Path(name), options)
    rows = _rows(samples) + crowded.rows(samples["template"])
    told = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty"),
        "machine": f"{os.cpu_count()} CPUs, {_cpu()}, Linux {platform.release()}",
        "load_before": round(load, 2),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "rounds": options.rounds,
        "samples": samples,
        "crowd": crowded._asdict(),
    }
    report.write(options.output, told, rows)
    print(report.table(rows))
    return 0


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _measure(scratch: Path, options: argparse.Namespace) -> tuple[dict[str, list[float]], crowd.Crowd]:
    """Samples in seconds (memory in MiB), by name."""
    boots = [Contestant(_STOCK, stock_boot(scratch)), Contestant(_TUNED, tuned_boot(scratch))]
    starts = paths.contestants(scratch, first_output)
    command = paths.command(scratch, "template")
    with running(_shims(scratch), make_image(scratch)) as containerd, paths.ready(scratch):
        runs = [Contestant(_CTR[path], _run(containerd, path)) for path in _CTR]
        samples = take_turns(paths.undisturbed([*boots, *starts, *runs]), options.rounds)
        for path in _CTR:
            # The first one warms up.
            samples[f"start, {path}"] = _waits(scratch, path)[1:]
        paths.await_member()
        samples |= _alive(containerd, options.rounds)
        crowded = crowd.measure(command, options.clones, options.starts)
    return samples, crowded


def _shims(scratch: Path) -> Path:
    """A directory for containerd's PATH: runc's shim, and ours by each path, timed."""
    shims = scratch / "shims"
    shims.mkdir()
    kata = shims / "kata-shim"
    write_shim(kata, sys.executable, _ROOT / "tests/support/kata_shim.py")
    for path in _CTR:
        shim = shutil.which("containerd-shim-runc-v2") if path == "runc" else str(kata)
        pool = f"{scratch}/pool.sock" if path == "pool" else "none"
        text = _TIMED.format(shim=shim, record=scratch / f"start.{path}", config=scratch / f"{path}.toml", pool=pool)
        timed = shims / f"containerd-shim-bench{path}-v2"
        timed.write_text(text)
        timed.chmod(0o755)
    return shims


def _waits(scratch: Path, path: str) -> list[float]:
    return [int(line) / 1e9 for line in (scratch / f"start.{path}").read_text().split()]


def _run(containerd: Containerd, path: str) -> Callable[[], float]:
    number = 0

    def measure() -> float:
        nonlocal number
        number += 1
        return _ctr(containerd, "run", "--rm", *_runtime(path), IMAGE, f"{path}{number}", "true")

    return measure


def _runtime(path: str) -> tuple[str, str]:
    return "--runtime", f"io.containerd.bench{path}.v2"


def _ctr(containerd: Containerd, *arguments: str) -> float:
    """Run it; seconds."""
    return containerd.timed(*arguments, timeout=_TIMEOUT)


def _alive(containerd: Containerd, rounds: int) -> dict[str, list[float]]:
    """What is asked of containers that run: exec, an echo, the memory of the shim."""
    with ExitStack() as stack:
        living = [stack.enter_context(_living(containerd, who)) for who in ("runc", "kata")]
        number = iter(range(1 << 20))
        contestants = [Contestant(_EXEC[each.who], _exec(containerd, each, number)) for each in living]
        contestants += [Contestant(_ECHO[each.who], _echo(each)) for each in living]
        samples = take_turns(contestants, 2 * rounds)
        marks = str(containerd.address).encode()
        for each in living:
            pid = processes.find(b"-id\0" + each.name.encode() + b"\0", marks)
            samples[f"PSS of the shim, {each.who}"] = [crowd.pss(pid) / (1 << 20)]
    return samples


@contextmanager
def _living(containerd: Containerd, who: str) -> Iterator[Living]:
    runtime = _runtime("runc" if who == "runc" else "template")
    name = f"live-{who}"
    _ctr(containerd, "run", "--detach", *runtime, IMAGE, name, "sleep", "1000")
    cat = containerd.popen("run", "--rm", *runtime, IMAGE, f"cat-{who}", "cat")
    try:
        yield Living(who, name, cat)
    finally:
        assert cat.stdin is not None
        cat.stdin.close()
        cat.wait(_TIMEOUT)
        containerd.ctr("tasks", "delete", "--force", name, timeout=_TIMEOUT, check=False)


def _exec(containerd: Containerd, each: Living, number: Iterator[int]) -> Callable[[], float]:
    return lambda: _ctr(containerd, "tasks", "exec", "--exec-id", f"e{next(number)}", each.name, "true")


def _echo(each: Living) -> Callable[[], float]:
    def measure() -> float:
        assert each.cat.stdin is not None
        assert each.cat.stdout is not None
        taken = []
        for _ in range(_ECHOES):
            begin = time.monotonic()
            os.write(each.cat.stdin.fileno(), b"8 bytes\n")
            seen = b""
            while len(seen) < 8:
                seen += os.read(each.cat.stdout.fileno(), 8)
            taken.append(time.monotonic() - begin)
        return statistics.median(taken)

    return measure


def _rows(samples: dict[str, list[float]]) -> list[Row]:
    def ratio(what: str, mine: str, base: str, target: float | None) -> Row:
        return Row(what, samples[mine], samples[base], target)

    rows = [
        ratio("cold start to first output ÷ stock boot", "cold", _STOCK, 1.3),
        ratio("cold start ÷ a boot with a sandbox's own parameters", "cold", _TUNED, None),
        ratio("template ÷ stock boot", "template", _STOCK, 0.30),
        ratio("pool ÷ stock boot", "pool", _STOCK, 0.10),
        ratio("`ctr run --rm … true`, cold ÷ runc", _CTR["cold"], _CTR["runc"], None),
        ratio("`ctr run --rm … true`, template ÷ runc", _CTR["template"], _CTR["runc"], 9),
        ratio("`ctr run --rm … true`, pool ÷ runc", _CTR["pool"], _CTR["runc"], 4),
        ratio("wait for the shim's `start` ÷ runc's", "start, template", "start, runc", 3),
        ratio("wait for the shim's `start` ÷ runc's, pool", "start, pool", "start, runc", 3),
        ratio("exec ÷ runc exec", _EXEC["kata"], _EXEC["runc"], 3),
        ratio("8 bytes there and back through `ctr` ÷ runc", _ECHO["kata"], _ECHO["runc"], None),
    ]
    rows += [ratio(f"tracing on ÷ off, {path}", traced, path, 1.03) for path, traced in paths.TRACED.items()]
    rows.append(Row("PSS of the shim", samples["PSS of the shim, kata"], None, 35, "MiB"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
