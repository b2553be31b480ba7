"""No two machines of a host run as the same user, however their names, their ends and their processes meet."""

import fcntl
import hashlib
import json
import os
import select
import subprocess
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.errors import HostError
from kata_runtime.hypervisor import users
from kata_runtime.hypervisor.users import User, Users
from kata_runtime.process import Privileges, launch

# Takes as many users as it is told, says which, and holds them until its stdin ends.
_HOLDER = """
import json, os, sys
from contextlib import ExitStack
from pathlib import Path
from kata_runtime.hypervisor.users import Users
directory, count, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
with ExitStack() as stack:
    taken = [stack.enter_context(Users(Path(directory), base=1000, count=count).taken(name)).uid for name in names]
    print(json.dumps(taken), flush=True)
    sys.stdin.read()
"""


def names_that_meet() -> tuple[str, str]:
    """Two names of sandboxes whose checksums lead to the same number."""
    seen: dict[int, str] = {}
    for number in range(1 << 20):
        name = hashlib.sha256(f"{number}".encode()).hexdigest()  # as containerd's clients name them
        first = zlib.crc32(name.encode()) % users._COUNT
        if first in seen:
            return seen[first], name
        seen[first] = name
    raise AssertionError("no two meet")


def free(directory: Path, count: int = 1) -> bool:
    """Whether a user can be had that is the only one."""
    try:
        with Users(directory, base=1000, count=count).taken("a"):
            return True
    except HostError:
        return False


def test_names_that_meet_have_two_users(tmp_path: Path) -> None:
    one, other = names_that_meet()
    with Users(tmp_path).taken(one) as first:
        with Users(tmp_path).taken(other) as second:
            assert second.uid == first.uid + 1
            assert 0x7000_0000 <= first.uid < second.uid < 0x7800_0000
        assert len(list(tmp_path.iterdir())) == 1
    with Users(tmp_path).taken(other) as again:
        assert again.uid == first.uid
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.booleans(), st.text(max_size=5)), max_size=40), st.integers(1, 12))
def test_nobody_gets_what_another_has(steps: list[tuple[bool, str]], count: int) -> None:
    """Whoever comes and goes in whatever order; all are taken when all are taken."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        place = Users(Path(directory), base=1000, count=count)
        held: list[tuple[User, ExitStack]] = []
        for takes, name in steps:
            if not takes and held:
                held.pop(0)[1].close()
                continue
            if len(held) == count:
                with pytest.raises(HostError, match=f"all {count} user ids of sandboxes are taken"):
                    place.taken(name).__enter__()
                continue
            stack = ExitStack()
            user = stack.enter_context(place.taken(name))
            assert user.uid not in {other.uid for other, _ in held}
            assert 1000 <= user.uid < 1000 + count
            held.append((user, stack))
        for _, stack in held:
            stack.close()
        assert list(Path(directory).iterdir()) == []


def test_several_processes_at_once(tmp_path: Path) -> None:
    names = [f"name-{number}" for number in range(50)]
    command = [sys.executable, "-P", "-c", _HOLDER, str(tmp_path), "200", *names]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        taken = []
        for child in children:
            assert child.stdout is not None
            taken += json.loads(child.stdout.readline())
    finally:
        for child in children:
            child.communicate(timeout=30)
    assert sorted(taken) == list(range(1000, 1200))
    assert list(tmp_path.iterdir()) == []


def test_the_user_of_a_killed_holder_is_free_with_its_last_process(tmp_path: Path) -> None:
    # What it starts inherits the lease and lives on, as a QEMU may for a moment.
    program = """
import subprocess, sys
from pathlib import Path
from kata_runtime.hypervisor.users import Users
with Users(Path(sys.argv[1]), base=1000, count=1).taken("a") as user:
    child = subprocess.Popen(["cat"], stdin=0, pass_fds=[user.lease])
    print(child.pid, flush=True)
    child.wait()
"""
    command = [sys.executable, "-P", "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        pidfd = os.pidfd_open(int(holder.stdout.readline()))
        holder.kill()
        holder.wait(30)
        Users(tmp_path).sweep()
        assert not free(tmp_path)
        holder.stdin.close()
        assert select.select([pidfd], [], [], 30)[0]
        os.close(pidfd)
    assert len(list(tmp_path.iterdir())) == 1
    Users(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []
    assert free(tmp_path)


def test_a_process_can_only_let_go_of_its_own_lock(tmp_path: Path) -> None:
    """What a machine inherits gives it no power over its user while the runtime lives, nor over another one's."""
    place = Users(tmp_path, base=1000, count=2)
    with place.taken("a") as user:
        users._lock(user.lease, fcntl.F_UNLCK)
        with place.taken("a") as other:
            assert other.uid != user.uid
        with pytest.raises(OSError, match="Bad file descriptor"):  # it is open for reading
            users._lock(user.lease, fcntl.F_WRLCK)


async def test_a_child_holds_its_users_lease(tmp_path: Path) -> None:
    with Users(tmp_path, base=os.getuid(), count=1).taken("a") as user:
        # By itself, for only root may become somebody.
        privileges = Privileges(user.uid, user.uid, by_child=True, lease=user.lease)
        async with launch(["/bin/cat", "/dev/stdin"], privileges=privileges) as child:
            await child.wait()
        script = f"readlink /proc/self/fd/{user.lease} >&2"
        async with launch(["/bin/sh", "-c", script], privileges=privileges) as child:
            await child.wait()
            assert child.output == str(tmp_path / f".uid-{user.uid}")


def test_where_nobody_may_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"Not a directory|File exists"), Users(tmp_path / "file").taken("a"):
        pass


def test_a_link_in_the_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".uid-1000").symlink_to(tmp_path / "elsewhere")
    assert not free(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_sweep_takes_nothing_else(tmp_path: Path) -> None:
    Users(tmp_path / "nowhere").sweep()
    (tmp_path / ".told-no-kvm").touch()
    (tmp_path / ".uid-1").touch()
    (tmp_path / ".uid-2").mkdir()
    Users(tmp_path).sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".told-no-kvm", ".uid-2"]
