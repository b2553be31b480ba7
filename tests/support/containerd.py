"""A containerd of our own: Debian's binary on directories and sockets that nobody else uses.

Needs root, containerd, ctr, runc, umoci and busybox-static. Everything it starts ends with it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kata_runtime.shim.ttrpc.frames import Decoder, Frame

__all__ = [
    "IMAGE",
    "Containerd",
    "eventually",
    "make_image",
    "missing",
    "read_chunks",
    "running",
    "shim_pid",
    "task",
    "watched",
    "write_shim",
]

IMAGE = "localhost/busybox:test"
_APPLETS = ("sh", "true", "false", "echo", "cat", "sleep", "kill", "dd", "ls", "head", "wc", "env")


def missing() -> str:
    """Why containerd can't be run here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in ("containerd", "ctr", "runc", "umoci", "busybox") if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def make_image(directory: Path) -> Path:
    """An OCI archive of a busybox image, made without a registry."""
    layout = directory / "layout"
    bundle = directory / "bundle"
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:test"], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:test", bundle], check=True, capture_output=True)
    binaries = bundle / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy2(shutil.which("busybox") or "busybox", binaries / "busybox")
    for applet in _APPLETS:
        (binaries / applet).symlink_to("busybox")
    subprocess.run(["umoci", "repack", "--image", f"{layout}:test", bundle], check=True, capture_output=True)
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    return archive


def write_shim(path: Path, python: str, program: Path, environment: Mapping[str, str] | None = None) -> None:
    """An executable that runs a Python file as a shim, with this process's sys.path and an environment of its own."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in (environment or {}).items())
    code = f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(program)!r}, run_name='__main__')"
    path.write_text(f'#!/bin/sh\n{exports}exec {python} -I -S -c "{code}" "$@"\n')
    path.chmod(0o755)


class Containerd:
    """A running containerd; `state` has the bundles, `log` its output and the shims'."""

    def __init__(self, directory: Path, shims: Path) -> None:
        self.directory = directory
        self.address = directory / "c.sock"
        self.state = directory / "state"
        self.log = directory / "containerd.log"
        self._shims = shims
        self._process: subprocess.Popen[bytes] | None = None
        self._config = directory / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{self.state}"\n'
            f'[grpc]\n  address = "{self.address}"\n[ttrpc]\n  address = "{self.address}.ttrpc"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",'
            ' "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",'
            ' "io.containerd.snapshotter.v1.zfs"]\n'
            "[debug]\n"
            f'  level = "debug"\n'
        )
        # TOML wants the top-level keys first.
        lines = self._config.read_text().splitlines()
        disabled = next(index for index, line in enumerate(lines) if line.startswith("disabled_plugins"))
        lines.insert(1, lines.pop(disabled))
        self._config.write_text("\n".join(lines) + "\n")

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    @property
    def version(self) -> int:
        """The first number of its version."""
        said = subprocess.run(["containerd", "--version"], capture_output=True, check=True, text=True).stdout
        found = re.search(r" v?(\d+)\.\d+", said)
        assert found is not None, said
        return int(found[1])

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        environment = {**os.environ, "PATH": f"{self._shims}:{os.environ['PATH']}"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", self._config], stdout=log, stderr=log, env=environment
            )
        for _ in range(200):
            if self.ctr("version", check=False).returncode == 0:
                return
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)  # containerd has no other way to tell that it is up
        raise AssertionError(f"containerd does not answer: {self.log.read_text()}")

    def stop(self) -> None:
        """Stop the daemon only; its shims stay, as on a restart of the service."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def ctr(
        self, *arguments: str | Path, check: bool = True, timeout: float = 60, data: bytes | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run `ctr` against this containerd and wait for it."""
        return subprocess.run(
            self._command(arguments),
            capture_output=True,
            check=check,
            timeout=timeout,
            input=data,
        )

    def _command(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        command: list[str | Path] = ["ctr", "--address", self.address, *arguments]
        for verb in ("run", "exec"):  # of a container, else ctr leaves its fifos in /run
            if verb in arguments[:2]:
                command.insert(command.index(verb) + 1, f"--fifo-dir={self.directory}/fifo")
        return command

    def clear(self) -> None:
        """Stop the daemon and whatever a failed test has left."""
        self.stop()
        for file in self.state.glob("*/*/*/shim.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
            Path((file.parent / "address").read_text().removeprefix("unix://")).unlink(missing_ok=True)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            place = line.split()[1]
            if place.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", place], check=False)

    def popen(self, *arguments: str | Path) -> "subprocess.Popen[bytes]":
        """Start `ctr` and leave it running."""
        return subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def running(shims: Path, image: Path | None) -> Iterator[Containerd]:
    """A containerd that has the image (if any) and is gone afterwards, with all its tasks."""
    # Unix sockets have short names, pytest's directories long ones.
    with tempfile.TemporaryDirectory(prefix="kc-", dir="/tmp") as directory:
        containerd = Containerd(Path(directory), shims)
        try:
            containerd.start()
            if image is not None:
                containerd.ctr("images", "import", "--snapshotter", "overlayfs", "--index-name", IMAGE, image)
            yield containerd
        finally:
            containerd.clear()


def task(containerd: Containerd, name: str) -> tuple[int, str] | None:
    for line in containerd.ctr("tasks", "list").stdout.decode().splitlines()[1:]:
        words = line.split()
        if words[0] == name:
            return int(words[1]), words[2]
    return None


def eventually(condition: Callable[[], object], what: str) -> None:
    """containerd does some things after its answer, and tells nobody when."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def shim_pid(containerd: Containerd, name: str) -> int:
    return int((containerd.state / "io.containerd.runtime.v2.task" / "default" / name / "shim.pid").read_text())


@contextmanager
def watched(containerd: Containerd) -> Iterator[Callable[[], list[tuple[str, dict[str, object]]]]]:
    """What `ctr events` prints meanwhile: topics and contents."""
    watcher = containerd.popen("events")
    seen: list[tuple[str, dict[str, object]]] = []
    output = watcher.stdout
    assert output is not None
    os.set_blocking(output.fileno(), False)
    text = b""

    def events() -> list[tuple[str, dict[str, object]]]:
        nonlocal text
        text += output.read() or b""
        *lines, text = text.split(b"\n")
        for line in lines:
            if match := re.search(rb" (/tasks/\S+) ({.*})", line):
                seen.append((match[1].decode(), json.loads(match[2])))
        return seen

    try:
        # A subscription is only known to work when an event comes out of it.
        def subscribed() -> bool:
            nonlocal text
            containerd.ctr("namespaces", "label", "default", f"probe={time.monotonic_ns()}")
            text += output.read() or b""
            return b"/namespaces/update" in text

        containerd.ctr("namespaces", "create", "default", check=False)
        eventually(subscribed, "ctr events shows nothing")
        yield events
    finally:
        watcher.terminate()
        watcher.communicate(timeout=10)


def read_chunks(record: Path, connection: str) -> list[tuple[str, Frame]]:
    """What `record_ttrpc` saw on one connection: who sent it, and the frame."""
    decoders = {"client": Decoder(), "server": Decoder()}
    found: list[tuple[str, Frame]] = []
    for line in record.read_text().splitlines():
        chunk = json.loads(line)
        if chunk["connection"] == connection:
            for frame in decoders[chunk["from"]].feed(bytes.fromhex(chunk["data"])):
                assert isinstance(frame, Frame)
                found.append((chunk["from"], frame))
    return found
