"""Volumes in a real guest: what two containers of a sandbox share is one, as on the host."""

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kata_runtime.errors import RootfsError
from kata_runtime.mount import private_mount_namespace
from kata_runtime.mount_tree import unmount_below
from support import leaks
from support.hostile import Attacker, HostileGuest, bind_mount, hostile_guest, plain_rootfs

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@contextmanager
def filesystem(place: Path, *options: str) -> Iterator[None]:
    """A tmpfs of the host's."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "host", place], check=True)
    try:
        yield
    finally:
        unmount_below(place)


@dataclass
class Pod:
    """Two containers that write /data, and one that only reads it and came first."""

    guest: HostileGuest
    reader: Attacker
    one: Attacker
    other: Attacker
    data: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(guest_image: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pod]:
    """A sandbox in this process, whose mounts are its own."""
    private_mount_namespace()
    before = leaks.look()
    scratch = tmp_path_factory.mktemp("host")
    data = scratch / "pods/u/volumes/kubernetes.io~empty-dir/data"
    memory = scratch / "pods/u/volumes/kubernetes.io~empty-dir/memory"
    with filesystem(data / "below/one"), filesystem(data / "below/two"), filesystem(memory, "-o", "size=8m,mode=2770"):
        for name in ("one", "two"):
            (data / f"below/{name}/file").write_text(name)
        (scratch / "only").mkdir()
        async with hostile_guest(scratch, tmp_path_factory.mktemp("logs")) as guest:

            async def container(name: str, *options: str) -> Attacker:
                mounts = [
                    bind_mount(data, "/data", *options),
                    bind_mount(memory, "/memory", *options),
                    bind_mount(scratch / "only", "/only", "ro"),
                ]
                return await guest.attacker(name, privileged=False, mounts=mounts)

            reader = await container("reader", "rro")
            one, other = await container("one"), await container("other")
            yield Pod(guest, reader, one, other, data)
    assert leaks.look(before).left_since(before) == []


SERVE = """
    import socket, threading
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    def serve():
        end, _ = listener.accept()
        end.sendall(b"served")
        end.close()
    threading.Thread(target=serve, daemon=True).start()
    __import__("builtins").kept = listener
"""
ASK = """
    import socket
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)
    result = end.recv(10).decode()
"""


@pytest.mark.parametrize("place", ["/data", "/data/below/one", "/memory"])
async def test_a_socket_of_one_is_the_others(pod: Pod, place: str) -> None:
    await pod.one.does(SERVE, path=f"{place}/socket")
    assert await pod.other.does(ASK, path=f"{place}/socket") == "served"
    await pod.one.does(SERVE, path=f"{place}/second")
    assert await pod.reader.does(ASK, path=f"{place}/second") == "served"


@pytest.mark.parametrize("place", ["/data", "/data/below/two", "/memory"])
@pytest.mark.parametrize("kind", ["flock", "lockf"])
async def test_locks_are_seen(pod: Pod, place: str, kind: str) -> None:
    hold = """
        import fcntl, builtins
        builtins.held = open(path, "a+")
        result = outcome(getattr(fcntl, kind), builtins.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    """
    names = {"path": f"{place}/{kind}", "kind": kind}
    assert await pod.one.does(hold, **names) == "done"
    assert await pod.other.does(hold, **names) == "EAGAIN"
    await pod.one.does("import builtins; builtins.held.close()")
    assert await pod.other.does(hold, **names) == "done"
    assert await pod.one.does(hold, **names) == "EAGAIN"
    await pod.other.does("import builtins; builtins.held.close()")


@pytest.mark.parametrize("place", ["/data", "/memory"])
async def test_mapped_memory_is_one(pod: Pod, place: str) -> None:
    await pod.one.does("write(path, 'x' * 4096)", path=f"{place}/mapped")
    for who in (pod.one, pod.other, pod.reader):
        await who.does(
            """
            import mmap, builtins
            mode, access = ("r+b", mmap.ACCESS_WRITE) if os.access(path, os.W_OK) else ("rb", mmap.ACCESS_READ)
            with open(path, mode) as file:
                builtins.mapped = mmap.mmap(file.fileno(), 4096, access=access)
            """,
            path=f"{place}/mapped",
        )
    await pod.one.does("import builtins; builtins.mapped[:5] = b'hello'")
    for who in (pod.other, pod.reader):
        assert await who.does("import builtins; result = builtins.mapped[:5].decode()") == "hello"
    await pod.other.does("import builtins; builtins.mapped[:5] = b'there'")
    assert await pod.one.does("import builtins; result = builtins.mapped[:5].decode()") == "there"


async def test_two_writers_of_a_database(pod: Pod) -> None:
    write = """
        import sqlite3
        base = sqlite3.connect("/data/base", timeout=120, isolation_level=None)
        base.execute("pragma synchronous = off")
        for number in range(40):
            base.execute("begin immediate")
            (count,) = base.execute("select count(*) from rows where who = ?", (who,)).fetchone()
            base.execute("insert into rows values (?, ?)", (who, count))
            base.execute("commit")
        base.close()
    """
    read = """
        import sqlite3
        base = sqlite3.connect("/data/base")
        result = [base.execute("pragma integrity_check").fetchall(),
                  base.execute("select who, count(distinct number) from rows group by who order by who").fetchall()]
    """
    # Who else is there while it is changed is turned away, not waited for.
    make = """
        import sqlite3
        base = sqlite3.connect("/data/base")
        base.execute("create table if not exists rows (who text, number integer)")
        base.execute(f"pragma journal_mode = {mode}").fetchall()
        base.close()
    """
    for mode, rows in (("delete", 40), ("wal", 80)):
        await pod.one.does(make, mode=mode)
        await asyncio.gather(*(who.does(write, who=name) for who, name in ((pod.one, "a"), (pod.other, "b"))))
        assert await pod.other.does(read) == [[["ok"]], [["a", rows], ["b", rows]]]


async def test_file_systems_below_a_volume_are_apart(pod: Pod) -> None:
    """Files of equal numbers in two file systems are no same files."""
    told = await pod.one.does(
        """
        one, two = (os.stat(f"/data/below/{name}/file") for name in ("one", "two"))
        result = [one.st_ino == two.st_ino, os.path.samestat(one, two), os.stat("/data").st_dev != os.stat("/").st_dev]
        """
    )
    assert told == [True, False, True]


async def test_who_may_only_read_reads(pod: Pod) -> None:
    told = await pod.reader.does(
        """
        places = ("/data", "/data/below/one", "/data/below/two", "/memory", "/only")
        result = {place: outcome(write, f"{place}/new") for place in places}
        """
    )
    assert set(told.values()) == {"EROFS"}
    assert (await pod.one.does("result = outcome(write, '/data/below/two/new')")) == "done"
    assert (pod.data / "below/two/new").read_text() == "from the guest"


async def test_memory_is_the_guests(pod: Pod) -> None:
    told = await pod.one.does(
        """
        status, size = os.stat("/memory"), os.statvfs("/memory")
        kind = next(line.split()[2] for line in open("/proc/mounts") if line.split()[1] == "/memory")
        result = [kind, oct(status.st_mode & 0o7777), size.f_blocks * size.f_frsize]
        """
    )
    assert told == ["tmpfs", "0o2770", 8 << 20]


async def test_what_else_a_volume_can_do(pod: Pod) -> None:
    """What docs/compatibility.md says of volumes."""
    told: dict[str, Any] = await pod.one.does(
        """
        import fcntl
        result = {}
        def tmpfile():
            file = os.open("/data", os.O_TMPFILE | os.O_RDWR)
            os.write(file, b"x")
            os.link(f"/proc/self/fd/{file}", "/data/named", src_dir_fd=0, follow_symlinks=True)
        result["O_TMPFILE"] = outcome(tmpfile)
        write("/data/first")
        result["link"] = outcome(os.link, "/data/first", "/data/linked")
        result["one inode"] = os.path.samefile("/data/first", "/data/linked")
        result["link across"] = outcome(os.link, "/data/first", "/data/below/one/linked")
        result["xattr"] = outcome(os.setxattr, "/data/first", "user.x", b"y")
        result["lease"] = outcome(fcntl.fcntl, os.open("/data/first", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
        """
    )
    expected = {
        "O_TMPFILE": "ENOTSUP",
        "lease": "done",
        "link": "done",
        "one inode": True,
        "link across": "EXDEV",
        "xattr": "done",
    }
    assert told == expected
    watch = """
        import builtins, ctypes
        libc = ctypes.CDLL("libc.so.6", use_errno=True)
        builtins.watch = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(builtins.watch, b"/data", 0x100)
    """
    await pod.other.does(watch)
    await pod.one.does("write('/data/watched')")
    seen = "import builtins; result = outcome(os.read, builtins.watch, 4096)"
    assert await pod.other.does(seen) == "done"
    (pod.data / "by-the-host").touch()
    assert await pod.other.does(seen) == "EAGAIN"


@pytest.mark.parametrize("source", ["/dev/null", "link"])
async def test_a_device_over_a_secret_hides_it(pod: Pod, source: str, tmp_path: Path) -> None:
    rootfs = plain_rootfs(tmp_path / "rootfs")
    (rootfs / "etc/secret").write_text("secret")
    (tmp_path / "link").symlink_to("/dev/null")
    mounts = [bind_mount(tmp_path / source, "/etc/secret", "ro")]
    argv = ("/usr/bin/sh", "-c", "test -c /etc/secret || exit 8; read line </etc/secret || exit 7")
    workload = pod.guest.workload("hidden", rootfs, mounts=mounts, args=argv)
    container = await pod.guest.create("hidden", workload)
    try:
        await container.start()
        assert await container.wait() == 7
    finally:
        await pod.guest.remove(container)


async def test_a_socket_of_the_host_is_reached(pod: Pod, tmp_path: Path) -> None:
    """Mounted by itself, as the sockets of drivers and daemons are; by several at once, and after its server's end."""
    greeted: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.append(await reader.readline())
        writer.write(b"served " + greeted[-1])
        await writer.drain()
        writer.close()

    ask = """
        import socket
        ends = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for number, end in enumerate(ends):
            end.connect("/run/host.sock")
            end.sendall(b"%d\\n" % number)
        result = [b"".join(iter(lambda: end.recv(100), b"")).decode() for end in ends]
    """
    path = tmp_path / "s"
    async with await asyncio.start_unix_server(serve, path) as server:
        mounts = [bind_mount(path, "/run/host.sock")]
        client = await pod.guest.attacker("client", privileged=False, mounts=mounts)
        assert await client.does(ask) == [f"served {number}\n" for number in range(3)]
        assert sorted(greeted) == [b"0\n", b"1\n", b"2\n"]
        server.close()
        # As by a server that ends: the connection is there, and nobody at its other end.
        told = await client.does(
            """
            import socket
            end = socket.socket(socket.AF_UNIX)
            end.connect("/run/host.sock")
            result = end.recv(100).decode()
            """
        )
        assert told == ""


@pytest.mark.parametrize("kind", ["fifo", "proc"])
async def test_what_has_its_other_end_on_the_host_is_refused(pod: Pod, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if kind == "fifo":
        os.mkfifo(source)
    else:
        source.symlink_to("/proc/sys")
    workload = pod.guest.workload("refused", plain_rootfs(tmp_path / "rootfs"), mounts=[bind_mount(source, "/etc/x")])
    with pytest.raises(RootfsError, match=f"mount at /etc/x: {source} is "):
        await pod.guest.create("refused", workload)


async def test_as_many_files_as_promised(pod: Pod) -> None:
    """Each file that the guest knows is a descriptor of virtiofsd's."""
    vm = pod.guest.sandbox._vm
    assert vm is not None
    found = [Path(f"/proc/{child.pid}") for child in vm.helpers]
    (virtiofsd,) = (process for process in found if b"virtiofsd" in (process / "cmdline").read_bytes())
    bounds = next(line for line in (virtiofsd / "limits").read_text().splitlines() if line.startswith("Max open files"))
    most = min(1_000_000, *(int(Path(f"/proc/sys/fs/{name}").read_text()) for name in ("file-max", "nr_open")))
    mine = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    if not int(mine, 16) >> 24 & 1:  # CAP_SYS_RESOURCE: who lacks it passes on what it may have
        most = min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert int(bounds.split()[3]) >= most


async def test_ten_thousand_files(pod: Pod) -> None:
    told = await pod.one.does(
        """
        os.mkdir("/data/many")
        for number in range(10_000):
            os.close(os.open(f"/data/many/{number}", os.O_CREAT | os.O_WRONLY))
        result = len(os.listdir("/data/many"))
        """
    )
    assert told == 10_000
    assert await pod.other.does("result = len({entry.inode() for entry in os.scandir('/data/many')})") == 10_000
    with_hole = """
        with open("/data/large", "wb") as file:
            file.truncate(2 << 30)
            file.seek((2 << 30) - 1)
            file.write(b"x")
        status = os.stat("/data/large")
        result = [status.st_size, status.st_blocks * 512 < 1 << 20]
    """
    assert await pod.one.does(with_hole) == [2 << 30, True]
    assert (
        await pod.other.does("file = open('/data/large', 'rb'); file.seek(-2, 2); result = file.read().hex()") == "0078"
    )
