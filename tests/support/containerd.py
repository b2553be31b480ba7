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
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.shim.ttrpc.frames import Decoder, Frame

__all__ = [
    "IMAGE",
    "PAUSE",
    "Containerd",
    "CriSettings",
    "eventually",
    "import_image",
    "major_version",
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
PAUSE = "localhost/busybox:pause"
_APPLETS = ("sh", "true", "false", "echo", "cat", "sleep", "kill", "dd", "ls", "head", "wc", "env", "nc", "ps", "stty",
            "hostname", "httpd", "ip", "touch", "rm", "seq", "nslookup", "mount", "id")  # fmt: skip
# Of cgroup v1, by ctr 2 at every run.
_QUIET = {**os.environ, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "true"}
# What a pod's own container runs: nothing, for ever.
_PAUSE = ("--config.entrypoint", "/bin/sleep", "--config.cmd", "2147483647")


def missing() -> str:
    """Why containerd can't be run here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in ("containerd", "ctr", "runc", "umoci", "busybox") if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def major_version() -> int:
    """The first number of the version of the containerd on PATH; 0 where there is none."""
    if shutil.which("containerd") is None:
        return 0
    said = subprocess.run(["containerd", "--version"], capture_output=True, check=True, text=True).stdout
    found = re.search(r" v?(\d+)\.\d+", said)
    assert found is not None, said
    return int(found[1])


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
    subprocess.run(["umoci", "tag", "--image", f"{layout}:test", "pause"], check=True)
    subprocess.run(["umoci", "config", "--image", f"{layout}:pause", *_PAUSE], check=True)
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    return archive


@dataclass(frozen=True)
class CriSettings:
    """How the CRI plugin is set up: the directory of its CNI configuration, and what runs containerd (a namespace)."""

    networks: Path
    prefix: tuple[str, ...]

    def config(self, version: int) -> str:
        """Its part of the configuration of containerd 1 or 2."""
        if version < 2:
            plugin = '[plugins."io.containerd.grpc.v1.cri"'
            images = f'{plugin}]\n  sandbox_image = "{PAUSE}"\n  stream_server_address = "127.0.0.1"\n'
            stream, bin_dirs = "", 'bin_dir = "/usr/lib/cni"'
        else:
            plugin = '[plugins."io.containerd.cri.v1.runtime"'
            images = f'[plugins."io.containerd.cri.v1.images".pinned_images]\n  sandbox = "{PAUSE}"\n{plugin}]\n'
            # Its socket would be the host's.
            stream = '[plugins."io.containerd.nri.v1.nri"]\n  disable = true\n'
            bin_dirs = 'bin_dirs = ["/usr/lib/cni"]'
        kata = (
            '  runtime_type = "io.containerd.kata.v2"\n  privileged_without_host_devices = true\n'
            '  pod_annotations = ["io.katacontainers.*"]\n'
        )
        shim = f'{plugin}.containerd.runtimes.kata-sandbox]\n{kata}  sandboxer = "shim"\n' if version >= 2 else ""
        return (
            f"{images}  netns_mounts_under_state_dir = true\n  disable_apparmor = true\n"
            f'{plugin}.containerd]\n  default_runtime_name = "kata"\n'
            f"{plugin}.containerd.runtimes.kata]\n{kata}{shim}"
            f'{plugin}.cni]\n  {bin_dirs}\n  conf_dir = "{self.networks}"\n{stream}'
        )


def write_shim(path: Path, python: str, program: Path, environment: Mapping[str, str] | None = None) -> None:
    """An executable that runs a Python file as a shim, with this process's sys.path and an environment of its own."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in (environment or {}).items())
    code = f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(program)!r}, run_name='__main__')"
    path.write_text(f'#!/bin/sh\n{exports}exec {python} -I -S -c "{code}" "$@"\n')
    path.chmod(0o755)


class Containerd:
    """A running containerd; `state` has the bundles, `log` its output and the shims'."""

    def __init__(
        self, directory: Path, shims: Path, cri: CriSettings | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.namespace = "k8s.io" if cri else "default"
        self.address = directory / "c.sock"
        self.state = directory / "state"
        self.log = directory / "containerd.log"
        self._shims = shims
        self._process: subprocess.Popen[bytes] | None = None
        self._config = directory / "config.toml"
        self._prefix = cri.prefix if cri else tuple(prefix)
        disabled = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]  # fmt: skip
        if cri is None:
            disabled += [
                *("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"),
                "io.containerd.nri.v1.nri",
            ]
        version = self.version
        self._config.write_text(
            f'version = {2 if version < 2 else 3}\nroot = "{directory}/root"\nstate = "{self.state}"\n'
            f"disabled_plugins = {disabled}\n"
            f'[grpc]\n  address = "{self.address}"\n[ttrpc]\n  address = "{self.address}.ttrpc"\n'
            f'[debug]\n  level = "debug"\n{cri.config(version) if cri else ""}'
        )

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    @property
    def version(self) -> int:
        """The first number of its version."""
        return major_version()

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        environment = {**os.environ, "PATH": f"{self._shims}:{os.environ['PATH']}"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, "containerd", "--config", self._config],
                stdout=log,
                stderr=log,
                env=environment,
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
            env=_QUIET,
        )

    def timed(self, *arguments: str, timeout: float) -> float:
        """The seconds that `ctr` takes. Raises SystemExit with its words: a benchmark ends there."""
        begin = time.monotonic()
        try:
            self.ctr(*arguments, timeout=timeout)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"ctr {' '.join(arguments)}: {error.stderr.decode(errors='replace')}") from error
        return time.monotonic() - begin

    def _command(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        command: list[str | Path] = ["ctr", "--address", self.address, "--namespace", self.namespace, *arguments]
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
            env=_QUIET,
        )


@contextmanager
def running(
    shims: Path, image: Path | None, cri: CriSettings | None = None, prefix: Sequence[str] = ()
) -> Iterator[Containerd]:
    """A containerd that has the image (if any) and is gone afterwards, with all its tasks; `prefix` runs it."""
    # Unix sockets have short names, pytest's directories long ones.
    with tempfile.TemporaryDirectory(prefix="kc-", dir="/tmp") as directory:
        containerd = Containerd(Path(directory), shims, cri, prefix)
        try:
            containerd.start()
            if image is not None:
                name = IMAGE.partition(":")[0]
                containerd.ctr("images", "import", "--snapshotter", "overlayfs", "--base-name", name, image)
            yield containerd
        finally:
            containerd.clear()


def import_image(containerd: Containerd, root: Path, name: str, scratch: Path) -> None:
    """Give it an image of one layer, the tree at `root`; `name` is that of a repository and a tag."""
    layout, archive = scratch / "layout", scratch / "image.tar"
    repository, _, tag = name.partition(":")
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:{tag}"], check=True)
    subprocess.run(["umoci", "insert", "--image", f"{layout}:{tag}", root, "/"], check=True, capture_output=True)
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    containerd.ctr("images", "import", "--snapshotter", "overlayfs", "--base-name", repository, archive)


def task(containerd: Containerd, name: str) -> tuple[int, str] | None:
    for line in containerd.ctr("tasks", "list").stdout.decode().splitlines()[1:]:
        words = line.split()
        if words[0] == name:
            return int(words[1]), words[2]
    return None


def eventually(condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
    """containerd does some things after its answer, and tells nobody when."""
    deadline = time.monotonic() + seconds
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
