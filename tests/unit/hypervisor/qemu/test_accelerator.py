from pathlib import Path

import pytest

from kata_runtime.errors import HostError
from kata_runtime.hypervisor.qemu.accelerator import Accelerator, Usability, choose, kvm_usability

YES, NO = Usability(True), Usability(False, "because")


@pytest.mark.parametrize(
    ("wanted", "kvm", "expected", "warns"),
    [
        ("auto", YES, Accelerator.KVM, False),
        ("auto", NO, Accelerator.TCG, True),
        ("kvm", YES, Accelerator.KVM, False),
        ("tcg", YES, Accelerator.TCG, False),
        ("tcg", NO, Accelerator.TCG, False),
    ],
)
def test_choice(wanted: str, kvm: Usability, expected: Accelerator, warns: bool) -> None:
    accelerator, warning = choose(wanted, kvm)
    assert accelerator is expected
    assert bool(warning) is warns


def test_kvm_that_is_wanted_but_not_there_is_an_error() -> None:
    with pytest.raises(HostError, match="because"):
        choose("kvm", NO)


def test_a_host_without_the_device(tmp_path: Path) -> None:
    usability = kvm_usability(tmp_path / "kvm")
    assert not usability.usable
    assert "no such device" in usability.reason


def test_a_device_that_is_not_kvm(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert not kvm_usability(device).usable


@pytest.mark.parametrize(
    ("mode", "rootless", "usable"),
    [(0o600, False, True), (0o600, True, False), (0o640, True, False), (0o660, True, True), (0o606, True, True)],
)
def test_kvm_for_an_unprivileged_qemu(
    mode: int, rootless: bool, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no udev has run, the device is root's alone; QEMU would say so, but too late to fall back."""
    monkeypatch.setattr("kata_runtime.hypervisor.qemu.accelerator.ioctl", lambda *_: 12)
    device, cpuinfo = tmp_path / "kvm", tmp_path / "cpuinfo"
    device.touch()
    device.chmod(mode)
    cpuinfo.write_text("flags\t\t: fpu svm\n")
    found = kvm_usability(device, cpuinfo, rootless=rootless)
    assert found.usable is usable
    assert usable or f"mode {mode:04o}" in found.reason
