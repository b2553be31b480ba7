"""`kata-runtime check`: whether this host can run containers in VMs, and what it lacks.

What is looked at, and the two closing sentences, are those of Kata's command of that name, for scripts that know them.
KVM and the kernel's vhost devices are missed only by the fast way: without them everything runs, slower.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kata_runtime.config import Config, load
from kata_runtime.errors import KataError
from kata_runtime.hypervisor import virtiofsd
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.hypervisor.findings import Finding, Verdict
from kata_runtime.hypervisor.vsock import kernel as vhost_vsock
from kata_runtime.process import find_program

__all__ = ["Finding", "Verdict", "add_arguments", "examine", "verdict"]

_CAPABLE = "System is capable of running Kata Containers"
_CREATES = "System can currently create Kata Containers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `check`."""
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    # Kata's command asks GitHub for a newer release; ours asks nobody.
    parser.add_argument("-n", "--no-network-checks", action="store_true", help="accepted, because there are none")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the command; 1 where no sandbox could start here."""
    config = load(Path(options.config) if options.config else None)
    findings = examine(config)
    found = verdict(findings)
    if options.json:
        listed = [{"name": f.name, "verdict": f.verdict, "detail": f.detail, "hint": f.hint} for f in findings]
        print(json.dumps({"verdict": found, "findings": listed}, indent=1))
        return int(found is Verdict.MISSING)
    for finding in findings:
        print(f"{finding.verdict:8} {finding.name:18} {finding.detail}")
        if finding.hint and finding.verdict is not Verdict.OK:
            print(f"{'':8} {'':18} hint: {finding.hint}")
    if found is Verdict.MISSING:
        lacking = ", ".join(finding.name for finding in findings if finding.verdict is Verdict.MISSING)
        print(f"kata-runtime: System is not capable of running Kata Containers: {lacking}", file=sys.stderr)
        return 1
    print(_CAPABLE + (" (slower than it could be, see above)" if found is Verdict.SLOWER else ""))
    if os.geteuid() == 0:
        print(_CREATES)
    return 0


def verdict(findings: Sequence[Finding]) -> Verdict:
    """The worst of them."""
    return max((finding.verdict for finding in findings), key=list(Verdict).index)


def examine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """Look at everything that a sandbox needs; `root` has the host's proc, sys and dev."""
    return [
        *_cpu(root / "proc/cpuinfo"),
        *_modules(root / "sys/module", root / "proc/cpuinfo"),
        *hypervisor_of(config).examine(root),
        *_devices(root / "dev"),
        *_programs(config),
        _image(config),
        _root(),
        *(Finding("configuration", Verdict.OK, f"no effect: {note}") for note in config.notes),
    ]


def _cpu(cpuinfo: Path) -> Iterator[Finding]:
    flags = _cpu_fields(cpuinfo).get("flags", "").split()
    virtual = [flag for flag in ("vmx", "svm") if flag in flags]
    if virtual:
        yield Finding("CPU", Verdict.OK, f"{_cpu_fields(cpuinfo).get('vendor_id', 'unknown')}, {virtual[0]}")
    else:
        hint = "turn virtualization on in the firmware or, in a VM, nested virtualization on its host"
        yield Finding("CPU", Verdict.SLOWER, "neither vmx nor svm, so no KVM", hint)
    for flag in ("lm", "sse4_1"):
        if flag not in flags:
            yield Finding(f"CPU flag {flag}", Verdict.MISSING, "not there; a guest needs it")


def _cpu_fields(cpuinfo: Path) -> dict[str, str]:
    """Of the first CPU."""
    first = cpuinfo.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _modules(modules: Path, cpuinfo: Path) -> Iterator[Finding]:
    flags = _cpu_fields(cpuinfo).get("flags", "").split()
    # Without either flag no module helps.
    wanted = [name for flag, name in (("vmx", "kvm_intel"), ("svm", "kvm_amd")) if flag in flags]
    for name in (*wanted, "vhost_vsock", "vhost_net"):
        if (modules / name).exists():
            yield Finding(f"module {name}", Verdict.OK, "loaded")
        else:
            yield Finding(f"module {name}", Verdict.SLOWER, "not loaded", f"modprobe {name}")


def _devices(dev: Path) -> Iterator[Finding]:
    if vhost_vsock.available(dev / "vhost-vsock"):
        yield Finding("vsock", Verdict.OK, f"{dev / 'vhost-vsock'}, by the kernel")
    else:
        yield Finding("vsock", Verdict.SLOWER, "by a process of ours per VM", "modprobe vhost_vsock")
    if (dev / "net/tun").exists():
        yield Finding("tap devices", Verdict.OK, str(dev / "net/tun"))
    else:
        yield Finding("tap devices", Verdict.SLOWER, f"no {dev / 'net/tun'}: no network for pods", "modprobe tun")


def _programs(config: Config) -> Iterator[Finding]:
    wanted = (
        ("virtiofsd", config.hypervisor.virtio_fs_daemon or "virtiofsd", "virtiofsd", virtiofsd.PROGRAMS),
        ("setpriv", "setpriv", "util-linux", ()),
    )
    for name, program, package, also in wanted:
        try:
            yield Finding(name, Verdict.OK, find_program(program, package=package, also=also))
        except KataError as error:
            yield Finding(name, Verdict.MISSING, str(error), error.hint)


def _image(config: Config) -> Finding:
    from kata_runtime.image import DEFAULT_OUTPUT
    from kata_runtime.image.verify import verify
    from kata_runtime.sandbox.sandbox import SandboxOptions
    from kata_runtime.sandbox.vm import find_artifacts

    directory = SandboxOptions(image_dir=DEFAULT_OUTPUT).from_environment("check").image_dir
    try:
        artifacts = find_artifacts(config, directory)
        ours = artifacts.image.parent == directory
        detail = f"kernel {artifacts.check().kernel_version}: {directory}" if ours else str(artifacts.image)
        unknown = [path.name for path in verify(artifacts.booted)]
    except KataError as error:
        return Finding("guest image", Verdict.MISSING, str(error), error.hint)
    told = f"; nothing tells what {', '.join(unknown)} should be" if unknown else ", as it was built (sha256)"
    return Finding("guest image", Verdict.OK, f"{detail}{told}")


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("user", Verdict.OK, "root")
    return Finding("user", Verdict.OK, "not root: kata-runtime run and containerd's shim need it")
