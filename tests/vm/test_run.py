"""`kata-runtime run`, with a real guest."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm


def test_output_and_exit_code(kata: Kata) -> None:
    done = kata.run("sh", "-c", "echo hello; echo oops >&2; exit 7")
    assert (done.stdout, done.returncode) == (b"hello\n", 7)
    assert b"oops\n" in done.stderr


# Around the length of a host name, and the longest there is.
@pytest.mark.parametrize("length", [64, 65, 70, 76])
def test_a_long_name(kata: Kata, length: int) -> None:
    name = ("n" * length)[:-2] + ".x"
    done = kata.run("hostname", options=["--name", name])
    assert (done.stdout.decode().strip(), done.returncode) == (name[:64].rstrip("."), 0)


def test_stdin_to_its_end(kata: Kata) -> None:
    lines = b"".join(b"%d\n" % number for number in range(1, 200_001))
    done = kata.run("wc", "-l", options=["-i"], stdin=lines)
    assert (done.stdout.strip(), done.returncode) == (b"200000", 0)


def test_64_mib_there_and_back(kata: Kata) -> None:
    data = os.urandom(64 << 20)
    done = kata.run("cat", options=["-i"], stdin=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_nothing_is_lost_of_a_process_that_writes_and_ends(kata: Kata) -> None:
    done = kata.run("dd", "if=/dev/zero", "bs=1M", "count=8")
    assert len(done.stdout) == 8 << 20


def test_environment_directory_user_name(kata: Kata) -> None:
    script = "id -u; id -g; pwd; echo $GREETING; hostname"
    options = ["--env", "GREETING=hi there", "--cwd", "/tmp", "--user", "1000:1001", "--name", "box"]
    done = kata.run("sh", "-c", script, options=options)
    assert done.stdout.decode().splitlines() == ["1000", "1001", "/tmp", "hi there", "box"]


def test_cpus_and_memory(kata: Kata) -> None:
    script = "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo"
    done = kata.run("sh", "-c", script, options=["--cpus", "2", "--memory", "512M"])
    cpus, memory = done.stdout.decode().splitlines()
    assert cpus == "2"
    assert 380_000 < int(memory.split()[1]) < 512 * 1024


def test_rootfs_is_written_to(kata: Kata, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", "/var/lib/kata-containers/image/default-rootfs", str(rootfs)], check=True)
    done = kata.run("sh", "-c", "echo kept > /file; cat /file", options=["--rootfs", str(rootfs)])
    assert done.stdout == b"kept\n"
    assert (rootfs / "file").read_text() == "kept\n"


def test_the_default_rootfs_stays_as_it_is(kata: Kata) -> None:
    assert kata.run("sh", "-c", "echo x > /left-behind").returncode == 0
    assert kata.run("ls", "/left-behind").returncode == 1


def test_ctrl_c_stops_the_workload(kata: Kata) -> None:
    # Not `echo up; sleep 1000`: a shell that has just forked loses a SIGINT that comes before its child's exec, in any
    # terminal.
    child = kata.start("run", "--", "sh", "-c", "sleep 1000 & echo up; wait", stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 128 + signal.SIGINT
    child.stdout.close()


def test_a_second_ctrl_c_ends_what_ignores_the_first(kata: Kata) -> None:
    script = "trap 'echo no' INT; echo up; while :; do sleep 1; done"
    child = kata.start("run", "--", "sh", "-c", script, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == b"no\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 128 + signal.SIGKILL
    child.stdout.close()


def test_ctrl_c_while_the_guest_boots(kata: Kata) -> None:
    Path("/run/kata/.told-no-kvm").unlink(missing_ok=True)
    child = kata.start("run", "--name", "early", "--", "true", stderr=subprocess.PIPE)
    assert child.stderr is not None
    assert b"emulat" in child.stderr.readline()  # the warning about emulation comes just before QEMU is started
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 128 + signal.SIGINT
    child.stderr.close()


def test_signals_reach_the_workload(kata: Kata) -> None:
    script = "trap 'echo got it; exit 3' USR1; echo up; while :; do sleep 1; done"
    child = kata.start("run", "--", "sh", "-c", script, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGUSR1)
    assert child.stdout.readline() == b"got it\n"
    assert child.wait(30) == 3
    child.stdout.close()


def test_a_reader_that_goes_away_ends_the_workload(kata: Kata) -> None:
    # As a child: the kernel keeps an init process from dying of signals that it has no handler for.
    child = kata.start("run", "--", "sh", "-c", "yes; exit $?", stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"y\n"
    child.stdout.close()
    assert child.wait(30) == 128 + signal.SIGPIPE


def test_the_guests_wall_clock_is_the_hosts(kata: Kata) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = kata.start("run", "-i", "--", "sh", "-c", "echo up; read go; adjtimex", **pipes)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    before = time.time()
    child.stdin.write(b"go\n")
    child.stdin.close()
    fields = dict(line.split(":") for line in child.stdout.read().decode().replace(" ", "").splitlines() if ":" in line)
    after = time.time()
    assert child.wait(30) == 0
    child.stdout.close()
    guest = int(fields["time.tv_sec"]) + int(fields["time.tv_usec"]) / 1e6
    assert before - 0.005 < guest < after + 0.005


def test_emulation_is_told_once_and_can_be_refused(kata: Kata) -> None:
    Path("/run/kata/.told-no-kvm").unlink(missing_ok=True)
    told = [kata.run("true").stderr.decode() for _ in range(2)]
    assert "does not promise that emulation holds a hostile guest" in told[0]
    assert "emulation" not in told[1]
    kata.configure("hypervisor.qemu", accelerator="kvm")
    refused = kata.run("true")
    assert refused.returncode == 125
    assert b"KVM can't be used" in refused.stderr
