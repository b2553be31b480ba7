"""Which processes of a sandbox are in which cgroups, and what is left of them."""

import json
import os
import stat
from pathlib import Path

import pytest

from kata_runtime.errors import HostError
from kata_runtime.sandbox.placement import Placement, placed, placement_of, reachable_score, remove_leftover


@pytest.fixture
def tops(tmp_path: Path) -> list[Path]:
    """Two hierarchies."""
    found = [tmp_path / "memory", tmp_path / "unified"]
    for top in found:
        top.mkdir()
    return found


def names(tops: list[Path]) -> list[list[str]]:
    return [sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_dir()) for top in tops]


def test_what_a_specification_says() -> None:
    spec = {"linux": {"cgroupsPath": "/pod/a"}, "process": {"oomScoreAdj": 1000}}
    assert placement_of(spec, whole=True) == Placement("/pod/a", 1000, whole=True)
    assert placement_of({}) == Placement()


@pytest.mark.parametrize("only", [True, False])
async def test_all_together_or_the_machine_alone(only: bool, tmp_path: Path, tops: list[Path]) -> None:
    record = tmp_path / "cgroups.json"
    async with placed(Placement("/pod/a", 500), "s1", only=only, record=record, tops=tops) as cages:
        machine = tuple(f"{top}/pod/kata_a/cgroup.procs" for top in tops)
        overhead = tuple(f"{top}/kata_overhead/s1/cgroup.procs" for top in tops)
        assert cages.machine.cgroups == machine
        assert cages.helpers.cgroups == (machine if only else overhead)
        assert cages.machine.oom_score_adj == cages.helpers.oom_score_adj == 500
        told = {f"{path}/cgroup.procs" for path in json.loads(record.read_text())}
        assert told == {*machine, *(() if only else overhead)}
    assert names(tops) == [[], []]
    assert not record.exists()


async def test_the_shim_goes_where_its_sandbox_is(tmp_path: Path, tops: list[Path]) -> None:
    record = tmp_path / "cgroups.json"
    async with placed(Placement("/pod/a", whole=True), "s1", only=True, record=record, tops=tops):
        assert [(top / "pod/kata_a/cgroup.procs").read_text() for top in tops] == ["0", "0"]
        for top in tops:  # a real one is no file that could be in rmdir's way
            (top / "pod/kata_a/cgroup.procs").unlink()


async def test_what_a_killed_runtime_leaves(tmp_path: Path, tops: list[Path]) -> None:
    record = tmp_path / "cgroups.json"
    made = placed(Placement("/pod/a"), "s1", only=False, record=record, tops=tops)
    await made.__aenter__()
    assert names(tops) != [[], []]
    remove_leftover(record)
    assert names(tops) == [["kata_overhead", "pod"], ["kata_overhead", "pod"]]  # their parents are anybody's


async def test_where_no_cgroup_can_be_made(tmp_path: Path) -> None:
    """A place that is asked for is missed; else the sandbox runs where its maker is."""
    tops, record = [tmp_path / "a file"], tmp_path / "cgroups.json"
    tops[0].write_text("")
    with pytest.raises(HostError, match="Not a directory"):
        async with placed(Placement("/pod/a"), "s1", only=True, record=record, tops=tops):
            pass
    async with placed(Placement(oom_score_adj=7), "s1", only=True, record=record, tops=tops) as cages:
        assert cages.machine.cgroups == ()
        assert cages.machine.oom_score_adj == 7


SYSTEMD_RUN = """#!/bin/sh
for top in {tops}; do mkdir -p "$top/kube.slice/cri-kata_a.scope"; done
echo "$@" >{log}
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


def systemd_run(directory: Path, script: str) -> None:
    program = directory / "systemd-run"
    program.write_text(script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


async def test_systemd_makes_a_scope(tmp_path: Path, tops: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    systemd_run(tmp_path, SYSTEMD_RUN.format(tops=" ".join(map(str, tops)), log=log))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    record = tmp_path / "cgroups.json"
    async with placed(Placement("kube.slice:cri:a"), "s1", only=True, record=record, tops=tops) as cages:
        assert cages.machine.cgroups == tuple(f"{top}/kube.slice/cri-kata_a.scope/cgroup.procs" for top in tops)
        told = log.read_text()
    assert "--scope" in told
    assert "--slice=kube.slice" in told
    assert "--unit=cri-kata_a.scope" in told


async def test_systemd_refuses(tmp_path: Path, tops: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    systemd_run(tmp_path, "#!/bin/sh\necho Failed to connect to bus >&2\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match=r"cri-kata_a\.scope in kube\.slice: Failed to connect to bus"):
        async with placed(Placement("kube.slice:cri:a"), "s1", only=True, record=tmp_path / "r", tops=tops):
            pass


@pytest.mark.parametrize(
    ("asked", "own", "capabilities", "had"),
    [
        (None, 0, "0000000000000000", None),
        (500, 0, "0000000000000000", 500),
        (0, 0, "0000000000000000", 0),
        (-998, 0, "000001fffeffffff", None),
        (-998, 0, "000001ffffffffff", -998),
        (5, 10, "000001fffeffffff", None),
    ],
)
def test_who_may_not_lower_its_score_keeps_it(
    tmp_path: Path, asked: int | None, own: int, capabilities: str, had: int | None
) -> None:
    (tmp_path / "status").write_text(f"Name:\tx:y\nCapEff:\t{capabilities}\n")
    (tmp_path / "oom_score_adj").write_text(f"{own}\n")
    assert reachable_score(asked, tmp_path) == had
