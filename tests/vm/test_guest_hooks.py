"""Programs of the guest's image that run for each container (guest_hook_path)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.bundles import IMAGE
from support.kata import Kata

pytestmark = pytest.mark.vm

HOOK = '#!/bin/sh\nread -r state\necho "hook $0 $1 $(echo "$state" | grep -c bundle)" >/dev/console\n'


def test_hooks_of_the_image_run_for_a_container(kata: Kata, tmp_path: Path) -> None:
    # QEMU's user can't read what is in pytest's directories.
    image, hook, commands = kata.directory / "image", tmp_path / "hook", tmp_path / "commands"
    shutil.copyfile(IMAGE / "rootfs.img", image)
    hook.write_text(HOOK)
    places = [f"/opt/hooks/{kind}" for kind in ("prestart", "poststart", "poststop")]
    made = "".join(f"mkdir {place}\nwrite {hook} {place}/hook\nsif {place}/hook mode 0100755\n" for place in places)
    commands.write_text(f"mkdir /opt\nmkdir /opt/hooks\n{made}")
    # No journal, no mount: debugfs(8) writes into the file system as it lies there.
    subprocess.run(["debugfs", "-w", "-f", commands, image], check=True, capture_output=True)
    kata.configure("hypervisor.qemu", image=str(image), guest_hook_path="/opt/hooks")
    done = kata.run("echo", "ran")
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
    (console,) = kata.logs_dir.rglob("console.log")
    said = [line for line in console.read_text(errors="replace").splitlines() if line.startswith("hook ")]
    # Before, as soon as it runs, and after its end.
    assert said == [f"hook {place}/hook {place.rpartition('/')[2]} 1" for place in places]
