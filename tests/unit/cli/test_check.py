"""`kata-runtime check` on hosts of all kinds, made of files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kata_runtime.cli import check
from kata_runtime.cli.check import Finding, Verdict, examine, verdict
from kata_runtime.cli.main import main
from kata_runtime.config import Config
from kata_runtime.errors import HostError
from kata_runtime.hypervisor.qemu import hypervisor as qemu
from kata_runtime.hypervisor.qemu.accelerator import EMULATION, Usability


class Host:
    """A host's /proc, /sys and /dev; a device is a link to /dev/null, which is a character device as well."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("proc", "sys/module", "dev/net"):
            (root / name).mkdir(parents=True)
        self.cpu("svm")

    def cpu(self, *flags: str) -> None:
        text = (
            f"processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu lm sse4_1 {' '.join(flags)}\n\nprocessor\t: 1\n"
        )
        (self.root / "proc/cpuinfo").write_text(text)

    def modules(self, *names: str) -> None:
        for name in names:
            (self.root / "sys/module" / name).mkdir()

    def devices(self, *names: str) -> None:
        for name in names:
            (self.root / "dev" / name).symlink_to("/dev/null")

    def look(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in examine(Config.default(), self.root)}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with all programs and an image, whose KVM says yes."""
    for module in (check, qemu):
        monkeypatch.setattr(module, "find_program", lambda name, **_: f"/bin/{name}")
    monkeypatch.setattr(check, "_image", lambda _: Finding("guest image", Verdict.OK, "there"))
    monkeypatch.setattr("kata_runtime.hypervisor.qemu.accelerator.kvm_usability", lambda *_, **__: Usability(True))
    monkeypatch.setattr(qemu, "creates_vm", lambda _: Usability(True))
    return Host(tmp_path)


def test_a_host_with_everything(host: Host) -> None:
    host.modules("kvm_amd", "vhost_vsock", "vhost_net")
    host.devices("kvm", "vhost-vsock", "net/tun")
    found = host.look()
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert found["CPU"].detail == "AuthenticAMD, svm"


def test_modules_that_are_not_loaded(host: Host) -> None:
    host.cpu("vmx")
    found = host.look()
    assert found["module kvm_intel"] == Finding("module kvm_intel", Verdict.SLOWER, "not loaded", "modprobe kvm_intel")
    assert found["vsock"].hint == "modprobe vhost_vsock"
    assert "module kvm_amd" not in found
    assert found["tap devices"].hint == "modprobe tun"


def test_a_cpu_without_virtualization(host: Host) -> None:
    host.cpu()
    found = host.look()
    assert found["CPU"].verdict is Verdict.SLOWER
    assert "nested virtualization" in found["CPU"].hint
    assert [name for name in found if name.startswith("module kvm")] == []


def test_a_cpu_that_no_guest_runs_on(host: Host) -> None:
    (host.root / "proc/cpuinfo").write_text("flags : fpu svm\n")
    found = host.look()
    assert found["CPU flag lm"].verdict is found["CPU flag sse4_1"].verdict is Verdict.MISSING


def test_kvm_that_creates_no_vm(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(qemu, "creates_vm", lambda _: Usability(False, "no VM"))
    assert host.look()["KVM"] == Finding("KVM", Verdict.SLOWER, f"no VM; {EMULATION}")


def test_a_program_that_is_missing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, **_: object) -> str:
        raise HostError(f"{name} was not found", hint=f"apt install {name}")

    monkeypatch.setattr(check, "find_program", find)
    found = host.look()["virtiofsd"]
    assert (found.verdict, found.hint) == (Verdict.MISSING, "apt install virtiofsd")


def test_the_worst_counts() -> None:
    rows = [Finding("a", Verdict.OK, ""), Finding("b", Verdict.SLOWER, "")]
    assert verdict(rows) is Verdict.SLOWER
    assert verdict([*rows, Finding("c", Verdict.MISSING, "")]) is Verdict.MISSING


@pytest.mark.parametrize(
    ("worst", "status", "said"),
    [
        (Verdict.OK, 0, "System is capable of running Kata Containers\n"),
        (Verdict.SLOWER, 0, "System is capable of running Kata Containers (slower than it could be, see above)\n"),
        (Verdict.MISSING, 1, "System is not capable of running Kata Containers: thing\n"),
    ],
)
def test_what_the_command_says(
    worst: Verdict, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "examine", lambda _: [Finding("thing", worst, "detail", "do this")])
    assert main(["check"]) == status
    out, err = capsys.readouterr()
    assert said in out + err
    assert ("hint: do this" in out) is (worst is not Verdict.OK)
    assert main(["check", "--json", "-n"]) == status
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == worst
    assert told["findings"] == [{"name": "thing", "verdict": worst, "detail": "detail", "hint": "do this"}]


def test_this_host_has_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) in (0, 1)
    assert "QEMU" in capsys.readouterr().out


def test_keys_without_an_effect_are_told() -> None:
    config = replace(Config.default(), notes=("[hypervisor.qemu] msize_9p: for 9p, which is not used",))
    [told] = [finding for finding in examine(config) if finding.name == "configuration"]
    assert (told.verdict, told.detail) == (
        Verdict.OK,
        "no effect: [hypervisor.qemu] msize_9p: for 9p, which is not used",
    )
