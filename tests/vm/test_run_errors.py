"""What `kata-runtime run` says when something is wrong: one error, a hint, the exit code, and nothing left behind."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.image import DEFAULT_OUTPUT
from support.kata import Kata

pytestmark = pytest.mark.vm


def refused(done: "subprocess.CompletedProcess[bytes]", code: int = 125) -> str:
    """The error of a run that failed as it should: one message, no traceback."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert done.stdout == b""
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("kata-runtime: ") and "WARNING" not in line]
    assert len(errors) == 1, text
    return text


def test_unknown_key(kata: Kata) -> None:
    text = refused(kata.configure("runtime", enable_tracin=True).run("true"))
    assert "configuration.toml" in text
    assert "enable_tracin" in text
    assert "did you mean" in text.lower()
    assert "enable_tracing" in text


def test_wrong_type(kata: Kata) -> None:
    text = refused(kata.configure("hypervisor.qemu", default_memory="lots").run("true"))
    assert "default_memory" in text
    assert "lots" in text


def test_no_toml(kata: Kata, tmp_path: Path) -> None:
    config = tmp_path / "broken.toml"
    config.write_text("[runtime\nenable_tracing = true\n")
    done = subprocess.run(
        [str(kata.program), "--config", str(config), "run", "--", "true"], capture_output=True, check=False
    )
    text = refused(done)
    assert "broken.toml" in text
    assert "broken.toml:1" in text


def test_missing_configuration(kata: Kata) -> None:
    done = subprocess.run(
        [str(kata.program), "--config", "/nowhere.toml", "run", "--", "true"], capture_output=True, check=False
    )
    assert "/nowhere.toml" in refused(done)


@pytest.fixture
def image() -> Iterator[Path]:
    """A copy of the image, where QEMU's user can read it."""
    with tempfile.TemporaryDirectory(prefix="kata-image-", dir="/var/tmp") as scratch:
        Path(scratch).chmod(0o755)
        built = Path(os.environ.get("KATA_IMAGE_DIR", DEFAULT_OUTPUT))
        yield Path(shutil.copytree(built, Path(scratch) / "image", symlinks=True))


@pytest.mark.parametrize("name", ["vmlinux", "initrd.img", "rootfs.img"])
def test_an_image_that_is_not_what_was_built(kata: Kata, image: Path, name: str) -> None:
    """A byte, with size and time as before: no instruction of it runs, and `check` tells the same."""
    path = image / name
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    kata.environment["KATA_IMAGE_DIR"] = str(image)
    text = refused(kata.run("true", options=["--name", f"changed-{name}"]))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = json.loads((image / "manifest.json").read_text())["sha256"][name]
    for part in (str(path), found, wanted, f"kata-runtime image build --output {image}"):
        assert part in text
    assert not (kata.logs_dir / f"changed-{name}/console.log").read_text()
    checked = kata("check")
    assert checked.returncode == 1
    assert f"missing  guest image        the guest image's {name} is not what was built" in checked.stdout.decode()


def test_missing_kernel(kata: Kata) -> None:
    text = refused(kata.configure("hypervisor.qemu", kernel="/nowhere/vmlinux").run("true"))
    assert "/nowhere/vmlinux" in text
    assert "hint: " in text


def test_missing_qemu(kata: Kata) -> None:
    text = refused(kata.configure("hypervisor.qemu", path="/nowhere/qemu").run("true"))
    assert "/nowhere/qemu" in text
    assert "apt install" in text


def test_not_root(kata: Kata) -> None:
    unprivileged = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if not os.access(kata.program, os.X_OK) or Path("/root") in kata.program.parents:
        pytest.fail("this checkout can't be read by other users, so the test can't drop its privileges")
    done = subprocess.run([*unprivileged, str(kata.program), "run", "--", "true"], capture_output=True, check=False)
    assert "root" in refused(done)


def test_no_command(kata: Kata) -> None:
    assert "no command" in refused(kata("run"))


def test_rootfs_that_is_no_directory(kata: Kata, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    text = refused(kata.run("true", options=["--rootfs", str(file)]))
    assert "is not a directory" in text
    assert "--image" in text


def test_unknown_user(kata: Kata) -> None:
    assert "nosuchuser" in refused(kata.run("true", options=["--user", "nosuchuser"]))


def test_a_name_that_is_none(kata: Kata) -> None:
    assert "../x" in refused(kata.run("true", options=["--name", "../x"]))
    said = refused(kata.run("true", options=["--name", "n" * 77]))
    assert "at most 76 characters" in said


def test_command_not_found(kata: Kata) -> None:
    assert "no-such-command" in refused(kata.run("no-such-command"), 127)


def test_command_not_executable(kata: Kata) -> None:
    refused(kata.run("/etc/passwd"), 126)


def test_memory_too_small_to_boot(kata: Kata) -> None:
    text = refused(kata.run("true", options=["--memory", "64M"]))
    assert "it came as far as" in text
    assert "memory" in text


def test_memory_that_the_host_has_not(kata: Kata) -> None:
    text = refused(kata.run("true", options=["--memory", "16000G"]))
    # Before anything is started.
    assert "16384000 MiB of memory are asked for: a VM of this host can have" in text
    assert "--memory" in text


def test_qemu_that_does_not_know_the_cpu(kata: Kata) -> None:
    text = refused(kata.configure("hypervisor.qemu", cpu_features="no-such-feature=on").run("true"))
    assert "no-such-feature" in text  # QEMU's own words


def test_a_guest_that_never_becomes_ready(kata: Kata) -> None:
    # Its first process is a shell that waits for input on the console.
    kata.configure("hypervisor.qemu", kernel_params="rdinit=/bin/sh").configure("agent.kata", dial_timeout=8.0)
    text = refused(kata.run("true"))
    assert "did not become ready within 8 s" in text
    assert "it came as far as: kernel" in text
    assert "last lines of the guest's console" in text


def test_a_kernel_that_panics(kata: Kata) -> None:
    kata.configure("hypervisor.qemu", kernel_params="rdinit=/nowhere")
    text = refused(kata.run("true"))
    assert "QEMU ended while the guest was booting" in text
    assert "Kernel panic" in text  # from the console


@pytest.mark.parametrize("option", ["--rootfs", "--bundle", "--image"])
def test_sources_that_are_not_there(kata: Kata, option: str) -> None:
    assert "/nowhere" in refused(kata.run("true", options=[option, "/nowhere"]))


def test_trace_dir_that_cannot_be(kata: Kata, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = refused(kata.configure("runtime", trace_dir=str(tmp_path / "file"), enable_tracing=True).run("true"))
    assert "trace" in text


def test_an_id_that_is_taken(kata: Kata) -> None:
    first = kata.start("run", "--name", "taken", "--", "sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE)
    assert first.stdout is not None
    with first.stdout:
        assert first.stdout.readline() == b"up\n"
        assert "'taken' is running" in refused(kata.run("true", options=["--name", "taken"]))
        first.terminate()
        assert first.wait(30) == 128 + signal.SIGTERM
