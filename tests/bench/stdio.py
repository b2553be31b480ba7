"""How quick stdio is beside a raw vsock stream of the same guest.

`nox -s bench -- --stdio` runs it (root). One program in a container moves the same bytes in the same pieces (64 KiB)
over a vsock stream of its own and over its stdio, in turn; what counts is the ratio of medians. Two guests, one after
the other: under `kata-runtime run`, whose stdio is pipes of ours, and under the shim, whose stdio is fifos. The fifos
are opened here, so `ctr` itself copies nothing.

Only where the vsock backend is ours: the raw stream is dialled by its hybrid socket.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kata_runtime.guest.transport import HybridTransport
from support import processor, stream_guest
from support.containerd import Containerd, running, shim_pid, write_shim
from support.vsock_guest import python_root

__all__ = ["main", "transfer", "under_run"]

_PORT = 5010
_BLOCK = stream_guest.BLOCK
_TIMEOUT = 120
_RUN, _SHIM = "kata-runtime run", "shim"
# The raw stream that each way of stdio is measured by.
_RAW = {"stdout": "source", "stdin": "sink", "cat": "echo"}


class Way(NamedTuple):
    """A guest with the program in it: its stdio here, and where its vsock is; `runtime` is the process that copies."""

    name: str
    stdin: int
    stdout: int
    runtime: int

    @property
    def hybrid(self) -> Path:
        return Path("/run/kata", self.name, "vsock.sock")


class Sample(NamedTuple):
    """One transfer, in seconds; `cpu` by process."""

    elapsed: float
    cpu: dict[str, float]


def main() -> int:
    """Print a table and write it as JSON; the exit code says whether the limit was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=48, help="MiB of each transfer")
    parser.add_argument("--limit", type=float, default=0.6, help="lowest ratio of stdout and stdin to the raw stream")
    parser.add_argument("--only", choices=("run", "shim"), help="one of the two guests")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench-stdio.json"))
    options = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        rootfs = python_root(Path(scratch))
        shutil.copy(stream_guest.__file__, rootfs / "stream_guest.py")
        run = [str(Path(sys.executable).with_name("kata-runtime")), "run"]
        guests = {"run": (_RUN, under_run(rootfs, run)), "shim": (_SHIM, _under_shim(rootfs, Path(scratch)))}
        for key, (name, guest) in guests.items():
            if options.only in (None, key):
                with guest as way:
                    result[name] = _measure(way, options.rounds, options.size << 20)
    good = True
    for name, samples in result.items():
        good &= _report(name, samples, options.size << 20, options.limit)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"bytes": options.size << 20, "seconds": result}, indent=1))
    return 0 if good else 1


def _report(name: str, samples: dict[str, list[Sample]], size: int, limit: float) -> bool:
    good = True
    print(f"{name}, {size >> 20} MiB (to raw: median; by round)                CPU, ms per MiB")
    for verb, raw in _RAW.items():
        medians = {each: statistics.median(sample.elapsed for sample in samples[each]) for each in (raw, verb)}
        ratio = medians[raw] / medians[verb]
        good &= ratio >= limit or verb == "cat"
        rounds = [base.elapsed / taken.elapsed for base, taken in zip(samples[raw], samples[verb], strict=True)]
        told = f"{ratio:.2f}; {' '.join(f'{each:.2f}' for each in rounds)}"
        for each, beside in ((raw, ""), (verb, told)):
            print(f"  {each:7} {size / medians[each] / 1e6:6.1f} MB/s  {beside:44} {_cpu_told(samples[each], size)}")
    return good


def _cpu_told(samples: list[Sample], size: int) -> str:
    each = {who: statistics.median(sample.cpu[who] for sample in samples) for who in samples[0].cpu}
    return ", ".join(f"{who} {seconds * 1e3 / (size >> 20):.1f}" for who, seconds in each.items())


def _measure(way: Way, rounds: int, size: int) -> dict[str, list[Sample]]:
    """Everything takes turns."""
    samples: dict[str, list[Sample]] = {verb: [] for pair in _RAW.items() for verb in pair}
    pids = {"runtime": way.runtime} | {who: processor.find(mark, way.name) for who, mark in processor.MARKS.items()}
    for number in range(rounds + 1):
        for verb, taken in samples.items():
            before = {who: processor.seconds(pid) for who, pid in pids.items()}
            elapsed = transfer(way, verb, size if number else size // 8)
            sample = Sample(elapsed, {who: processor.seconds(pid) - before[who] for who, pid in pids.items()})
            if number:  # the first round warms up
                taken.append(sample)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return samples


def transfer(way: Way, verb: str, size: int) -> float:
    """Have the guest's program do it, and do our part; seconds."""
    with _dial(way.hybrid) as stream:
        raw = stream.fileno()
        begin = time.monotonic()
        stream.sendall(b"%s %d\n" % (verb.encode(), size))
        match verb:
            case "source":
                stream_guest.read(raw, size)
            case "sink":
                stream_guest.write(raw, size)
            case "echo":
                _both(raw, raw, size)
            case "stdout":
                stream_guest.read(way.stdout, size)
            case "stdin":
                stream_guest.write(way.stdin, size)
            case "cat":
                _both(way.stdin, way.stdout, size)
        if verb not in ("source", "echo"):
            assert stream.recv(1) == b"."
        return time.monotonic() - begin


def _both(sink: int, source: int, size: int) -> None:
    writer = threading.Thread(target=stream_guest.write, args=(sink, size))
    writer.start()
    stream_guest.read(source, size)
    writer.join()


def _dial(hybrid: Path) -> socket.socket:
    stream, _ = asyncio.run(HybridTransport(hybrid, hybrid).connect(_PORT))
    stream.setblocking(True)
    return stream


@contextmanager
def under_run(rootfs: Path, run: list[str], suffix: str = "") -> Iterator[Way]:
    """`kata-runtime run -i`, which is `run`, with pipes as a shell makes them."""
    name = f"bench-{os.getpid()}{suffix}"
    argv = [*run, "-i", "--name", name, "--rootfs", str(rootfs), "--", *_program()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, **pipes) as child:  # type: ignore[call-overload]
        _until_ready(child.stderr.fileno())
        yield Way(name, child.stdin.fileno(), child.stdout.fileno(), child.pid)
        child.terminate()
        child.communicate(timeout=_TIMEOUT)


@contextmanager
def _under_shim(rootfs: Path, scratch: Path) -> Iterator[Way]:
    """`ctr run --detach` by a containerd of our own."""
    shims = scratch / "shims"
    shims.mkdir()
    shim = Path(__file__).parent.parent / "support/kata_shim.py"
    write_shim(shims / "containerd-shim-kata-v2", sys.executable, shim)
    with running(shims, None) as containerd, ExitStack() as stack:
        name = f"bench-{os.getpid()}"
        fifos = _fifos(containerd)
        argv = ("run", "--detach", "--runtime", "io.containerd.kata.v2", "--rootfs", str(rootfs), name, *_program())
        containerd.ctr(*argv, timeout=_TIMEOUT)
        stack.callback(lambda: containerd.ctr("tasks", "delete", "--force", name, timeout=_TIMEOUT, check=False))
        ends = {channel: stack.enter_context(open(path, "r+b", buffering=0)) for channel, path in fifos().items()}
        _until_ready(ends["stderr"].fileno())
        yield Way(name, ends["stdin"].fileno(), ends["stdout"].fileno(), shim_pid(containerd, name))


def _fifos(containerd: Containerd) -> Callable[[], dict[str, Path]]:
    """The fifos that ctr makes for the next task, by channel."""
    directory = containerd.directory / "fifo"

    def made() -> dict[str, Path]:
        return {path.name.rpartition("-")[2]: path for path in directory.rglob("*-std*")}

    return made


def _program() -> list[str]:
    return ["/usr/bin/python3.11", "-I", "-S", "/stream_guest.py", str(_PORT)]


def _until_ready(stderr: int) -> None:
    seen = b""
    while b"ready\n" not in seen:
        chunk = os.read(stderr, 4096)
        if not chunk:
            raise SystemExit(f"the container did not start: {seen.decode(errors='replace')}")
        seen += chunk


if __name__ == "__main__":
    sys.exit(main())
