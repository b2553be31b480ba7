"""Calls that need no root, and mount(8)'s words as both sides read them."""

import errno
import os
from pathlib import Path

import pytest

from kata_common import linux
from kata_common.linux import MountFlag, mount_flags


@pytest.mark.parametrize(
    ("options", "flags", "propagation", "rest"),
    [
        (["ro", "nosuid", "defaults", "size=1m", "rslave", "rw", "dax"], MountFlag.NOSUID, "rslave", "size=1m,dax"),
        (["rbind", "private"], MountFlag.BIND | MountFlag.REC, "private", ""),
        (["noatime", "atime", "sync", "async", "noexec"], MountFlag.NOEXEC, "", ""),
        (["relatime", "norelatime", "mand", "strictatime"], MountFlag.MANDLOCK | MountFlag.STRICTATIME, "", ""),
        (["runbindable"], 0, "runbindable", ""),
        (["rsize=1", "r", "", "shared=x"], 0, "", "rsize=1,r,,shared=x"),
    ],
)
def test_mount_words(options: list[str], flags: int, propagation: str, rest: str) -> None:
    kinds = {"": 0, "private": 1 << 18, "rslave": 1 << 19 | 16384, "runbindable": 1 << 17 | 16384}
    assert mount_flags(options) == (flags, kinds[propagation], rest.split(",") if rest else [])


def test_an_error_has_number_and_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere") as missing:
        linux.umount(tmp_path / "nowhere")
    assert missing.value.errno in (errno.ENOENT, errno.EPERM)
    with pytest.raises(OSError, match="Invalid") as wrong:
        linux.prctl(0x7FFF_FFFF)
    assert wrong.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="Bad file") as closed:
        linux.setns(-1, 0)
    assert closed.value.errno == errno.EBADF


def test_exchange(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    linux.exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["b", "a"]


def test_no_path_leads_out(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "root" / "link").symlink_to("../secret")
    directory = os.open(tmp_path / "root", os.O_PATH)
    try:
        for path in ("../secret", "/../secret", "link"):
            with pytest.raises(FileNotFoundError):
                linux.open_beneath(directory, path, os.O_RDONLY, linux.Resolve.IN_ROOT)
        os.close(linux.open_beneath(directory, "/..", os.O_RDONLY, linux.Resolve.IN_ROOT))
        for path, number in (("link", errno.ELOOP), ("../secret", errno.EXDEV), ("/secret", errno.EXDEV)):
            with pytest.raises(OSError, match=path) as refused:
                linux.open_beneath(directory, path, os.O_RDONLY)
            assert refused.value.errno == number
    finally:
        os.close(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's log is root's")
def test_the_kernels_log_is_text() -> None:
    log = linux.kernel_log(65536)
    assert log.startswith(b"<") or b"\n<" in log
    assert b"\0" not in log
