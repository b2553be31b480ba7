"""docs/tour.md, word by word: each command, and what the page shows of its output."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm

PAGE = Path(__file__).parents[2] / "docs/tour.md"


def commands() -> list[tuple[str, list[str]]]:
    """Those of the page, and the lines that follow each."""
    found: list[tuple[str, list[str]]] = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
        elif line.startswith("    "):
            found[-1][1].append(line.strip())
    return found


def test_the_page(kata: Kata, tmp_path: Path) -> None:
    steps = commands()
    assert len(steps) >= 15
    assert sum(len(shown) for _, shown in steps) >= 12
    # As an installation has it, with the test's configuration for its own.
    program = tmp_path / "bin/kata-runtime"
    program.parent.mkdir()
    argv = kata.command()
    program.write_text(f'#!/bin/sh\nexec {argv[0]} --config {argv[2]} "$@"\n')
    program.chmod(0o755)
    assert shutil.which("busybox")
    environment = {**kata.env(), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    try:
        for command, shown in steps:
            done = subprocess.run(
                ["sh", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=120
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{command}\n{said}"
            assert [line for line in shown if line not in said] == [], f"{command}\n{said}"
    finally:
        kata("stop", "tour")
        Path("/tmp/kata-tour").unlink(missing_ok=True)
