"""The root file system's image: ext4, because Debian's cloud kernel has it built in."""

import struct
from pathlib import Path

from kata_runtime.image import tools

__all__ = ["make"]

BLOCK = 4096
INODE = 256
# Fixed, so that the same inputs give the same file system.
UUID = "6b617461-0000-4000-8000-726f6f746673"
# Nothing is ever written to it, so that it needs no journal; checksums would be checked by an emulated CPU, and the
# host vouches for the file in any case. With fixed sizes of all structures `_settle` stays simple.
FEATURES = "^has_journal,^resize_inode,^metadata_csum,^64bit,^dir_index"

# Offsets in the superblock, which begins at byte 1024, in a group descriptor and in an inode
# (linux/Documentation/filesystems/ext4/globals.rst and inodes.rst).
SUPERBLOCK = 1024
INODES_COUNT, INODES_PER_GROUP = 0, 40
DESCRIPTOR = 32
INODE_TABLE = 8
MODE, TIMES, MORE_TIMES = 0, 8, 0x84


def make(root: Path, image: Path, timestamp: int) -> None:
    """Make the image of the tree `root`, as large as its contents; `timestamp` (s) is the only time in it.

    Raises ImageError where mke2fs is missing or the disk is full.
    """
    blocks = inodes = 0
    for path in root.rglob("*"):
        blocks += -(-path.lstat().st_size // BLOCK)
        inodes += 1
    tools.run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, "-U", UUID, "-L", "kata-root", "-m", "0"),
            *("-b", str(BLOCK), "-I", str(INODE), "-N", str(inodes + 64), "-O", FEATURES),
            *("-E", f"hash_seed={UUID},root_owner=0:0,nodiscard"),
            *(image, f"{(blocks + blocks // 20) * 4 + 4096}k"),
        ],
        doing="make the image's file system",
        # Written instead of the time of day.
        env={"E2FSPROGS_FAKE_TIME": str(timestamp)},
        hint="look at the free space",
    )
    _settle(image, timestamp)


def _settle(image: Path, timestamp: int) -> None:
    """Set all times of all inodes: mke2fs takes the time of the last change from the tree, where nobody can set it."""
    with image.open("r+b") as file:
        head = file.read(BLOCK)
        (total,) = struct.unpack_from("<I", head, SUPERBLOCK + INODES_COUNT)
        (per_group,) = struct.unpack_from("<I", head, SUPERBLOCK + INODES_PER_GROUP)
        groups = -(-total // per_group) if per_group else 0
        descriptors = file.read(groups * DESCRIPTOR)
        for group in range(groups):
            (table,) = struct.unpack_from("<I", descriptors, group * DESCRIPTOR + INODE_TABLE)
            file.seek(table * BLOCK)
            inodes = bytearray(file.read(per_group * INODE))
            for start in range(0, len(inodes), INODE):
                if struct.unpack_from("<H", inodes, start + MODE)[0]:
                    struct.pack_into("<III", inodes, start + TIMES, timestamp, timestamp, timestamp)
                    struct.pack_into("<IIIII", inodes, start + MORE_TIMES, 0, 0, 0, timestamp, 0)
            file.seek(table * BLOCK)
            file.write(inodes)
