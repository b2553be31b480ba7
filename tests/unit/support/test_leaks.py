"""The check that VM tests leave nothing finds what is left, and only what is ours."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import leaks


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    roots = tmp_path / "run", tmp_path / "layers"
    for root in roots:
        root.mkdir()
    return roots


@pytest.mark.slow
def test_orphan(roots: tuple[Path, Path]) -> None:
    """A process whose parent is gone, in a session of its own: what a killed runtime would leave."""
    before = leaks.look(roots=roots)
    quiet = "start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    code = f"import subprocess; print(subprocess.Popen(['sleep', '1000'], {quiet}).pid)"
    pid = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert leaks.look(before, roots, settle=0).left_since(before) == [f"processes: {pid} sleep 1000"]
    os.kill(pid, 9)
    assert leaks.look(before, roots).left_since(before) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # reaped


def test_process_that_ends_soon_is_waited_for(roots: tuple[Path, Path]) -> None:
    before = leaks.look(roots=roots)
    with subprocess.Popen(["sleep", "0.05"]):
        assert leaks.look(before, roots).left_since(before) == []


def test_directories_and_sockets_of_a_dead_sandbox(roots: tuple[Path, Path]) -> None:
    before = leaks.look(roots=roots)
    run, layers = (root / "box" for root in roots)
    for path in (run, layers):
        path.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / "s"))
        assert leaks.look(before, roots).left_since(before) == [
            f"sockets: {run}/s",
            f"directories: {run} with s",
            f"directories: {layers} with nothing in it",
        ]


def test_living_sandbox_of_somebody_else_is_not_ours(roots: tuple[Path, Path]) -> None:
    before = leaks.look(roots=roots)
    for root in roots:
        (root / "box").mkdir()
    descriptor = os.open(roots[0] / "box", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert leaks.look(before, roots).left_since(before) == []
    finally:
        os.close(descriptor)
