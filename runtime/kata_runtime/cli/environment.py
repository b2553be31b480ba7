"""`kata-runtime env`: what containers would run with here, in the form of Kata's command (its kata-env.go, 1.0.27)."""

import argparse
import asyncio
import json
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kata_runtime.cli.toml import dump
from kata_runtime.config import Config, load
from kata_runtime.errors import KataError

__all__ = ["add_arguments"]

# Of Kata's form; scripts look at it.
_FORMAT = "1.0.27"
_OCI = "1.3.0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `env`."""
    parser.add_argument("--json", action="store_true", help="as JSON (default: TOML)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the command."""
    config = load(Path(options.config) if options.config else None)
    found = {
        "Meta": {"Version": _FORMAT},
        **_guest(config),
        "Hypervisor": _hypervisor(config),
        "Runtime": _runtime(config),
        "Host": _host(config),
        "Agent": {"Debug": config.runtime.enable_debug, "Trace": config.agent.enable_tracing},
    }
    print(json.dumps(found, indent=2) if options.json else dump(found), end="\n" if options.json else "")
    return 0


def _guest(config: Config) -> dict[str, Any]:
    """Empty paths where there is no image yet; `kata-runtime check` says so."""
    from kata_runtime.image import DEFAULT_OUTPUT
    from kata_runtime.sandbox.sandbox import SandboxOptions
    from kata_runtime.sandbox.vm import find_artifacts

    kernel, image, initrd = "", "", ""
    with suppress(KataError):
        directory = SandboxOptions(image_dir=DEFAULT_OUTPUT).from_environment("env").image_dir
        artifacts = find_artifacts(config, directory)
        kernel, image, initrd = map(str, (artifacts.kernel, artifacts.image, artifacts.initrd))
    return {
        "Kernel": {"Path": kernel, "Parameters": config.hypervisor.kernel_params},
        "Image": {"Path": image},
        "Initrd": {"Path": initrd},
    }


def _hypervisor(config: Config) -> dict[str, Any]:
    from kata_runtime.hypervisor import virtiofsd
    from kata_runtime.process import ask, find_program

    machine = config.hypervisor
    path = daemon = said = ""
    with suppress(KataError):
        path = find_program(machine.path or "qemu-system-x86_64", package="qemu-system-x86")
        said = asyncio.run(ask([path, "--version"])).strip().partition("\n")[0]
    with suppress(KataError):
        wanted = machine.virtio_fs_daemon or "virtiofsd"
        daemon = find_program(wanted, package="virtiofsd", also=virtiofsd.PROGRAMS)
    return {
        "MachineType": machine.machine_type,
        "Version": said,
        "Path": path,
        "BlockDeviceDriver": "virtio-blk",
        "EntropySource": "/dev/urandom",
        "SharedFS": machine.shared_fs,
        "VirtioFSDaemon": daemon,
        "SocketPath": "",
        "Msize9p": 0,
        "MemorySlots": 0,
        "HotPlugVFIO": "no-port",
        "ColdPlugVFIO": "no-port",
        "PCIeRootPort": 0,
        "PCIeSwitchPort": 0,
        "Debug": config.runtime.enable_debug,
        "SecurityInfo": {
            "Rootless": machine.rootless,
            "DisableSeccomp": not machine.seccompsandbox,
            "GuestHookPath": "",
            "EnableAnnotations": list(machine.enable_annotations),
            "ConfidentialGuest": False,
        },
    }


def _runtime(config: Config) -> dict[str, Any]:
    return {
        "Path": str(Path(sys.argv[0]).absolute()),
        "GuestSeLinuxLabel": "",
        "Experimental": [],
        "Debug": config.runtime.enable_debug,
        "Trace": config.runtime.enable_tracing,
        "DisableGuestSeccomp": config.runtime.disable_guest_seccomp,
        "DisableNewNetNs": False,
        "SandboxCgroupOnly": True,
        "Config": {"Path": config.files[0] if config.files else ""},
        "Version": {"OCI": _OCI, "Version": {"Semver": version("kata-python"), "Commit": ""}},
    }


def _host(config: Config) -> dict[str, Any]:
    from kata_runtime.cli.check import Verdict, examine, verdict
    from kata_runtime.hypervisor.vsock import kernel as vhost_vsock

    release = _pairs(Path("/etc/os-release"), "=")
    cpu = _pairs(Path("/proc/cpuinfo"), ":")
    memory = {key: int(value.split()[0]) for key, value in _pairs(Path("/proc/meminfo"), ":").items()}
    return {
        "AvailableGuestProtections": "none",
        "Kernel": os.uname().release,
        "Architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "VMContainerCapable": verdict(examine(config)) is not Verdict.MISSING,
        "SupportVSocks": vhost_vsock.available(Path("/dev/vhost-vsock")),
        "Distro": {"Name": release.get("NAME", ""), "Version": release.get("VERSION_ID", "")},
        "CPU": {"Vendor": cpu.get("vendor_id", ""), "Model": cpu.get("model name", ""), "CPUs": os.cpu_count() or 0},
        "Memory": {
            "Total": memory.get("MemTotal", 0),
            "Free": memory.get("MemFree", 0),
            "Available": memory.get("MemAvailable", 0),
        },
    }


def _pairs(path: Path, separator: str) -> dict[str, str]:
    """Of lines with one; the first of a name counts, as for the first CPU."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, middle, value = line.partition(separator)
            if middle:
                found.setdefault(name.strip(), value.strip().strip('"'))
    return found
