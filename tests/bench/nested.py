"""What `nox -s nested -- --bench` runs in L1: a cold start under nested KVM, and both ways of vsock.

- Command to first output of `kata-runtime run`, beside the bare boots of tests/bench/start.py, in turn.
- A gRPC round trip and stdio through the kernel's vhost-vsock and through our vhost-user backend, in turn, with two VMs
  that run at the same time.

All of it is emulated, so only ratios mean something.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import start
from kata_runtime.guest.agent import AgentClient
from support.kata import Kata
from support.running import Running

OUTPUT = Path("artifacts/bench-nested.json")
_CALLS = 30
_MEBIBYTES = 8
_TIMEOUT = 300


def main() -> int:
    """Print tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        ways = _compare_ways(Path(scratch), options.rounds)
        starts = _compare_starts(Path(scratch), options.rounds)
    OUTPUT.write_text(json.dumps({"starts": starts, "ways": ways}, indent=1))
    return 0


def _kata(directory: Path) -> Kata:
    directory.mkdir(parents=True, exist_ok=True)
    return Kata(directory).configure("agent.kata", dial_timeout=_TIMEOUT, health_check_request_timeout_ms=120_000)


def _compare_starts(scratch: Path, rounds: int) -> dict[str, list[float]]:
    kata = _kata(scratch / "start")
    contestants = [
        start.Contestant("bare boot, stock", start.stock_boot(scratch)),
        start.Contestant("bare boot, tuned", start.tuned_boot(scratch)),
        start.Contestant("kata-runtime run", lambda: start.first_output(kata.command("run"))),
    ]
    samples = start.take_turns(contestants, rounds)
    _table("command to first output, nested KVM", "s", samples)
    return samples


def _compare_ways(scratch: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """The backend's VM starts while the kernel's module is away: then it is what the runtime uses."""
    subprocess.run(["modprobe", "--remove", "vhost_vsock"], check=True)
    with Running.shell(_kata(scratch / "backend"), "bench-backend") as backend:
        subprocess.run(["modprobe", "vhost_vsock"], check=True)
        with Running.shell(_kata(scratch / "kernel"), "bench-kernel") as kernel:
            assert kernel.cid
            sandboxes = {"vhost-user backend": backend, "kernel vhost-vsock": kernel}
            found: dict[str, dict[str, list[float]]] = {}
            for what, unit, measure in (
                ("gRPC round trip", "ms", _round_trips),
                ("stdout of a container", "MB/s", _throughput),
            ):
                found[what] = {name: [] for name in sandboxes}
                for _ in range(rounds):
                    for name, sandbox in sandboxes.items():
                        found[what][name] += measure(sandbox)
                _table(what, unit, found[what])
    return found


def _round_trips(sandbox: Running) -> list[float]:
    async def call() -> list[float]:
        times = []
        async with AgentClient.connected(f"unix:/run/kata/{sandbox.name}/agent.sock") as agent:
            await agent.check(timeout=60)  # connects
            for _ in range(_CALLS):
                begin = time.monotonic()
                await agent.check(timeout=60)
                times.append((time.monotonic() - begin) * 1e3)
        return times

    return asyncio.run(call())


def _throughput(sandbox: Running) -> list[float]:
    size = _MEBIBYTES << 20
    begin = time.monotonic()
    assert len(sandbox(f"head -c {size} /dev/zero; echo")) == size + 1
    return [size / 1e6 / (time.monotonic() - begin)]


def _table(what: str, unit: str, samples: dict[str, list[float]]) -> None:
    """Medians, and each as a ratio to the first row's."""
    print(f"{what} ({unit})", flush=True)
    base = statistics.median(next(iter(samples.values())))
    for name, values in samples.items():
        median = statistics.median(values)
        spread = f"{median:9.3f}  {min(values):9.3f} to {max(values):9.3f}"
        print(f"  {name:22} {spread}   {median / base:6.2f} times   ({len(values)} samples)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
