"""How long from a command to the first output of a workload, beside a bare boot of the same kernel.

`nox -s bench` runs it. All contestants take turns in one run, because these machines are shared and noisy; what counts
is the ratio of medians, absolute times are only printed. There are two bare boots, both to a static init that prints:

- stock: Debian's kernel package as anybody boots it (bzImage, q35 with its default devices, `console=ttyS0`);
- tuned: the same kernel with the machine, kernel image and parameters of a sandbox (docs/decisions/0005-boot.md). What
  a sandbox costs beyond it is the initramfs, the agent, and the container.

Beside them a cold start, a clone of a template, and a guest of the pool, each with and without tracing.

With `--collectors` whole traced runs are compared instead: without a collector, with one that is away, and one that
takes connections and never answers. With `--tracing` tracing off, on and detailed are compared
(tests/bench/tracing.py).
"""

import argparse
import json
import os
import runpy
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kata_runtime.hypervisor.machine import MachineSpec
from kata_runtime.hypervisor.qemu import accelerator
from kata_runtime.hypervisor.qemu.argv import to_argv
from kata_runtime.hypervisor.qemu.spec import Channels, QemuSpec
from kata_runtime.image import DEFAULT_CACHE, DEFAULT_OUTPUT, Artifacts, cpio
from kata_runtime.process import find_program
from support import start_paths as paths
from support.start_paths import Contestant

__all__ = ["Contestant", "first_output", "main", "stock_boot", "take_turns", "tuned_boot"]

_MARK = b"first output"
_TIMEOUT = 120
_STOCK, _TUNED = "bare boot, stock", "bare boot, tuned"
# As in the sandboxes' own options (SandboxOptions.from_environment).
_IMAGE = Path(os.environ.get("KATA_IMAGE_DIR") or DEFAULT_OUTPUT)
_RUNTIME = str(Path(sys.executable).with_name("kata-runtime"))


def main() -> int:
    """Print a table and write it as JSON; the exit code says whether the limit was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=2.0, help="highest ratio of a cold start to the stock boot")
    parser.add_argument("--collectors", action="store_true", help="compare whole runs with bad collectors instead")
    parser.add_argument("--tracing", action="store_true", help="compare tracing off, on and detailed instead")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench-start.json"))
    options = parser.parse_args()
    if options.collectors:
        return _collectors(options.rounds)
    if options.tracing:
        tracing = runpy.run_path(str(Path(__file__).with_name("tracing.py")))
        return int(tracing["main"](lambda more: first_output([_RUNTIME, *more]), options.rounds))
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as scratch:
        contestants = [
            Contestant(_STOCK, stock_boot(Path(scratch))),
            Contestant(_TUNED, tuned_boot(Path(scratch))),
            *paths.contestants(Path(scratch), first_output),
        ]
        with paths.ready(Path(scratch)):
            samples = take_turns(paths.undisturbed(contestants), options.rounds)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(f"{'command to first output':28} {'median':>8} {'min':>8} {'max':>8}  to stock  to tuned")
    for name, values in samples.items():
        ratios = [medians[name] / medians[base] for base in (_STOCK, _TUNED)]
        spread = f"{medians[name]:7.3f}s {min(values):7.3f}s {max(values):7.3f}s"
        print(f"{name:28} {spread}  {ratios[0]:8.2f}  {ratios[1]:8.2f}")
    cold = medians[paths.COLD] / medians[_STOCK]
    print(f"cold start is {cold:.2f} times the stock boot (limit {options.limit:g})")
    for plain, traced in paths.TRACED.items():
        print(f"{plain}: tracing on both sides adds {100 * (medians[traced] / medians[plain] - 1):+.1f} %")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"seconds": samples, "medians": medians}, indent=1))
    return 0 if cold <= options.limit else 1


def take_turns(contestants: Sequence[Contestant], rounds: int) -> dict[str, list[float]]:
    for contestant in contestants:
        contestant.measure()  # warms the page cache
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants:
            samples[contestant.name].append(contestant.measure())
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return samples


def _collectors(rounds: int) -> int:
    """A table of whole runs, from the command to its exit."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as silent:
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        contestants = [
            Contestant("no collector", lambda: _whole_run("")),
            Contestant("collector away", lambda: _whole_run("http://127.0.0.1:1")),
            Contestant("collector hangs", lambda: _whole_run(hanging)),
        ]
        samples = take_turns(contestants, rounds)
    base = statistics.median(samples["no collector"])
    for name, values in samples.items():
        median = statistics.median(values)
        print(f"{name:20} {median:7.3f}s {min(values):7.3f}s {max(values):7.3f}s  {median / base:.2f}")
    return 0


def _whole_run(endpoint: str) -> float:
    argv = [_RUNTIME, "run", "--trace", "--", "true"]
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    begin = time.monotonic()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.monotonic() - begin


def _static_init(scratch: Path) -> Path:
    """An initramfs with busybox alone, which prints the mark and powers off."""
    busybox = (Artifacts.at(_IMAGE).default_rootfs / "bin/busybox").resolve()
    initrd = scratch / "initrd"
    script = f"#!/bin/busybox sh\necho {_MARK.decode()}\nexec /bin/busybox poweroff -f\n"
    entries = [
        *(cpio.directory(name) for name in ("bin", "dev")),
        cpio.device("dev/console", 5, 1),
        cpio.file("bin/busybox", busybox.read_bytes(), 0o755),
        cpio.file("init", script.encode(), 0o755),
    ]
    initrd.write_bytes(cpio.archive(entries))
    return initrd


def _qemu() -> str:
    return find_program("qemu-system-x86_64", package="qemu-system-x86")


def stock_boot(scratch: Path) -> Callable[[], float]:
    """Debian's kernel as its package has it, on a machine that nobody tuned."""
    unpacked = scratch / "kernel"
    if os.environ.get("KATA_L1"):
        unpacked = Path("/")  # whose kernel is the very same
    else:
        (package,) = (DEFAULT_CACHE / "packages").glob("linux-image-*-cloud-amd64_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
    (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
    accel, _ = accelerator.choose("auto", accelerator.kvm_usability())
    argv = [_qemu(), "-machine", "q35", "-accel", accel, "-cpu", "max" if accel == "tcg" else "host", "-m", "2048"]
    argv += ["-kernel", str(kernel), "-initrd", str(_static_init(scratch)), "-append", "console=ttyS0 panic=-1"]
    argv += ["-nographic", "-no-reboot"]
    return lambda: _time_to_mark(argv)


def tuned_boot(scratch: Path) -> Callable[[], float]:
    """QEMU with the same kernel, machine and parameters as a sandbox's, without its devices."""
    artifacts = Artifacts.at(_IMAGE)
    accel, _ = accelerator.choose("auto", accelerator.kvm_usability())
    machine = MachineSpec(
        name="bench",
        kernel=artifacts.kernel,
        initrd=_static_init(scratch),
        image=artifacts.image,
        memory=2048,
        vcpus=1,
    )
    spec = QemuSpec(machine, program=_qemu(), accelerator=accel, cpu_features="pmu=off")
    argv = [*_without_devices(to_argv(spec, Channels(-1, -1, -1))), "-serial", "stdio"]
    return lambda: _time_to_mark(argv)


def _without_devices(argv: list[str]) -> list[str]:
    """Only what makes the machine: no disks, no monitors, no ports; and nobody is there who would let it go on."""
    dropped = {"-drive", "-device", "-chardev", "-mon", "-serial"}
    words, kept = iter(argv), []
    for word in words:
        if word in dropped:
            next(words)
        elif word != "-S":
            kept.append(word)
    return kept


def first_output(command: list[str]) -> float:
    """Seconds that `kata-runtime run OPTIONS` takes to a workload's first output."""
    return _time_to_mark([*command, "--", "echo", _MARK.decode()])


def _time_to_mark(argv: list[str]) -> float:
    """Seconds from exec until the mark is in the output; the process then ends by itself."""
    begin = time.monotonic()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        late = threading.Timer(_TIMEOUT, child.kill)
        late.daemon = True
        late.start()
        seen, elapsed = b"", 0.0
        while chunk := os.read(child.stdout.fileno(), 4096):
            seen += chunk
            if not elapsed and _MARK in seen:
                elapsed = time.monotonic() - begin
        if not elapsed:
            raise SystemExit(f"{argv[0]} ended without output:\n{seen.decode(errors='replace')}")
        child.wait(_TIMEOUT)
        late.cancel()
    return elapsed


if __name__ == "__main__":
    sys.exit(main())
