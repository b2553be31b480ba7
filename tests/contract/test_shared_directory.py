"""What the guest is shown, and what of it can be written: by the real mounts, without a guest."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.mount import Mount
from kata_runtime.mount_tree import attached, copied_path, mounted_below, unmount_below
from kata_runtime.oci.spec import HostMount
from kata_runtime.sandbox.rootfs import Rootfs, share_rootfs, shared_directory
from kata_runtime.sandbox.state import Directories, SandboxDirectory
from support.own_mounts import own_mounts


@pytest.fixture
def directory(tmp_path: Path) -> SandboxDirectory:
    directory = SandboxDirectory(Directories(tmp_path / "run", tmp_path / "layers"), "box")
    for path in (directory.mounts, directory.shared, directory.layers):
        path.mkdir(parents=True)
    return directory


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (rootfs / "file").write_text("the host's")
    return rootfs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    return data


def tmpfs(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)


def error_of(work: Callable[[], object]) -> int:
    try:
        work()
    except OSError as error:
        return error.errno or 0
    return 0


def flags(place: Path) -> int:
    return os.statvfs(place).f_flag


HARMLESS = os.ST_NODEV | os.ST_NOSUID | os.ST_NOEXEC


def volume(source: Path, *, readonly: bool = False, follows: bool = False, deep: bool = False) -> HostMount:
    return HostMount(str(source), source.name, f"/{source.name}", readonly, follows, deep)


@own_mounts
def test_what_is_mounted_for_a_container_is_shared(directory: SandboxDirectory, rootfs: Path, data: Path) -> None:
    before = mounted_below(directory.run)
    (data / "file").touch()
    files = volume(data), HostMount(str(data / "file"), "one", "/one", readonly=False)
    with shared_directory(directory):
        with share_rootfs(directory, "c", Rootfs(rootfs, mounts=files)):
            shown = directory.shared / "c"
            (shown / "rootfs/new").write_text("x")
            (shown / "mounts/data/new").write_text("x")
            (shown / "mounts/one").write_text("x")
            assert (rootfs / "new").read_text() == (data / "new").read_text() == (data / "file").read_text() == "x"
            for place in (directory.shared, shown, shown / "mounts"):
                assert error_of((place / "made").mkdir) == errno.EROFS
                assert error_of(partial(place.rename, place.with_name("x"))) in (errno.EROFS, errno.EBUSY)
            for place in (shown, shown / "rootfs", shown / "mounts/data", shown / "mounts/one"):
                assert flags(place) & HARMLESS == HARMLESS
        assert list(directory.shared.iterdir()) == list(directory.mounts.iterdir()) == []
    assert mounted_below(directory.run) == before
    assert (rootfs / "new").exists()


@own_mounts
def test_a_helper_that_started_before_gets_later_mounts(directory: SandboxDirectory, rootfs: Path) -> None:
    """As virtiofsd does: a namespace of its own, in which all is a slave, and a bind of the directory."""
    script = 'mount --rbind "$0" "$0"; cd "$0"; echo; read go; cat c/rootfs/file; mkdir x || echo; read go; ls'
    with shared_directory(directory):
        argv = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, str(directory.shared)]
        helper = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert helper.stdin is not None
        assert helper.stdout is not None
        assert helper.stdout.readline() == b"\n"
        with share_rootfs(directory, "c", Rootfs(rootfs)):
            helper.stdin.write(b"\n")
            helper.stdin.flush()
            assert helper.stdout.readline() == b"the host's\n"
        told, errors = helper.communicate(b"\n")
    assert told == b""
    assert b"Read-only file system" in errors


@own_mounts
def test_read_only_is_so_below_as_well(directory: SandboxDirectory, rootfs: Path, data: Path) -> None:
    tmpfs(data / "below")
    mounts = (volume(data, readonly=True, deep=True),)
    wanted = Rootfs(rootfs, readonly=True, mounts=mounts, points=("/a/b", "/data", "/file"))
    with shared_directory(directory), share_rootfs(directory, "c", wanted):
        shown = directory.shared / "c"
        for place in (shown / "rootfs", shown / "mounts/data", shown / "mounts/data/below"):
            assert error_of((place / "new").touch) == errno.EROFS
            assert flags(place) & HARMLESS == HARMLESS
            assert error_of((directory.mounts / place.relative_to(directory.shared) / "new").touch) == errno.EROFS
        assert (shown / "rootfs/a/b").is_dir()
    (data / "below/host").touch()  # the host's own mount is as it was
    assert (rootfs / "file").read_text() == "the host's"


@own_mounts
def test_read_only_alone_leaves_what_is_mounted_below(directory: SandboxDirectory, rootfs: Path, data: Path) -> None:
    """As with runc. Who wants all of it read-only has a mount of its own, whichever comes first."""
    tmpfs(data / "below")
    wanted = {"plain": volume(data, readonly=True), "deep": volume(data, readonly=True, deep=True)}
    for order in (("plain", "deep"), ("deep", "plain")):
        with shared_directory(directory), ExitStack() as stack:
            for name in order:
                stack.enter_context(share_rootfs(directory, name, Rootfs(rootfs, mounts=(wanted[name],))))
            shown = {name: directory.shared / name / "mounts/data" for name in order}
            assert error_of((shown["plain"] / "new").touch) == errno.EROFS
            (shown["plain"] / "below/new").touch()
            assert flags(shown["plain"] / "below") & HARMLESS == HARMLESS
            assert error_of((shown["deep"] / "below/other").touch) == errno.EROFS
        (data / "below/new").unlink()


@own_mounts
def test_what_is_mounted_later(directory: SandboxDirectory, rootfs: Path, data: Path, tmp_path: Path) -> None:
    """It shows in a volume, but in a read-only one only where that was asked for: it comes with the host's flags. Who
    shares a writer's mount protects itself by the guest's.
    """
    tmpfs(tmp_path)  # all of it in a mount of its own, which is shared
    subprocess.run(["mount", "--make-shared", tmp_path], check=True)
    for path in (directory.mounts, directory.shared, rootfs, data / "below"):
        path.mkdir(parents=True)
    mounts = {
        "closed": volume(data, readonly=True),
        "follows": volume(data, readonly=True, follows=True),
        "writable": volume(data),
        "with the writer": volume(data, readonly=True),
    }
    with shared_directory(directory), ExitStack() as stack:
        for name, mount in mounts.items():
            stack.enter_context(share_rootfs(directory, name, Rootfs(rootfs, mounts=(mount,))))
        tmpfs(data / "below")
        (data / "below/file").touch()
        shown = {name: (directory.shared / name / "mounts/data/below/file").exists() for name in mounts}
        assert shown == {"closed": False, "follows": True, "writable": True, "with the writer": True}


@own_mounts
def test_a_throwaway_layer(directory: SandboxDirectory, rootfs: Path) -> None:
    rootfs.chmod(0o751)
    with shared_directory(directory):
        with share_rootfs(directory, "c", Rootfs(rootfs, ephemeral=True)):
            shown = directory.shared / "c/rootfs"
            (shown / "file").write_text("the guest's")
            assert flags(shown) & HARMLESS == HARMLESS
            assert stat.S_IMODE(shown.stat().st_mode) == 0o751
            assert [place for place in mounted_below(directory.layers) if place != str(directory.layers)] == []
        wanted = Rootfs(rootfs, ephemeral=True, readonly=True, points=("/made",))
        with share_rootfs(directory, "d", wanted):
            shown = directory.shared / "d/rootfs"
            assert (shown / "made").is_dir()
            assert error_of((shown / "new").touch) == errno.EROFS
    assert sorted(path.name for path in rootfs.iterdir()) == ["file"]
    assert (rootfs / "file").read_text() == "the host's"


@own_mounts
def test_layers_of_containerd(directory: SandboxDirectory, rootfs: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle-rootfs"
    target.mkdir()
    layers = (Mount("bind", str(rootfs), ("rbind", "ro")),)
    with shared_directory(directory), share_rootfs(directory, "c", Rootfs(target, layers=layers)):
        assert (directory.shared / "c/rootfs/file").read_text() == "the host's"
        assert error_of((directory.shared / "c/rootfs/new").touch) == errno.EROFS
    assert mounted_below(target) == []


@own_mounts
def test_a_failure_leaves_nothing(directory: SandboxDirectory, rootfs: Path, tmp_path: Path) -> None:
    missing = Rootfs(rootfs, mounts=(volume(rootfs), volume(tmp_path / "missing")))
    unmade = Rootfs(rootfs, readonly=True, points=("/file/x",))
    with shared_directory(directory):
        before = mounted_below(directory.run)
        for wanted, message in ((missing, "missing, which is not there"), (unmade, "has no '/file/x' to mount at")):
            with pytest.raises(RootfsError, match=message), share_rootfs(directory, "c", wanted):
                pass
            assert mounted_below(directory.run) == before
            assert list(directory.mounts.iterdir()) == []


@own_mounts
def test_nothing_is_attached_through_a_symlink(tmp_path: Path, rootfs: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "place").mkdir(parents=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(outside)
    for name in ("link", "link/place", "../outside/place"):
        with pytest.raises(RootfsError), copied_path(rootfs) as tree, attached(tree, home, name):
            pass
    assert mounted_below(tmp_path) == []


@own_mounts
def test_unmounting_follows_nothing_that_a_guest_left(tmp_path: Path) -> None:
    """A guest moved the directory of a mount point; a symlink in its place leads to a mount of the host."""
    volume, outside = tmp_path / "run/volume with blanks\\", tmp_path / "outside"
    for path in (volume / "a/b", outside / "b"):
        path.mkdir(parents=True)
    for place in (volume, outside / "b"):
        tmpfs(place)
    (volume / "a/b").mkdir(parents=True)
    for place in (volume / "a/b", volume / "a/b"):  # one over the other
        tmpfs(place)
    (volume / "a").rename(volume / "moved")
    (volume / "a").symlink_to(outside)
    assert len(mounted_below(tmp_path / "run")) == 3
    unmount_below(tmp_path / "run")
    assert mounted_below(tmp_path) == [str(outside / "b")]
    unmount_below(tmp_path / "run")


@own_mounts
def test_a_dead_sandbox_is_removed_with_what_is_mounted(
    directory: SandboxDirectory, rootfs: Path, data: Path, tmp_path: Path
) -> None:
    tmpfs(data / "below")
    outside = tmp_path / "outside"
    outside.mkdir()
    stack = ExitStack()
    stack.enter_context(shared_directory(directory))
    stack.enter_context(share_rootfs(directory, "c", Rootfs(rootfs, mounts=(volume(data),))))
    (rootfs / "link").symlink_to(outside)
    assert directory.roots.sweep() == ["box"]
    assert mounted_below(tmp_path) == [str(data / "below")]
    assert not directory.run.exists()
    assert (rootfs / "file").exists()
    assert outside.exists()


@own_mounts
def test_one_mount_of_a_directory(directory: SandboxDirectory, rootfs: Path, data: Path, tmp_path: Path) -> None:
    """However often it is mounted, by whatever path; of one that nobody writes, a read-only one."""
    other, only = tmp_path / "other", tmp_path / "only"
    for path in (other, only):
        path.mkdir()
    (tmp_path / "link").symlink_to(data)
    subprocess.run(["mount", "--bind", data, other], check=True)
    again = HostMount(str(other), "again", "/again", readonly=True)
    linked = HostMount(str(tmp_path / "link"), "linked", "/linked", readonly=False)

    def places(share: str) -> dict[str, str]:
        return {link.name: str(link.readlink()) for link in (directory.mounts / share / "mounts").iterdir()}

    with shared_directory(directory):
        with share_rootfs(directory, "first", Rootfs(rootfs, mounts=(volume(data, readonly=True),))):
            with share_rootfs(
                directory, "a", Rootfs(rootfs, mounts=(again, volume(data), volume(only, readonly=True)))
            ):
                found = places("a")
                assert found["again"] == found["data"] != found["only"]
                # It came before there was anybody to share with.
                assert found["data"] not in places("first").values()
                with share_rootfs(directory, "b", Rootfs(rootfs, mounts=(linked, volume(only, readonly=True)))):
                    assert places("b") == {"linked": found["data"], "only": found["only"]}
            assert len(list((directory.mounts / "~volumes").iterdir())) == 1
        assert list(directory.mounts.iterdir()) == []


@pytest.mark.parametrize("propagates", [False, True])
def test_another_tree_below_is_another_mount(
    directory: SandboxDirectory, rootfs: Path, data: Path, tmp_path: Path, propagates: bool
) -> None:
    """What the host has mounted since is in the mount that is there, or that is none to share."""

    @own_mounts
    def work() -> None:
        tmpfs(tmp_path)
        subprocess.run(["mount", "--make-shared" if propagates else "--make-private", tmp_path], check=True)
        for path in (directory.mounts, directory.shared, rootfs, data / "below"):
            path.mkdir(parents=True)
        with (
            shared_directory(directory),
            share_rootfs(directory, "a", Rootfs(rootfs, mounts=(volume(data),))) as before,
        ):
            tmpfs(data / "below")
            with share_rootfs(directory, "b", Rootfs(rootfs, mounts=(volume(data),))) as after:
                assert len(before.directories) == 2
                assert after.directories[1] == f"{after.directories[0]}/below"
                assert after.directories[2].endswith("/b/rootfs")
                assert (before.directories[0] == after.directories[0]) is propagates

    work()


@own_mounts
def test_an_empty_dir_awaits_its_writer(directory: SandboxDirectory, rootfs: Path, tmp_path: Path) -> None:
    data = tmp_path / "pods/u/volumes/kubernetes.io~empty-dir/data"
    data.mkdir(parents=True)
    with (
        shared_directory(directory),
        share_rootfs(directory, "a", Rootfs(rootfs, mounts=(volume(data, readonly=True),))),
        share_rootfs(directory, "b", Rootfs(rootfs, mounts=(volume(data),))),
    ):
        assert len({(directory.mounts / name / "mounts/data").readlink() for name in ("a", "b")}) == 1


@own_mounts
def test_an_empty_dir_of_memory_is_the_guests(directory: SandboxDirectory, rootfs: Path, tmp_path: Path) -> None:
    data = tmp_path / "pods/u/volumes/kubernetes.io~empty-dir/data"
    data.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=2750", "tmpfs", data], check=True)
    with shared_directory(directory):
        with share_rootfs(directory, "a", Rootfs(rootfs, mounts=(volume(data),))) as first:
            pass
        with share_rootfs(directory, "b", Rootfs(rootfs, mounts=(volume(data, readonly=True),))) as second:
            assert str((directory.mounts / "b/mounts/data").readlink()) == second.memory[0].place
        assert first.memory == second.memory
        assert (first.memory[0].size, first.memory[0].mode) == (1 << 20, 0o2750)
