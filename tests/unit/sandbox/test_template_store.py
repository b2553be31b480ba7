"""Templates as files: whole or not at all, and only ours."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_common.files import identify
from kata_runtime.errors import TemplateError
from kata_runtime.sandbox.template import store as module
from kata_runtime.sandbox.template.store import MOST, Meta, TemplateStore, memory_backed

KEY = "ab" * 32
SIZE = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path / "templates")


def publish(store: TemplateStore, key: str = KEY, *, inputs: tuple[Path, ...] = ()) -> Meta:
    """A template with a page of memory in the middle of nothing."""
    meta = Meta(key, 0.0, 1, 1, tuple(identify(path) for path in inputs), {})
    with store.locked() as directory:
        memory, state = store.new_file(directory, SIZE), store.new_file(directory)
        os.pwrite(memory, b"page" * 1024, SIZE // 2)
        os.write(state, b"state")
        whole = store.publish(directory, meta, memory, state)
        os.close(memory)
        os.close(state)
    return whole


def file(store: TemplateStore, part: str, key: str = KEY) -> Path:
    return store.directory / f"{key}.{part}"


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


@pytest.mark.parametrize("change", [{"format": 99}, {"key": "cd" * 32}, {"strange": 1}, {"inputs": 5}])
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
    assert not file(store, "memory").exists()
    assert not file(store, "state").exists()


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
    publish(store)
    done = threading.Event()

    def make() -> None:
        for _ in range(20):
            publish(store)
        done.set()

    maker = threading.Thread(target=make)
    maker.start()
    while not done.is_set():
        try:
            if (found := store.find(KEY)) is not None:
                with found:
                    copy = found.new_memory()
                    found.copy_memory(copy)
                    os.close(copy)
        except TemplateError:
            pass  # between two: it boots
    maker.join()
    found = store.find(KEY)
    assert found is not None
    found.__exit__()


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
