"""Where a sandbox is in the host's cgroups. The real ones take part in tests/hostile and tests/vm."""

import os
from pathlib import Path

import pytest

from kata_runtime.errors import HostError
from kata_runtime.sandbox import cgroup as module
from kata_runtime.sandbox.cgroup import CgroupPlace, HostCgroup, hierarchies, opened

POD = "/kubepods/burstable/pod12"

PLACES = {
    "cgroupfs": (f"{POD}/abc", f"{POD}/kata_abc"),
    "relative, as ctr's": ("default/abc", "/default/kata_abc"),
    "none": ("", "/kata_sandbox"),
    "the top": ("/", "/kata_sandbox"),
    "a way out": ("/../../etc/abc", "/etc/kata_abc"),
    "a way out that is relative": ("../../abc", "/kata_abc"),
    "colons in an absolute path": ("/a:b:c", "/kata_a:b:c"),
    "trailing slash": (f"{POD}/abc/", f"{POD}/kata_abc"),
}


@pytest.mark.parametrize(("given", "path"), PLACES.values(), ids=PLACES)
def test_places(given: str, path: str) -> None:
    assert CgroupPlace.of(given, "sandbox") == CgroupPlace(path)


def test_systemd() -> None:
    place = CgroupPlace.of("kubepods-burstable-pod12.slice:cri-containerd:abc", "sandbox")
    slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12.slice"
    scope = "cri-containerd-kata_abc.scope"
    assert place == CgroupPlace(f"{slices}/{scope}", "kubepods-burstable-pod12.slice", scope)
    assert CgroupPlace.of(":docker:abc", "sandbox").path == "/system.slice/docker-kata_abc.scope"
    assert CgroupPlace.of("-.slice:docker:abc", "sandbox").path == "/docker-kata_abc.scope"


@pytest.mark.parametrize(
    "bad", ["x:y:z", "a--b.slice:c:d", "../a.slice:c:d", "a.slice:../c:d", "a.slice:c:d/../../e", "a.slice:c:\n", "::"]
)
def test_what_systemd_would_not_take(bad: str) -> None:
    if bad == "::":
        assert CgroupPlace.of(bad, "sandbox").scope == "kata_.scope"
        return
    with pytest.raises(HostError, match="cgroupsPath"):
        CgroupPlace.of(bad, "sandbox")


def test_hierarchies_of_both_versions(tmp_path: Path) -> None:
    lines = (
        "24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw",
        "25 24 0:22 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory",
        "26 24 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        "27 24 0:22 / /elsewhere/memory rw - cgroup cgroup rw,memory",
        "28 24 0:22 /docker/abc /sub rw - cgroup cgroup rw,pids",
    )
    (tmp_path / "mountinfo").write_text("\n".join(lines))
    assert hierarchies(tmp_path / "mountinfo") == [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/unified")]


def test_made_and_removed_with_its_parents(tmp_path: Path) -> None:
    tops = [tmp_path / "memory", tmp_path / "unified"]
    for top in tops:
        top.mkdir()
    (tops[0] / "kubepods").mkdir()
    with opened(CgroupPlace.of("/kubepods/pod1/abc", "x"), tops) as cgroup:
        assert cgroup.directories == tuple(top / "kubepods/pod1/kata_abc" for top in tops)
        assert all(directory.is_dir() for directory in cgroup.directories)
        assert cgroup.procs == tuple(f"{directory}/cgroup.procs" for directory in cgroup.directories)
    assert [sorted(str(path.relative_to(top)) for path in top.rglob("*")) for top in tops] == [["kubepods"], []]


def test_one_that_was_there_stays_usable(tmp_path: Path) -> None:
    """As a killed runtime leaves it."""
    (tmp_path / "kata_abc").mkdir()
    with opened(CgroupPlace.of("abc", "x"), [tmp_path]) as cgroup:
        assert cgroup.directories == (tmp_path / "kata_abc",)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    tops = [tmp_path / "memory", tmp_path / "unified"]
    tops[0].mkdir()
    tops[1].write_text("no directory")
    with (
        pytest.raises(HostError, match=r"unified/a: Not a directory"),
        opened(CgroupPlace.of("/a/b", "x"), tops),
    ):
        pass
    assert list(tops[0].iterdir()) == []


def test_what_can_not_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "kata_a").mkdir()
    (tmp_path / "kata_a/child").mkdir()
    assert HostCgroup([tmp_path / "kata_a"]).remove() == [f"{tmp_path / 'kata_a'} (Directory not empty)"]


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are root's")
def test_the_real_ones_take_a_process_and_lose_it(tmp_path: Path) -> None:
    import subprocess

    name = f"kata-test-{os.getpid()}"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        with opened(CgroupPlace.of(f"/{name}/inner", "x"), hierarchies()) as cgroup:
            cgroup.join(child.pid)
            told = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
            assert sum(line.endswith(f":/{name}/kata_inner") for line in told) == len(cgroup.directories) > 0
        # It lives on, at the top.
        assert name not in Path(f"/proc/{child.pid}/cgroup").read_text()
        assert child.stdin is not None
        child.stdin.close()
    assert not [top for top in hierarchies() if (top / name).exists()]


def test_nobody_waits_for_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim is in its pod's cgroup; another hierarchy is busy for a moment, for a process that ends."""
    waited: list[int] = []
    inside = [tmp_path / top / "kata_a" for top in ("cpu", "memory")]
    for directory in inside:
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(f"{os.getpid()}\n")
        (directory.parent / "cgroup.procs").touch()
    emptied = module._empty

    def empty(directory: Path) -> None:
        emptied(directory)
        (directory / "cgroup.procs").unlink()

    def removed(directory: Path) -> bool:
        # Nobody is left in any of them before one is removed.
        assert not [each for each in inside if (each / "cgroup.procs").exists()]
        return False

    monkeypatch.setattr(module, "_empty", empty)
    monkeypatch.setattr(module, "_removed", removed)
    monkeypatch.setattr(module, "_is_member", lambda process, _: process.name in (str(os.getpid()), "self"))
    monkeypatch.setattr(os, "pidfd_open", waited.append)
    assert HostCgroup(inside).remove() == []
    assert waited == []
    assert not any(directory.exists() for directory in inside)
