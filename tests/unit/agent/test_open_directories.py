"""What is mounted as soon as it is opened is opened before a container copies the mounts."""

import os
from pathlib import Path

from kata_agent.guest.mounts import open_directories


async def test_what_is_no_directory_is_passed_over(tmp_path: Path) -> None:
    """A container may have written what is below its volumes: no symlink is followed, no fifo waited for."""
    (tmp_path / "directory/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("directory")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    names = ("directory", "link/below", "fifo", "file", "missing", "directory/../file", "directory/below")
    await open_directories([f"{tmp_path}/{name}" for name in names])
    opened = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
    assert not any(path.startswith(str(tmp_path)) for path in opened)
