"""Users by name or number in a root filesystem that nobody vouches for."""

import os
from pathlib import Path

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.oci.spec import User
from kata_runtime.oci.user import find_user

PASSWD = """\
# comment:x:9:9:::
root:x:0:0:root:/root:/bin/sh
broken line
daemon:x:1:1::/usr/sbin:/bin/false
www:x:33:34:web:/var/www:/bin/sh
homeless:x:44:44:::
huge:x:99999999999:1::/:/bin/sh
twin:x:33:99::/twin:/bin/sh
six:x:61:62:six:/six
four:x:41:42
three:x:31
nouid:x
  padded:x:71:72::/padded:
"""
GROUP = """\
root:x:0:
adm:x:4:www,daemon
web:x:34:
www-data:x:35:www
extra:x:36:xwww,www
three:x:38
nogid:x
members:x:39:six,four
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "user"),
    [
        ("", User(0, 0, (), "/root")),
        ("root", User(0, 0, (), "/root")),
        ("www", User(33, 34, (4, 35, 36), "/var/www")),
        ("33", User(33, 34, (4, 35, 36), "/var/www")),
        ("www:web", User(33, 34, (), "/var/www")),
        ("www:4", User(33, 4, (), "/var/www")),
        ("www:777", User(33, 777, (), "/var/www")),
        ("1000", User(1000, 0, (), "/")),
        ("1000:1000", User(1000, 1000, (), "/")),
        ("1000:adm", User(1000, 4, (), "/")),
        ("homeless", User(44, 44, (), "/")),
        # What an entry lacks at its end is empty (runc 1.1, libcontainer/user, parseParts).
        ("six", User(61, 62, (39,), "/six")),
        ("four", User(41, 42, (39,), "/")),
        ("three", User(31, 0, (), "/")),
        ("padded", User(71, 72, (), "/padded")),
        ("www:three", User(33, 38, (), "/var/www")),
        ("1000:", User(1000, 0, (), "/")),
        ("www:", User(33, 34, (4, 35, 36), "/var/www")),
        (":web", User(0, 34, (), "/root")),
        (":", User(0, 0, (), "/root")),
        ("4294967294:4294967294", User(4294967294, 4294967294, (), "/")),
    ],
)
def test_found(rootfs: Path, wanted: str, user: User) -> None:
    assert find_user(rootfs, wanted) == user


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("nobody", "user 'nobody' is not in the container's /etc/passwd"),
        ("huge", "user 'huge' is not in"),
        ("www:none", "group 'none' is not in the container's /etc/group"),
        ("4294967295", "id 4294967295 is out of range"),
        ("0:99999999999999999999999999", "id 99999999999999999999 is out of range"),
        ("www:web:x", "user 'www:web:x' is none"),
        ("nouid", "user 'nouid' is not in"),
        ("www:nogid", "group 'nogid' is not in"),
        ("-1", "user '-1' is not in"),
        ("\u0661", "is not in"),
    ],
)
def test_refused(rootfs: Path, wanted: str, said: str) -> None:
    with pytest.raises(RootfsError) as caught:
        find_user(rootfs, wanted)
    assert said in str(caught.value)
    assert caught.value.hint


def test_without_the_files_numbers_do(tmp_path: Path) -> None:
    assert find_user(tmp_path) == User(0, 0, (), "/root")
    assert find_user(tmp_path, "5:6") == User(5, 6, (), "/")
    with pytest.raises(RootfsError):
        find_user(tmp_path, "www")


def test_symlinks_stay_inside(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "passwd"
    outside.write_text("www:x:666:666::/:/bin/sh\n")
    passwd = rootfs / "etc/passwd"
    for target in (str(outside), f"../../../../../../..{outside}"):
        passwd.unlink()
        passwd.symlink_to(target)
        with pytest.raises(RootfsError, match="is not in the container"):
            find_user(rootfs, "www")
    # An absolute symlink means the container's own root (NixOS has such ones).
    (rootfs / "static").mkdir()
    (rootfs / "static/passwd").write_text("www:x:7:8::/:/bin/sh\n")
    passwd.unlink()
    passwd.symlink_to("/static/passwd")
    assert find_user(rootfs, "www").uid == 7


def test_proc_links_of_this_process_are_not_followed(rootfs: Path) -> None:
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/etc/passwd")  # a loop
    assert find_user(rootfs, "5").uid == 5


def test_fifo_does_not_block(rootfs: Path) -> None:
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    with pytest.raises(RootfsError, match=r"/etc/passwd in .* is not a regular file"):
        find_user(rootfs, "www")
    assert find_user(rootfs, "7:8") == User(7, 8, (), "/")  # a number needs no file


@pytest.mark.skipif(os.geteuid() != 0, reason="mknod(2) takes root")
def test_devices_are_not_opened(rootfs: Path) -> None:
    """Opening one may do anything: a watchdog starts, a tape rewinds."""
    (rootfs / "etc/passwd").unlink()
    os.mknod(rootfs / "etc/passwd", 0o600 | 0o020000, os.makedev(199, 99))  # no such device: opening would fail
    with pytest.raises(RootfsError, match=r"/etc/passwd in .* is not a regular file"):
        find_user(rootfs, "www")


def test_size_is_bounded(rootfs: Path) -> None:
    with (rootfs / "etc/passwd").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(RootfsError, match="is longer than 1048576 bytes"):
        find_user(rootfs, "www")


def test_bytes_that_are_no_text(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"\xff\xfe:x:3:3::/:/bin/sh\n\0\0\n" + PASSWD.encode())
    assert find_user(rootfs, "www").uid == 33


def test_rootfs_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RootfsError, match="can't be opened"):
        find_user(tmp_path / "missing", "0")
