"""The initramfs archive, against the format's description and cpio itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kata_runtime.image import cpio

ENTRIES = [
    cpio.directory("dev"),
    cpio.device("dev/console", 5, 1),
    cpio.file("init", b"#!/bin/sh\n", 0o755),
    cpio.symlink("sh", "init"),
]


def test_header_of_a_file() -> None:
    archive = cpio.archive([cpio.file("init", b"hello", 0o755)])
    fields = [int(archive[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
    assert archive[:6] == b"070701"
    assert fields == [1, 0o100755, 0, 0, 1, 0, 5, 0, 0, 0, 0, 5, 0]
    # Name and content each end on a multiple of four.
    assert archive[110:124] == b"init\0\0hello\0\0\0"[:14]
    assert len(archive) % 4 == 0


def test_same_entries_same_bytes() -> None:
    assert cpio.archive(ENTRIES) == cpio.archive(ENTRIES)


def test_the_archive_ends_with_a_trailer() -> None:
    assert b"TRAILER!!!\0" in cpio.archive([])


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_it(tmp_path: Path) -> None:
    listing = subprocess.run(
        ["cpio", "-itv"], input=cpio.archive(ENTRIES), capture_output=True, check=True, cwd=tmp_path
    ).stdout.decode()
    assert [line.split()[0] for line in listing.splitlines()] == [
        "drwxr-xr-x",
        "crw-------",
        "-rwxr-xr-x",
        "lrwxrwxrwx",
    ]
    assert listing.splitlines()[-1].endswith("sh -> init")
