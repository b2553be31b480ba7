"""Whatever talks at a guest's wish talks within bounds, and the host has time for others meanwhile."""

import time
from pathlib import Path

import pytest

from kata_runtime.helper_log import BURST, LAST, SIZE
from kata_runtime.sandbox.sandbox import SandboxState
from support.hostile import Attacker, HostileGuest

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOGS = Path(__file__).parents[2] / "artifacts/hostile-guest"
# The kernel tells of all tasks, by the names that they have given themselves.
_TASKS = """
    libc.prctl(15, name.encode(), 0, 0, 0)
    write("/proc/sysrq-trigger", "9")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write("/proc/sysrq-trigger", "t")
    result = "told"
"""


# A device's common configuration is the first thing in its BAR 4 (QEMU); QEMU tells of each write of what is no 1 to
# queue_enable (virtio 1.2, 4.1.4.3), and marks the device as broken.
_MMIO = """
    import glob, mmap
    os.makedirs("/tmp/sys", exist_ok=True)
    mount("sysfs", "/tmp/sys", "sysfs")
    [device] = [path for path in glob.glob("/tmp/sys/bus/virtio/devices/*") if open(f"{path}/device").read() == kind]
    card = os.path.dirname(os.path.realpath(device))
    # The kernel maps nothing that a driver uses (IO_STRICT_DEVMEM).
    write(f"{card}/driver/unbind", os.path.basename(card))
    write(f"{card}/enable", "1")
    file = os.open(f"{card}/resource4", os.O_RDWR | os.O_SYNC)
    memory = mmap.mmap(file, 4096)
    queue_enable = ctypes.c_uint16.from_buffer(memory, 28)
    begin = time.monotonic()
    for _ in range(count):
        queue_enable.value = 0
    result = time.monotonic() - begin
"""
_ENTROPY = "0x0004\n"
_WRITES = 300_000


async def test_mmio(root: Attacker, guest: HostileGuest) -> None:
    """QEMU says a line for each write to a register, and its log stays small, as what the host does about it."""
    log = LOGS / "qemu.log"
    before, used = log.stat().st_size, time.process_time()
    took = await root.does(_MMIO, kind=_ENTROPY, count=_WRITES)
    used = time.process_time() - used
    assert await root.does("result = 'here'") == "here"
    assert guest.sandbox.state is SandboxState.READY
    size = log.stat().st_size
    text = log.read_text()
    print(f"{_WRITES / took:.0f} lines a second, {used:.2f} s of ours for {took:.1f} s, {size - before} bytes")
    assert "wrong value for queue_enable" in text
    assert BURST // 2 < size <= SIZE + LAST
    # Each line is 60 bytes: nearly all of it was left out.
    assert size - before < _WRITES * 60 / 10
    assert used < took / 2 + 1


# QEMU writes what comes to port 0x402 into the firmware's log: mov rcx, rdx; mov edx, edi; rep outsb; ret.
_PORT = """
    import mmap
    checked(libc.ioperm(ctypes.c_ulong(0x402), ctypes.c_ulong(1), 1))
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("4889d1 89fa f36e c3"))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_char_p, ctypes.c_long)
    out = kind(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    data = line.encode()
    for _ in range(lines):
        out(0x402, data, len(data))
    result = "written"
"""


async def test_the_firmwares_port(root: Attacker) -> None:
    line = "\x1b]0;owned\x07" + "x" * 90 + "\n"
    assert await root.does(_PORT, line=line, lines=5000) == "written"
    log = LOGS / "firmware.log"
    assert BURST // 2 < log.stat().st_size <= SIZE + LAST
    text = log.read_text()
    assert r"0;owned\x07" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert await root.does("result = 'here'") == "here"


async def test_the_console(root: Attacker) -> None:
    log = LOGS / "console.log"
    assert await root.does(_TASKS, name="\x1b]0;owned\x07", seconds=20) == "told"
    size = log.stat().st_size
    assert BURST < size <= SIZE + LAST
    text = log.read_text()
    assert r"0;owned\x07" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert await root.does("result = 'here'") == "here"
