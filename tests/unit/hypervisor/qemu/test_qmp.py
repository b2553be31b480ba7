"""QMP as QEMU speaks it, and as it must not fail us."""

import dataclasses
import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.errors import HypervisorError, QmpError
from kata_runtime.hypervisor.machine import NetDevice, VhostUserFs, Vsock
from kata_runtime.hypervisor.qemu.hotplug import add_device
from kata_runtime.hypervisor.qemu.qmp import Qmp, Transcript
from kata_telemetry.span import Site, Span, Tracer, use
from support.fake_qmp import fake_qmp


@asynccontextmanager
async def monitor(answers: Mapping[str, Any]) -> AsyncIterator[Qmp]:
    """A connection to a monitor with these answers."""
    connection = functools.partial(Qmp.connected, name="vm", transcript=Transcript(), timeout=5)
    async with fake_qmp(answers) as end, connection(end) as qmp:
        yield qmp


REFUSED = {"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}


async def test_commands_are_answered_traced_and_noted(tmp_path: Path) -> None:
    spans: list[Span] = []
    root = Site(package="test", subsystem="unit").root(Tracer("kata", spans.append), "root")
    transcript = Transcript()
    async with fake_qmp({"query-status": {"return": {"status": "running"}}}) as end:
        with use(root):
            async with Qmp.connected(end, name="vm", transcript=transcript, timeout=5) as qmp:
                assert await qmp.execute("query-status") == {"status": "running"}
    assert [span.name for span in spans] == ["qmp.connect", "qmp.query-status"]
    transcript.save(tmp_path / "qmp.log")
    lines = (tmp_path / "qmp.log").read_text().splitlines()
    assert '--> {"execute": "query-status"' in lines[0]
    assert '<-- {"return": {"status": "running"}}' in lines[1]


async def test_qemus_own_words_are_in_the_error() -> None:
    async with monitor({"device_del": REFUSED}) as qmp:
        with pytest.raises(QmpError, match="QEMU refused device_del: Device 'x' not found") as caught:
            await qmp.execute("device_del", {"id": "x"})
    assert caught.value.kind == "DeviceNotFound"


async def test_what_a_command_was_about_is_on_its_span_and_nothing_else() -> None:
    spans: list[Span] = []
    root = Site(package="test", subsystem="unit").root(Tracer("kata", spans.append), "root")
    async with monitor({"object-add": {"return": {}}}) as qmp:
        with use(root):
            await qmp.execute("object-add", {"qom-type": "secret", "id": "s", "data": "canary"})
    assert spans[-1].attributes["qmp.qom-type"] == "secret"
    assert "canary" not in str(spans[-1].attributes)


async def test_a_command_that_is_not_answered() -> None:
    async with fake_qmp({}) as end, Qmp.connected(end, name="vm", transcript=Transcript(), timeout=5) as qmp:
        with pytest.raises(HypervisorError, match=r"did not answer query-status within 0\.05 s"):
            await qmp.execute("query-status", timeout=0.05)


async def test_a_monitor_that_breaks() -> None:
    async with monitor({"query-status": None}) as qmp:
        with pytest.raises(HypervisorError, match="monitor broke during query-status"):
            await qmp.execute("query-status")


async def test_a_monitor_that_never_greets() -> None:
    async with fake_qmp({}, greet=False) as end:
        with pytest.raises(HypervisorError, match=r"did not answer: nothing within 0\.05 s"):
            async with Qmp.connected(end, name="vm", transcript=Transcript(), timeout=0.05):
                pass


OK: Mapping[str, Any] = {"return": {}}
PLUGGED = {"getfd": OK, "netdev_add": OK, "device_add": OK, "netdev_del": OK, "closefd": OK}


def commands(transcript: Transcript, directory: Path) -> list[str]:
    transcript.save(directory / "qmp.log")
    lines = (directory / "qmp.log").read_text().splitlines()
    return [line.partition('"execute": "')[2].partition('"')[0] for line in lines if "-->" in line]


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ("", ["getfd", "getfd", "netdev_add", "device_add"]),
        ("netdev_add", ["getfd", "getfd", "netdev_add", "closefd", "closefd"]),
        ("device_add", ["getfd", "getfd", "netdev_add", "device_add", "netdev_del"]),
    ],
)
async def test_a_network_device_is_plugged_or_nothing_is(tmp_path: Path, refused: str, expected: list[str]) -> None:
    transcript = Transcript()
    answers = {**PLUGGED, **({refused: REFUSED} if refused else {})}
    with open("/dev/null") as tap:  # noqa: ASYNC230
        device = NetDevice("network-0", "0a:00", tap.fileno(), tap.fileno())
        async with fake_qmp(answers) as end, Qmp.connected(end, name="vm", transcript=transcript, timeout=5) as qmp:
            if refused:
                with pytest.raises(QmpError, match=refused):
                    await add_device(qmp, device, "port-0")
            else:
                await add_device(qmp, device, "port-0")
    assert commands(transcript, tmp_path) == expected


CHARDEV = {"getfd": OK, "chardev-add": OK, "device_add": OK, "chardev-remove": OK, "closefd": OK}


@pytest.mark.parametrize(
    ("device", "refused", "expected"),
    [
        (Vsock(3, chardev_fd=0), "", ["getfd", "chardev-add", "device_add"]),
        (VhostUserFs(0, "tag"), "", ["getfd", "chardev-add", "device_add"]),
        (VhostUserFs(0, "tag"), "chardev-add", ["getfd", "chardev-add", "closefd"]),
        (VhostUserFs(0, "tag"), "device_add", ["getfd", "chardev-add", "device_add", "chardev-remove"]),
        (Vsock(77, vhost_fd=0), "", ["getfd", "device_add"]),
        (Vsock(77, vhost_fd=0), "device_add", ["getfd", "device_add", "closefd"]),
    ],
)
async def test_other_devices_are_plugged_or_nothing_is(
    tmp_path: Path, device: Vsock | VhostUserFs, refused: str, expected: list[str]
) -> None:
    transcript = Transcript()
    answers = {**CHARDEV, **({refused: REFUSED} if refused else {})}
    with open("/dev/null") as fd:  # noqa: ASYNC230
        field = "vhost_fd" if isinstance(device, Vsock) and device.vhost_fd >= 0 else "chardev_fd"
        device = dataclasses.replace(device, **{field: fd.fileno()})  # type: ignore[arg-type]
        async with fake_qmp(answers) as end, Qmp.connected(end, name="vm", transcript=transcript, timeout=5) as qmp:
            with pytest.raises(QmpError, match=refused) if refused else nullcontext():
                await add_device(qmp, device, "port-0")
    assert commands(transcript, tmp_path) == expected
