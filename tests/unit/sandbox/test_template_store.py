"""Templates as files: whole or not at all, and only ours."""

import json
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata_common.files import identify
from kata_runtime.errors import TemplateError
from kata_runtime.sandbox.template import store as module
from kata_runtime.sandbox.template.meta import Meta, boot_id
from kata_runtime.sandbox.template.store import MOST, TemplateStore, memory_backed

KEY = "ab" * 32
SIZE = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path / "templates")


def publish(store: TemplateStore, key: str = KEY, *, inputs: tuple[Path, ...] = ()) -> Meta:
    """A template with a page of memory in the middle of nothing."""
    meta = Meta(key, 0.0, 1, 1, tuple(identify(path) for path in inputs), {"boot": boot_id()})
    with store.locked() as directory:
        memory, state = store.new_file(directory, SIZE), store.new_file(directory)
        os.pwrite(memory, b"page" * 1024, SIZE // 2)
        os.write(state, b"state")
        return store.publish(directory, meta, memory, state)


def file(store: TemplateStore, part: str, key: str = KEY) -> Path:
    (found,) = store.directory.glob(f"{key}*.{part}")
    return found


def test_what_was_published_is_found_and_copied(store: TemplateStore) -> None:
    assert store.find(KEY) is None
    whole = publish(store)
    found = store.find(KEY)
    assert found is not None
    with found:
        assert found.meta == whole
        copy = found.new_memory()
        found.copy_memory(copy)
    content = os.pread(copy, SIZE, 0)
    assert content[SIZE // 2 : SIZE // 2 + 4096] == b"page" * 1024
    assert content.count(0) == SIZE - 4096
    assert os.fstat(copy).st_blocks * 512 < SIZE  # as sparse as it was
    with pytest.raises(PermissionError):
        os.ftruncate(copy, 4096)
    os.close(copy)
    assert store.find("cd" * 32) is None


def test_it_is_roots_alone(store: TemplateStore) -> None:
    publish(store)
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in store.directory.iterdir()} == {0}


def _truncate(path: Path) -> None:
    os.truncate(path, 4096)


def _overwrite(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"X" + path.read_bytes()[1:])


def _open_to_others(path: Path) -> None:
    path.chmod(0o644)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    path.symlink_to(path.with_suffix(".away"))


@pytest.mark.parametrize("part", ["memory", "state", "json"])
@pytest.mark.parametrize("harm", [_truncate, _overwrite, _open_to_others, _link, os.mkfifo])
def test_one_that_is_not_what_we_left_is_found_out(
    store: TemplateStore, part: str, harm: Callable[[Path], None]
) -> None:
    publish(store)
    path = file(store, part)
    if harm is os.mkfifo:
        path.unlink()
    if harm is _truncate and part == "json":
        os.truncate(path, 20)
    else:
        harm(path)
    with pytest.raises(TemplateError):
        store.find(KEY)
    publish(store)
    found = store.find(KEY)
    assert found is not None
    found.__exit__()


@pytest.mark.parametrize("part", ["memory", "state"])
def test_one_that_lacks_a_file_is_found_out(store: TemplateStore, part: str) -> None:
    publish(store)
    file(store, part).unlink()
    with pytest.raises(TemplateError, match="lacks a file"):
        store.find(KEY)


@pytest.mark.parametrize(
    "change",
    [{"format": 99}, {"key": "cd" * 32}, {"strange": 1}, {"inputs": 5}, {"name": "../x"}, {"memory_looks": None}],
)
def test_a_description_of_another_kind_is_not_believed(store: TemplateStore, change: dict[str, object]) -> None:
    publish(store)
    path = file(store, "json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TemplateError):
        store.find(KEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_what_is_another_users_is_not_used(store: TemplateStore) -> None:
    publish(store)
    os.chown(file(store, "memory"), 12345, 12345)
    with pytest.raises(TemplateError, match="not a file of ours alone"):
        store.find(KEY)
    os.chown(store.directory, 12345, 12345)
    for use in (lambda: store.find(KEY), lambda: publish(store), store.destroy, store.all):
        with pytest.raises(TemplateError, match="not a directory of ours alone"):
            use()


def test_a_directory_that_others_may_write_to_is_not_used(store: TemplateStore) -> None:
    publish(store)
    store.directory.chmod(0o777)
    with pytest.raises(TemplateError, match="not a directory of ours alone"):
        store.find(KEY)


def test_there_is_one_maker_at_a_time(store: TemplateStore) -> None:
    with store.locked(), pytest.raises(TemplateError, match="somebody else"), store.locked():
        pass
    with store.locked():
        pass


def test_a_maker_that_is_killed_leaves_nothing(store: TemplateStore) -> None:
    pid = os.fork()
    if not pid:
        with store.locked() as directory:
            os.write(store.new_file(directory, SIZE), b"half")
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert [path.name for path in store.directory.iterdir()] == ["lock"]
    publish(store)


def test_what_a_maker_left_between_two_names_is_removed(store: TemplateStore) -> None:
    publish(store)
    file(store, "json").unlink()
    assert store.find(KEY) is None
    publish(store, "cd" * 32)
    assert not list(store.directory.glob(f"{KEY}*"))


def test_a_stale_one_makes_room(store: TemplateStore, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_text("first")
    publish(store, inputs=(image,))
    assert [meta.stale for _, meta in store.all() if isinstance(meta, Meta)] == [False]
    image.write_text("other")
    assert [meta.stale for _, meta in store.all() if isinstance(meta, Meta)] == [True]
    publish(store, "cd" * 32)
    assert [key for key, _ in store.all()] == ["cd" * 32]


def test_the_longest_unused_make_room(store: TemplateStore) -> None:
    keys = [f"{number:02x}" * 32 for number in range(MOST + 1)]
    for age, key in enumerate(keys[:MOST]):
        publish(store, key)
        os.utime(file(store, "json", key), (1000 + age, 1000 + age))
    used = store.find(keys[0])
    assert used is not None
    used.__exit__()
    publish(store, keys[MOST])
    assert [key for key, _ in store.all()] == sorted({*keys} - {keys[1]})


def test_their_size_is_bounded(store: TemplateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 6000)
    publish(store)
    publish(store, "cd" * 32)
    publish(store, "ef" * 32)
    assert len(store.all()) == 2


def test_who_has_it_open_keeps_it(store: TemplateStore) -> None:
    publish(store)
    found = store.find(KEY)
    assert found is not None
    assert store.destroy() == 1
    assert not store.directory.exists()
    with found:
        copy = found.new_memory()
        found.copy_memory(copy)
        os.close(copy)
    assert store.destroy() == 0


def test_finding_and_making_at_once(store: TemplateStore) -> None:
    """Whoever looks finds a whole one, the old or the new."""
    publish(store)
    done = threading.Event()

    def make() -> None:
        try:
            for _ in range(40):
                publish(store)
        finally:
            done.set()

    maker = threading.Thread(target=make)
    maker.start()
    while not done.is_set():
        found = store.find(KEY)
        assert found is not None
        found.__exit__()
    maker.join()
    assert len(list(store.directory.iterdir())) == 4


@pytest.fixture
def in_memory() -> Iterator[TemplateStore]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield TemplateStore(Path(name) / "templates")


def test_what_a_tmpfs_does_with_its_pages_is_no_change(in_memory: TemplateStore) -> None:
    """A page that is only read counts as a block of the file's, and may be dropped again."""
    publish(in_memory)
    path = file(in_memory, "memory")
    before = path.stat()
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), SIZE, access=mmap.ACCESS_READ) as memory:
        assert set(memory[: SIZE // 4]) == {0}
    assert path.stat().st_blocks > before.st_blocks
    found = in_memory.find(KEY)
    assert found is not None
    found.__exit__()


def _write_page(path: Path) -> None:
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), SIZE) as memory:
        memory[SIZE // 2 : SIZE // 2 + 4] = b"harm"


def _same_looks(path: Path) -> None:
    """All that a user can set as it was."""
    looks = path.stat()
    with path.open("r+b") as opened:
        opened.write(b"harm")
    os.utime(path, ns=(looks.st_atime_ns, looks.st_mtime_ns))


def _copy(path: Path) -> None:
    content, looks = path.read_bytes(), path.stat()
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o400)
    os.utime(path, ns=(looks.st_atime_ns, looks.st_mtime_ns))


@pytest.mark.parametrize("harm", [_write_page, _same_looks, _copy])
def test_a_memory_that_was_changed_is_found_out(in_memory: TemplateStore, harm: Callable[[Path], None]) -> None:
    publish(in_memory)
    path = file(in_memory, "memory")
    path.chmod(0o600)
    publish(in_memory)
    path = file(in_memory, "memory")
    harm(path)
    with pytest.raises(TemplateError, match="its memory has been changed"):
        in_memory.find(KEY)


@pytest.mark.parametrize("mapped", [False, True])
def test_what_somebody_may_still_write_to_is_no_template(in_memory: TemplateStore, *, mapped: bool) -> None:
    """As a helper of a machine that has not ended."""
    meta = Meta(KEY, 0.0, 1, 1, (), {"boot": boot_id()})
    with in_memory.locked() as directory:
        memory, state = in_memory.new_file(directory, SIZE), in_memory.new_file(directory)
        other = os.dup(memory)
        page = mmap.mmap(other, 4096) if mapped else None
        if page is not None:
            os.close(other)
        with pytest.raises(TemplateError, match="somebody may still write"):
            in_memory.publish(directory, meta, memory, state)
        if page is None:
            os.close(other)
        else:
            page.close()
    assert in_memory.find(KEY) is None
    publish(in_memory)


def test_templates_belong_in_memory(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for kind in ("tmpfs", "ext4"):
        mountinfo.write_text(f"1 0 99:99 / / rw - ext4 x rw\n2 1 {number} / /t rw shared:3 - {kind} x rw\n")
        assert memory_backed(tmp_path / "not" / "there", mountinfo) is (kind == "tmpfs")
    with pytest.raises(TemplateError, match="is no tmpfs"):
        TemplateStore.at("/proc/kata-template")


def test_a_full_file_system_is_told(store: TemplateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.locked() as directory:
        assert store.room(directory, 2048) == "" or "MiB" in store.room(directory, 2048)
        status = os.fstatvfs(directory)
        full = os.statvfs_result((*status[:3], 1, 1, *status[5:]))
        monkeypatch.setattr(os, "fstatvfs", lambda _: full)
        assert "MiB left" in store.room(directory, 2048)
