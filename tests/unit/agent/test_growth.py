"""What has been plugged into a guest is taken into use."""

import errno
from pathlib import Path

import pytest

from kata_agent.errors import InvalidError, PreconditionError, SetupError, TimedOutError
from kata_agent.guest import growth
from kata_agent.guest.growth import Growth


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    for name, online in (("cpu1", "1"), ("cpu2", "0"), ("cpu3", "0"), ("cpufreq", "0")):
        (tmp_path / "devices/system/cpu" / name).mkdir(parents=True)
        (tmp_path / "devices/system/cpu" / name / "online").write_text(online)
    memory = tmp_path / "devices/system/memory"
    for name, state in (("memory0", "online"), ("memory16", "offline")):
        (memory / name).mkdir(parents=True)
        (memory / name / "state").write_text(f"{state}\n")
    (memory / "auto_online_blocks").write_text("offline\n")
    return tmp_path


async def test_cpus(sys: Path) -> None:
    assert await Growth(sys).online_cpus(2, wait=True) == 2
    for name in ("cpu1", "cpu2", "cpu3"):
        assert (sys / "devices/system/cpu" / name / "online").read_text() == "1"
    assert (sys / "devices/system/cpu/cpufreq/online").read_text() == "0"


async def test_cpus_that_do_not_come(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "WITHIN", 0.01)
    with pytest.raises(TimedOutError, match="of 3 CPUs that were to come 2 have within"):
        await Growth(sys).online_cpus(3, wait=True)
    assert await Growth(sys).online_cpus(3, wait=False) == 0


def test_memory(sys: Path) -> None:
    here = Growth(sys)
    here.prepare_memory()
    memory = sys / "devices/system/memory"
    assert (memory / "auto_online_blocks").read_text() == "online"
    assert here.online_memory() == 1
    assert (memory / "memory16/state").read_text() == "online"
    assert here.online_memory() == 0


def test_a_kernel_that_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="takes no more memory"):
        Growth(tmp_path).prepare_memory()


def test_addresses_of_memory(sys: Path) -> None:
    with pytest.raises(PreconditionError, match="finds memory by itself"):
        Growth(sys).probe([1 << 32])
    probe = sys / "devices/system/memory/probe"
    probe.write_text("")
    Growth(sys).probe([1 << 32])
    assert probe.read_text() == "0x100000000"
    with pytest.raises(InvalidError, match="1025 addresses"):
        Growth(sys).probe([0] * 1025)


@pytest.mark.parametrize("now", ["online", "offline"])
def test_memory_that_the_kernel_uses_by_itself_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    state = tmp_path / "devices/system/memory/memory34/state"
    state.parent.mkdir(parents=True)
    state.write_text("offline\n")
    write = Path.write_text

    def refuse(path: Path, _text: str) -> int:
        write(path, f"{now}\n")
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Path, "write_text", refuse)
    if now == "online":
        assert Growth(tmp_path).online_memory() == 1
    else:
        with pytest.raises(SetupError, match="memory34 can't be used: Invalid argument"):
            Growth(tmp_path).online_memory()
