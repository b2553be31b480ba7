"""The guest's directory trees and its first process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kata_runtime.image import initramfs, launcher, tree
from support.image import BUSYBOX


def test_usr_is_merged(tmp_path: Path) -> None:
    for name in ("bin/sh", "lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libz.so.1", "lib64/ld.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    tree.merge_usr(tmp_path)
    assert {name: str((tmp_path / name).readlink()) for name in tree.MERGED} == {
        "bin": "usr/bin",
        "sbin": "usr/sbin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
    }
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    assert sorted(path.name for path in libraries.iterdir()) == ["libc.so.6", "libz.so.1"]
    assert (tmp_path / "bin/sh").read_text() == "bin/sh"


def test_pruning_takes_files_directories_and_links(tmp_path: Path) -> None:
    (tmp_path / "usr/share/doc").mkdir(parents=True)
    (tmp_path / "usr/share/doc/x").touch()
    (tmp_path / "usr/libkeep.so").touch()
    (tmp_path / "usr/libx.a").symlink_to("nowhere")
    tree.prune(tmp_path, ("usr/share/*", "usr/*.a", "not/there"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "usr",
        "usr/libkeep.so",
        "usr/share",
    ]


def test_the_default_root_file_system(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_text(BUSYBOX)
    busybox.chmod(0o755)
    root = tmp_path / "root"
    tree.default_rootfs(root, busybox)
    assert (root / "bin/ls").readlink() == Path("busybox")
    assert (root / "usr/bin/sh").read_text() == BUSYBOX
    assert (root / "etc/passwd").read_text().startswith("root:x:0:0:")
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert {"dev", "proc", "sys", "run", "home"} <= {path.name for path in root.iterdir()}


def test_time_stamps_and_modes_do_not_depend_on_the_builder(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "program").touch(mode=0o700)
    tree.settle(tmp_path)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())} == {tree.TIMESTAMP_NS}


def test_the_first_process_has_no_gaps() -> None:
    script = initramfs.init_script()
    assert "@" not in script
    assert f"exec switch_root /root {tree.PYTHON} -I -S /{tree.AGENT_DIRECTORY}/launcher.pyc" in script
    assert f'[ "$value" = "{initramfs.ROOT_SERIAL}" ]' in script
    # A shell that reads it to the end finds its errors.
    subprocess.run([shutil.which("sh") or "/bin/sh", "-n"], input=script.encode(), check=True)


def test_launcher_and_build_agree_on_the_guests_places() -> None:
    assert f"/{tree.BUNDLE}" == launcher.BUNDLE
    assert sorted(launcher.PATH) == sorted(tree.IMPORT_PATH)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files away")
def test_settling_without_root_leaves_owners_alone(tmp_path: Path) -> None:
    tree.settle(tmp_path)
    assert tmp_path.stat().st_uid == os.geteuid()
