"""What a pod's network moves, beside a raw vsock stream of the same guest, and what empty hotplug ports cost a boot.

`nox -s bench -- --network` runs it (root). One program in one container moves the same bytes in the same pieces of
64 KiB over a TCP connection (veth, tc, tap, virtio-net) and over a vsock stream, in turn and both ways; what counts is
the ratio of medians. Then sandboxes start in turn with the root ports for interfaces that come later, and without.

Only where the vsock backend is ours: the raw stream is dialled by its hybrid socket.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kata_runtime.guest.transport import HybridTransport
from kata_traces.read.trace import load_store
from kata_traces.store.store import stores
from support import processor, stream_guest
from support.netns import Netns, made
from support.vsock_guest import python_root

__all__ = ["main"]

_PORT = 5010
_TIMEOUT = 120
_HOST, _POD = "10.7.0.1", "10.7.0.2"
_MTU = 1500
# A sandbox as it is, and one without the root ports; `run` and its options follow.
_STARTS = {
    "with ports": "",
    "without ports": "import kata_runtime.hypervisor.qemu.argv as argv; argv.HOTPLUG_PORTS = 0; ",
}
_MAIN = "import sys; from kata_runtime.cli.main import main; sys.exit(main())"
_STAGES = ("boot.firmware", "boot.kernel", "boot.initramfs")


class Sample(NamedTuple):
    """One transfer: seconds, and the VM's processor time, where emulation, virtio and the guest's kernel are."""

    elapsed: float
    cpu: float


def main() -> int:
    """Print both tables and write them as JSON. No limit is promised yet, so the exit status is 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of transfers")
    parser.add_argument("--size", type=int, default=48, help="MiB of each transfer")
    parser.add_argument("--starts", type=int, default=7, help="sandboxes of each kind")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench-network.json"))
    options = parser.parse_args()
    result: dict[str, object] = {"bytes": options.size << 20}
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        if options.rounds:
            result["transfers"] = _transfers(Path(scratch), options.rounds, options.size << 20)
        if options.starts:
            result["starts"] = _starts(Path(scratch), options.starts)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    return 0


def _transfers(scratch: Path, rounds: int, size: int) -> dict[str, list[Sample]]:
    rootfs = python_root(scratch)
    shutil.copy(stream_guest.__file__, rootfs / "stream_guest.py")
    with _wired() as (pod, host), _guest(rootfs, pod) as name:
        ways = {"vsock": partial(_dial_vsock, name), "tcp": partial(_dial_tcp, host)}
        vm = processor.find(processor.MARKS["VM"], name)
        samples: dict[str, list[Sample]] = {f"{verb} {way}": [] for verb in ("source", "sink") for way in ways}
        for number in range(rounds + 1):
            for key, taken in samples.items():
                verb, way = key.split()
                before = processor.seconds(vm)
                elapsed = _transfer(ways[way], verb, size if number else size // 8)
                if number:  # the first round warms up
                    taken.append(Sample(elapsed, processor.seconds(vm) - before))
            print(f"round {number} of {rounds}", file=sys.stderr)
    print(f"{size >> 20} MiB, MTU {_MTU} (to vsock: median; by round)            CPU of the VM, ms per MiB")
    for verb, told in (("source", "guest to host"), ("sink", "host to guest")):
        base = samples[f"{verb} vsock"]
        for way in ways:
            _report(f"{told}, {way}", samples[f"{verb} {way}"], base, size)
    return samples


def _report(what: str, taken: list[Sample], base: list[Sample], size: int) -> None:
    median, cpu = (statistics.median(values) for values in zip(*taken, strict=True))
    ratio = statistics.median(sample.elapsed for sample in base) / median
    rounds = " ".join(f"{one.elapsed / other.elapsed:.2f}" for one, other in zip(base, taken, strict=True))
    print(f"  {what:22} {size / median / 1e6:6.1f} MB/s  {ratio:.2f}; {rounds:32} {cpu * 1e3 / (size >> 20):.1f}")


def _transfer(dial: Callable[[], socket.socket], verb: str, size: int) -> float:
    """Have the guest's program do it, and do our part; the connection's making is not counted."""
    with dial() as stream:
        begin = time.monotonic()
        stream.sendall(b"%s %d\n" % (verb.encode(), size))
        if verb == "source":
            stream_guest.read(stream.fileno(), size)
        else:
            stream_guest.write(stream.fileno(), size)
            assert stream.recv(1) == b"."
        return time.monotonic() - begin


def _dial_vsock(name: str) -> socket.socket:
    hybrid = Path("/run/kata", name, "vsock.sock")
    stream, _ = asyncio.run(HybridTransport(hybrid, hybrid).connect(_PORT))
    stream.setblocking(True)
    return stream


def _dial_tcp(host: Netns) -> socket.socket:
    stream = host.inside(lambda: socket.create_connection((_POD, _PORT), _TIMEOUT))
    stream.settimeout(None)  # its descriptor is read directly
    return stream


@contextmanager
def _wired() -> Iterator[tuple[Netns, Netns]]:
    """A pod's namespace and a host's, connected as CNI's ptp does it."""
    with made(2) as (pod, host):
        pod.ip(f"link add eth0 mtu {_MTU} type veth peer name veth0 netns {host.name}")
        for netns, device, address in ((pod, "eth0", _POD), (host, "veth0", _HOST)):
            netns.ip(f"link set {device} up mtu {_MTU}")
            netns.ip(f"addr add {address}/24 dev {device}")
        yield pod, host


@contextmanager
def _guest(rootfs: Path, pod: Netns) -> Iterator[str]:
    """A sandbox in the namespace with the program in it: its name."""
    name = f"bench-{os.getpid()}"
    runtime = str(Path(sys.executable).with_name("kata-runtime"))
    argv = [runtime, "run", "--name", name, "--netns", str(pod.path), "--rootfs", str(rootfs), "--"]
    argv += ["/usr/bin/python3.11", "-I", "-S", "/stream_guest.py", str(_PORT), str(_PORT)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        try:
            seen = b""
            while b"ready\n" not in seen:
                chunk = os.read(child.stderr.fileno(), 4096)
                if not chunk:
                    raise SystemExit(f"the container did not start: {seen.decode(errors='replace')}")
                seen += chunk
            yield name
        finally:
            child.terminate()
            child.communicate(timeout=_TIMEOUT)


def _starts(scratch: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the stages before the agent and of processor time of the whole run, by kind of sandbox."""
    taken: dict[str, dict[str, list[float]]] = {kind: {} for kind in _STARTS}
    kinds = list(_STARTS)
    for number in range(rounds + 1):
        for kind in kinds[number % 2 :] + kinds[: number % 2]:
            stages = _start(scratch / f"{number}-{kind.split()[0]}", _STARTS[kind])
            if number:  # the first round warms up
                for stage, seconds in stages.items():
                    taken[kind].setdefault(stage, []).append(seconds)
        print(f"start {number} of {rounds}", file=sys.stderr)
    print("\nempty root ports for interfaces that come later (medians; what the ports add, by round)")
    for stage in taken["with ports"]:
        pairs = list(zip(taken["with ports"][stage], taken["without ports"][stage], strict=True))
        medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
        added = " ".join(f"{(one - other) * 1e3:+.0f}" for one, other in pairs)
        shown = f"with {medians[0] * 1e3:7.1f} ms, without {medians[1] * 1e3:7.1f} ms"
        print(f"  {stage:14} {shown}, added {(medians[0] - medians[1]) * 1e3:+6.1f} ms; {added}")
    return taken


def _start(directory: Path, patch: str) -> dict[str, float]:
    config = directory.with_suffix(".toml")
    config.write_text(f'[runtime]\ntrace_dir = "{directory}"\n')
    argv = [sys.executable, "-c", patch + _MAIN, "--config", str(config), "run", "--trace", "--", "true"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (store,) = stores(directory)
    trace = load_store(store)
    assert trace is not None
    stages = {span.name: span.duration / 1e9 for span in trace.spans if span.name in _STAGES}
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return stages | {"all three": sum(stages.values()), "processor": used}


if __name__ == "__main__":
    sys.exit(main())
