"""The shared directory is the host's: root in the guest changes nothing but what is a container's own to write."""

import asyncio
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from kata_runtime.errors import KataError
from kata_runtime.mount_tree import mounted_below, unmount_below
from support.hostile import SHARE, Attacker, HostileGuest, bind_mount, plain_rootfs

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRIES = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(guest: HostileGuest) -> Attacker:
    """A workload without privileges, with a volume at /data."""
    volume = guest.scratch / "volume"
    volume.mkdir()
    return await guest.attacker("plain", privileged=False, mounts=[bind_mount(volume, "/data", "rw")])


@contextmanager
def filesystem(place: Path) -> Iterator[None]:
    """Something of the host's that is mounted."""
    subprocess.run(["mount", "-t", "tmpfs", "host", place], check=True)
    try:
        yield
    finally:
        unmount_below(place)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that no container has anything to do with; what it looks like inside one is looked up."""
    outside = tmp_path / "outside"
    (outside / "rootfs").mkdir(parents=True)
    (outside / "mounts").mkdir()
    return outside


async def test_nothing_at_the_top_can_be_changed(guest: HostileGuest, root: Attacker, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mounts = [bind_mount(tmp_path / "file", "/file")]
    workload = guest.workload("victim", plain_rootfs(tmp_path / "victim"), mounts=mounts)
    with guest.shared("victim", workload):
        told = await root.does(
            """
            top, own, at = share, f"{share}/root/rootfs", f"{share}/victim"
            os.symlink("/etc", f"{own}/evil")
            os.mkdir(f"{own}/moved")
            result = {}
            for place in (top, at, f"{at}/mounts"):
                for name, work in {
                    "mkdir": lambda: os.mkdir(f"{place}/made"),
                    "symlink": lambda: os.symlink("/etc", f"{place}/link"),
                    "create": lambda: write(f"{place}/file"),
                    "fifo": lambda: os.mkfifo(f"{place}/fifo"),
                    "chmod": lambda: os.chmod(place, 0o777),
                    "chown": lambda: os.chown(place, 1, 1),
                    "utime": lambda: os.utime(place, (0, 0)),
                    "xattr": lambda: os.setxattr(place, "user.x", b"x"),
                }.items():
                    result[f"{name} {place}"] = outcome(work)
            for name, work in {
                "rename": lambda: os.rename(at, f"{top}/elsewhere"),
                "exchange": lambda: exchange(at, f"{top}/root"),
                "rmdir": lambda: os.rmdir(os.path.realpath(f"{at}/mounts/{mount_name}")),
                "unlink": lambda: os.unlink(f"{at}/mounts/{file_name}"),
                "rename below": lambda: os.rename(f"{at}/rootfs", f"{at}/gone"),
            }.items():
                result[name] = outcome(work)
            # What crosses a mount can't be renamed at all.
            crossing = {
                "exchange with own": outcome(exchange, at, f"{own}/evil"),
                "move in": outcome(os.rename, f"{own}/moved", f"{top}/moved"),
                "move out": outcome(os.rename, at, f"{own}/victim"),
                "link in": outcome(lambda: os.link(f"{own}/evil", f"{top}/evil", follow_symlinks=False)),
            }
            result = [result, crossing]
            """,
            share=SHARE,
            mount_name=workload.rootfs.mounts[0].name,
            file_name=workload.rootfs.mounts[-1].name,
        )
    refused, crossing = told
    assert {name: what for name, what in refused.items() if what != "EROFS"} == {}
    assert set(crossing.values()) <= {"EXDEV", "EROFS"}


async def test_a_writable_root_is_written(guest: HostileGuest, root: Attacker, plain: Attacker) -> None:
    """What is refused elsewhere works where it should, or the other tests prove nothing."""
    assert await plain.does("write('/own'); write('/data/own'); result = outcome(os.mkdir, '/made')") == "done"
    assert (plain.rootfs / "own").read_text() == (guest.scratch / "volume/own").read_text() == "from the guest"
    assert await root.does("result = outcome(write, f'{share}/plain/rootfs/own')", share=SHARE) == "done"


async def test_exchange_while_the_host_shares(guest: HostileGuest, root: Attacker, outside: Path) -> None:
    """Root in the guest has a symlink take the place of each directory that the host is just filling."""
    bait = outside.parent / "bait"
    bait.mkdir()
    mounts = [bind_mount(bait, f"/bait/{number}") for number in range(60)]
    rootfs = plain_rootfs(outside.parent / "victim")
    racing = asyncio.create_task(
        root.does(
            """
            links = [link for link in (f"{share}/evil", f"{share}/root/rootfs/link")
                     if outcome(os.symlink, target, link) == "done"]
            number, end = 0, time.monotonic() + 60
            while number < tries and time.monotonic() < end and not os.path.exists("/stop"):
                for link in links:
                    if outcome(exchange, link, f"{share}/race{number}") == "done":
                        links = [f"{share}/race{number}"]
                        number += 1
                        break
                else:
                    if os.path.exists(f"{share}/race{number + 1}"):
                        number += 1
            result = number
            """,
            share=SHARE,
            target=str(outside),
            tries=TRIES,
        )
    )
    failed = 0
    for number in range(TRIES):
        workload = guest.workload(f"race{number}", rootfs, mounts=mounts)
        try:
            with guest.shared(f"race{number}", workload):
                # As long as it takes to make a container there.
                await asyncio.sleep(0.02)
        except (OSError, KataError):
            failed += 1
        await asyncio.sleep(0)
    (root.rootfs / "stop").touch()
    await racing
    found = sorted(path.name for path in outside.rglob("*")), mounted_below(outside), failed
    assert found == (["mounts", "rootfs"], [], 0)


async def test_symlinks_before_create(guest: HostileGuest, root: Attacker, outside: Path) -> None:
    told = await root.does(
        "result = [outcome(os.symlink, target, f'{share}/early'), outcome(os.mkdir, f'{share}/early2')]",
        share=SHARE,
        target=str(outside),
    )
    assert told == ["EROFS", "EROFS"]
    for name in ("early", "early2"):
        container = await guest.create(name, guest.workload(name, plain_rootfs(outside.parent / name)))
        await guest.remove(container)
    assert sorted(path.name for path in outside.rglob("*")) == ["mounts", "rootfs"]


async def test_symlinks_before_teardown(guest: HostileGuest, root: Attacker, outside: Path) -> None:
    name = "late"
    with filesystem(outside / "rootfs"):
        container = await guest.create(name, guest.workload(name, plain_rootfs(outside.parent / name)))
        told = await root.does(
            """
            result = [
                outcome(os.rename, f"{share}/late", f"{share}/away"),
                outcome(os.symlink, target, f"{share}/late"),
            ]
            """,
            share=SHARE,
            target=str(outside),
        )
        await guest.remove(container)
        assert mounted_below(outside) == [str(outside / "rootfs")]
    assert sorted(path.name for path in outside.rglob("*")) == ["mounts", "rootfs"]
    assert told[0] == "EROFS"


async def test_read_only_is_read_only(guest: HostileGuest, root: Attacker, tmp_path: Path) -> None:
    """A volume, what is mounted below it, and a root file system; by a mount that the guest's root made writable."""
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    (tmp_path / "single").write_text("the host's")
    rootfs = plain_rootfs(tmp_path / "rootfs")
    with filesystem(data / "below"):
        for file in (data / "file", data / "below/file", rootfs / "file"):
            file.write_text("the host's")
        mounts = [bind_mount(data, "/data", "rro"), bind_mount(tmp_path / "single", "/single", "ro")]
        workload = guest.workload("reader", rootfs, mounts=mounts, readonly=True)
        container = await guest.create("reader", workload)
        names = {mount.destination: mount.name for mount in workload.rootfs.mounts}
        told = await root.does(
            """
            mount("none", share, flags=32)  # MS_REMOUNT: with all else off, read-only too
            result = {}
            for place in places:
                place = f"{share}/reader/{place}"
                result[f"append {place}"] = outcome(write, f"{place}/file")
                result[f"truncate {place}"] = outcome(os.truncate, f"{place}/file", 0)
                result[f"create {place}"] = outcome(write, f"{place}/new")
                result[f"mkdir {place}"] = outcome(os.mkdir, f"{place}/made")
                result[f"unlink {place}"] = outcome(os.unlink, f"{place}/file")
                result[f"rename {place}"] = outcome(os.rename, f"{place}/file", f"{place}/other")
                result[f"chmod {place}"] = outcome(os.chmod, f"{place}/file", 0o4777)
                result[f"xattr {place}"] = outcome(os.setxattr, f"{place}/file", "user.x", b"x")
            result["single"] = outcome(write, f"{share}/reader/mounts/{single}")
            """,
            share=SHARE,
            places=["rootfs", f"mounts/{names['/data']}", f"mounts/{names['/data']}/below"],
            single=names["/single"],
        )
        await guest.remove(container)
        assert {name: what for name, what in told.items() if what != "EROFS"} == {}
        for file in (data / "file", data / "below/file", rootfs / "file", tmp_path / "single"):
            assert file.read_text() == "the host's"
            assert stat.S_IMODE(file.stat().st_mode) & 0o4002 == 0
        assert sorted(path.name for path in data.rglob("*")) == ["below", "file", "file"]


async def test_no_device_of_the_guest_is_one_on_the_host(guest: HostileGuest, root: Attacker, plain: Attacker) -> None:
    """/dev/null's numbers: harmless, and it opens wherever a device node is one."""
    code = """
    result = {}
    for place in places:
        for kind in ("S_IFCHR", "S_IFBLK"):
            node = f"{place}/{kind}-{who}"
            result[node] = outcome(os.mknod, node, 0o666 | getattr(stat, kind), os.makedev(1, 3))
        result[f"{place}/fifo-{who}"] = outcome(os.mkfifo, f"{place}/fifo-{who}")
    """
    volume = guest.scratch / "volume"
    name = next(path.name for path in (guest.directory.shared / "plain/mounts").iterdir() if "data" in path.name)
    told = await plain.does(code, places=["/", "/data"], who="plain")
    told |= await root.does(code, places=[f"{SHARE}/plain/rootfs", f"{SHARE}/plain/mounts/{name}"], who="root")
    assert {what for node, what in told.items() if "fifo" in node} == {"done"}
    assert {what for node, what in told.items() if "fifo" not in node} == {"EPERM"}
    made = [path for place in (plain.rootfs, volume) for path in place.iterdir()]
    assert [path for path in made if path.is_char_device() or path.is_block_device()] == []
    # One that the host itself made is none where it is shared.
    os.mknod(volume / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.close(os.open(volume / "null", os.O_RDONLY))
    with pytest.raises(PermissionError):
        os.open(guest.directory.shared / "plain/mounts" / name / "null", os.O_RDONLY)


async def test_a_volume_in_a_volume_that_the_guest_writes(guest: HostileGuest, plain: Attacker, outside: Path) -> None:
    """A plain workload has a symlink and a directory take turns, where the host looks for another one's volume."""
    (outside / "secret").touch()
    await plain.does("os.mkdir('/data/sub'); os.symlink(target, '/data/link'); result = True", target=str(outside))
    racing = asyncio.create_task(
        plain.does(
            """
            end = time.monotonic() + 60
            while not os.path.exists("/stop") and time.monotonic() < end:
                exchange("/data/sub", "/data/link")
            result = True
            """
        )
    )
    volume = guest.scratch / "volume"
    rootfs = plain_rootfs(outside.parent / "victim")
    stolen, given, refused = 0, 0, 0
    for number in range(TRIES):
        name = f"sub{number}"
        workload = guest.workload(name, rootfs, mounts=[bind_mount(volume / "sub", "/sub")])
        (shown,) = (mount.name for mount in workload.rootfs.mounts if mount.destination == "/sub")
        try:
            with guest.shared(name, workload):
                stolen += (guest.directory.shared / name / "mounts" / shown / "secret").exists()
                given += 1
        except KataError as error:
            refused += "symlink" in str(error)
        await asyncio.sleep(0.003)
    (plain.rootfs / "stop").touch()
    await racing
    assert (stolen, given + refused) == (0, TRIES)
    assert given > 0
    assert refused > 0


async def test_mount_points_of_a_read_only_root_are_made_inside(
    guest: HostileGuest, plain: Attacker, outside: Path
) -> None:
    """The host makes them in a tree that a container wrote: what its symlinks name is looked for inside."""
    await plain.does(
        """
        os.symlink(target, "/etc/away")
        os.symlink("../../../../.." + target, "/etc/up")
        os.symlink("loop", "/loop")
        result = True
        """,
        target=str(outside),
    )
    mounts = [bind_mount(outside.parent, f"/etc/{name}/made") for name in ("away", "up")]
    workload = guest.workload("inside", plain.rootfs, mounts=mounts, readonly=True)
    container = await guest.create("inside", workload)
    await guest.remove(container)
    assert sorted(path.name for path in outside.rglob("*")) == ["mounts", "rootfs"]
    assert (plain.rootfs / str(outside).lstrip("/") / "made").is_dir()
    circle = guest.workload("circle", plain.rootfs, mounts=[bind_mount(outside, "/loop/x")], readonly=True)
    with pytest.raises(KataError, match="/loop/x"):
        await guest.create("circle", circle)


async def test_a_plain_workload_has_no_way_to_the_share(plain: Attacker) -> None:
    told = await plain.does(
        """
        result = [outcome(mount, "kataShared", "/share", "virtiofs"), outcome(os.mkdir, "/../outside"),
                  outcome(os.link, "/data/own", "/linked")]
        """
    )
    assert told == ["EPERM", "done", "EXDEV"]
    assert (plain.rootfs / "outside").is_dir()
