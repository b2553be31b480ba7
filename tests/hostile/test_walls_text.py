"""An image, and who is in a guest, choose words that a terminal would obey: people get to see them, nothing more."""

import re
import subprocess
from pathlib import Path

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm

ROOTFS = Path("/var/lib/kata-containers/image/default-rootfs")
NASTY = "\x1b]0;owned\x07\x1b[2J\u202e\u2028\rkata-runtime: all is well"


def umoci(*arguments: object) -> None:
    subprocess.run(["umoci", *map(str, arguments)], check=True, capture_output=True)


@pytest.mark.parametrize("part", ["cmd", "user"])
def test_an_error_about_an_image(kata: Kata, tmp_path: Path, part: str) -> None:
    """Said by crun in the guest, and by the host."""
    layout = tmp_path / "layout"
    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:box")
    umoci("insert", "--image", f"{layout}:box", ROOTFS, "/")
    values = {"cmd": "/bin/true", "user": "0"} | {part: NASTY + "\nkata-runtime: so it is" * (part == "user")}
    umoci("config", "--image", f"{layout}:box", *(f"--config.{name}={value}" for name, value in values.items()))
    done = kata("run", "--image", f"{layout}:box")
    text = done.stderr.decode()
    assert done.returncode in (125, 126, 127), text
    lines = text.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert r"\x1b]0;owned\x07" in text
    begun = [line for line in lines if not line.startswith("  ") and "KVM" not in line]
    assert len(begun) == 1, begun
    assert re.match("kata-runtime: (?!all is|so it)", begun[0])
