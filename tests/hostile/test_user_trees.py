"""A plain workload makes trees and files that are hard to remove: its run ends well, and so does everybody else's."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm

DEEP = "i=0; while [ $i -lt 1200 ]; do mkdir d && cd -P d || exit 1; i=$((i+1)); done; touch file; "
ODD = r"""
mkdir -p odd/none odd/sticky; cd odd
touch "$(printf 'esc\033[31m\nape')" "$(printf 'not \377 UTF-8')" none/file sticky/file
chmod 000 none; chmod 1777 sticky; mkfifo fifo; ln -s / root; ln -s ../../.. up
name=$(printf '%0255d' 0); mkdir -p $name/$name/$name/$name/$name/$name/$name/$name
cd $name/$name/$name/$name/$name/$name/$name/$name; mkdir -p $name/$name/$name/$name/$name/$name/$name/$name/$name
"""


def told(done: "subprocess.CompletedProcess[bytes]") -> list[bytes]:
    """What it said beyond that it emulates."""
    return [line for line in done.stderr.splitlines() if b"KVM" not in line]


@pytest.mark.parametrize("script", [DEEP, ODD], ids=["deep", "odd"])
def test_its_run_ends_well(kata: Kata, script: str) -> None:
    done = kata.run("sh", "-c", f"cd /home 2>/dev/null || cd /tmp || cd /; {script} echo made")
    assert (done.stdout, done.returncode, told(done)) == (b"made\n", 0, [])


def test_one_that_was_killed_is_removed_by_the_next_run(kata: Kata) -> None:
    command = ("run", "--name", "killed", "--", "sh", "-c", f"cd /tmp || cd /; {DEEP} echo made; sleep 1000")
    with kata.start(*command, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"made\n"
        os.kill(run.pid, signal.SIGKILL)
        run.wait(10)
    layers = Path("/var/lib/kata-containers/sandboxes/killed")
    assert layers.is_dir()
    done = kata.run("echo", "unharmed")
    assert (done.stdout, done.returncode, told(done)) == (b"unharmed\n", 0, [])
    assert not layers.exists()
