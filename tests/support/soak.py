"""`nox -s soak`: one sandbox, a container after the other created, started, entered and deleted, and what grows by it.

`cycles` is the short form, a test of the vm suite. By hand: `-- --cycles 500 --minutes 30 --svg docs/soak.svg`.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from kata_common.places import LAYERS_DIR, RUN_DIR
from kata_protos.containerd import task_pb2 as task
from support import processes
from support.curves import curves
from support.shim_process import Shim, running_shim

__all__ = ["Sample", "grown", "soak"]

NAME = "pod-of-its-own"
# A first few make caches, pools of memory and byte code.
WARM = 4


@dataclass(frozen=True)
class Sample:
    """After a cycle: what it took (s), and how much there is of everything.

    `memory` in MiB, of what is the processes' own; `guest` in MiB, what the guest's kernel calls used without caches.
    """

    cycle: int
    seconds: float
    memory: float
    guest: float
    descriptors: int
    processes: int
    mounts: int
    cgroups: int
    interfaces: int
    files: int


def look(number: int, seconds: float, guest: float, pids: Sequence[int]) -> Sample:
    """What there is of the sandbox now; `pids` are its processes, the shim's first."""
    alive = [pid for pid in pids if Path(f"/proc/{pid}/status").exists()]
    mounts = Path(f"/proc/{pids[0]}/mountinfo").read_text().splitlines()
    return Sample(
        cycle=number,
        seconds=seconds,
        # The emulator's translations and the guest's own memory are in QEMU's: the guest is asked itself.
        memory=sum(processes.memory(pid) for pid in alive if "qemu" not in _program(pid)) / (1 << 20),
        guest=guest,
        descriptors=sum(processes.descriptors(pid) for pid in alive),
        processes=len(alive),
        mounts=sum(NAME in line for line in mounts),
        cgroups=sum(NAME in name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names),
        interfaces=len(Path(f"/proc/{pids[0]}/net/dev").read_text().splitlines()) - 2,
        files=sum(len(names) for root in (RUN_DIR, LAYERS_DIR) for _, _, names in os.walk(f"{root}/{NAME}")),
    )


def _program(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def family(shim: int) -> list[int]:
    """The shim and its helpers."""
    return [shim, *processes.children(shim).values()]


class Load:
    """What is done to one sandbox."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._number = 0

    async def cycle(self) -> float:
        """A container from its creation to its deletion, with a process beside; seconds."""
        self._number += 1
        name = f"c{self._number}"
        begun = time.monotonic()
        await self._shim.run(name, "while :; do sleep 1000; done")
        await self.enter(name, "exit 0")
        await self._shim.task("Kill", task.KillRequest(id=name, signal=9), Empty)
        ended = await self._shim.task("Wait", task.WaitRequest(id=name), task.WaitResponse)
        assert ended.exit_status == 137
        await self._shim.task("Delete", task.DeleteRequest(id=name), task.DeleteResponse)
        return time.monotonic() - begun

    async def enter(self, name: str, script: str, *, exec_id: str = "e", output: str = "") -> None:
        """A process in a container, to its end."""
        process = {"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"]}
        kind = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        spec = AnyMessage(type_url=kind, value=json.dumps(process).encode())
        names: dict[str, Any] = {"id": name, "exec_id": exec_id}
        request = task.ExecProcessRequest(**names, spec=spec, stdout=output and f"file://{output}")
        await self._shim.task("Exec", request, Empty)
        await self._shim.task("Start", task.StartRequest(**names), task.StartResponse)
        ended = await self._shim.task("Wait", task.WaitRequest(**names), task.WaitResponse)
        assert ended.exit_status == 0
        await self._shim.task("Delete", task.DeleteRequest(**names), task.DeleteResponse)

    async def guest_memory(self, standing: str) -> float:
        """MiB that the guest uses, as it says itself in a container that stands."""
        path = self._shim.directory / "meminfo"
        path.unlink(missing_ok=True)
        await self.enter(standing, "while read -r line; do echo $line; done </proc/meminfo", output=str(path))
        known = dict(line.split()[:2] for line in path.read_text().splitlines())
        used = int(known["MemTotal:"]) - int(known["MemAvailable:"])
        return used / 1024

    async def mixed(self, minutes: float, random: Random) -> int:
        """Three workers at once: cycles, processes beside, output, statistics, pauses; how many things they did."""
        until, done = time.monotonic() + minutes * 60, 0

        async def worker(number: int) -> None:
            nonlocal done
            name = f"w{number}"
            await self._shim.run(name, "while :; do sleep 1000; done")
            while time.monotonic() < until:
                match random.randrange(5):
                    case 0:
                        await self.cycle()
                    case 1:
                        await self.enter(name, "exit 0", exec_id=f"e{done}")
                    case 2:
                        path = self._shim.directory / f"out{number}"
                        script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done"
                        await self.enter(name, script, exec_id=f"e{done}", output=str(path))
                        path.unlink()
                    case 3:
                        await self._shim.task("Stats", task.StatsRequest(id=name), task.StatsResponse)
                    case _:
                        await self._shim.task("Pause", task.PauseRequest(id=name), Empty)
                        await self._shim.task("Resume", task.ResumeRequest(id=name), Empty)
                done += 1
            await self._shim.task("Kill", task.KillRequest(id=name, signal=9), Empty)
            await self._shim.task("Wait", task.WaitRequest(id=name), task.WaitResponse)
            await self._shim.task("Delete", task.DeleteRequest(id=name), task.DeleteResponse)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(worker(number))
        return done


async def soak(
    cycles: int, minutes: float = 0, tell: Callable[[str], None] = lambda _: None
) -> tuple[list[Sample], int]:
    """The samples of so many cycles, half of them before and half after so many minutes of mixed load, whose number of
    operations comes with them.
    """
    samples: list[Sample] = []
    did = 0
    async with running_shim() as shim:
        await shim.create()
        await shim.boot()
        await shim.run("standing", "while :; do sleep 1000; done")
        load = Load(shim)
        pids = family(int((shim.bundle / "shim.pid").read_text()))
        for number in range(cycles + WARM):
            if minutes and number == (cycles + WARM) // 2:
                did = await load.mixed(minutes, Random(1))
                tell(f"{did} operations of mixed load in {minutes:g} minutes")
            seconds = await load.cycle()
            guest = await load.guest_memory("standing")
            if number >= WARM:
                samples.append(look(number - WARM + 1, seconds, guest, pids))
                if len(samples) % 25 == 0:
                    tell(str(samples[-1]))
        await shim.stop()
        await shim.shutdown()
    return samples, did


def grown(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """What is not flat: by name the medians of the first and of the last fifth, where the last is beyond its bound."""
    part = max(len(samples) // 5, 3)
    found = {}
    for name in (name for name in asdict(samples[0]) if name != "cycle"):
        first, last = (median(getattr(sample, name) for sample in some) for some in (samples[:part], samples[-part:]))
        # Latency is the machine's as well, memory comes in pages, and a stream may be closed a moment later. What else
        # is counted must not grow at all. A leak in each cycle is beyond all of these.
        wide = {"seconds": first * 1.5, "memory": first + 4, "guest": first + 24, "descriptors": first + 3}
        bound = wide.get(name, first)
        if last > bound:
            found[name] = (first, last)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s soak --", description=__doc__)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=30, help="of mixed load, in the middle")
    parser.add_argument("--svg", type=Path, help="where to draw the curves")
    given = parser.parse_args()
    samples, did = asyncio.run(soak(given.cycles, given.minutes, lambda text: print(text, flush=True)))
    print(samples[0], samples[-1], sep="\n")
    if given.svg:
        title = f"{given.cycles} containers in one sandbox" + (
            f", {did} operations of mixed load in between" * (did > 0)
        )
        given.svg.write_text(curves(title, [asdict(sample) for sample in samples]))
    for name, (first, last) in grown(samples).items():
        print(f"{name} is not flat: {first:g} at the beginning, {last:g} at the end")
    return 1 if grown(samples) else 0


if __name__ == "__main__":
    sys.exit(main())
