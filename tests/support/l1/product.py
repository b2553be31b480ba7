"""L1's second disk, mounted at /opt: the product as a user installs it, the guest's image, and the tests."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from kata_runtime.image.wheels import GUEST_PYTHON, PLATFORMS
from support import containerd
from support.debian import run_tool
from support.l1.userland import CACHE, Say, Userland, make_disk

__all__ = ["ROOT", "make_product"]

ROOT = Path(__file__).resolve().parents[3]
# What the wheel is made from.
SOURCES = ("agent", "protos", "runtime", "telemetry", "pyproject.toml", "README.md", "LICENSE", "configuration.toml")
TEST_REQUIREMENTS = ("pytest", "pytest-asyncio", "pytest-timeout")
_PIP = ("--disable-pip-version-check", "--no-input", "--quiet")
_DISK_MIB = 1024


def make_product(userland: Userland, image: Path, disk: Path, say: Say) -> None:
    """Make the disk; `image` is the directory of the guest's image."""
    say("building the wheel")
    wheel = _wheel()
    wheels = _dependencies(wheel, say)
    opt = disk.with_suffix(".tree")
    shutil.copytree(_environment(userland, wheels, say), opt, symlinks=True)
    say(f"installing {wheel.name} in L1")
    _chroot(userland, opt, wheel.parent, "/opt/kata/bin/pip", "install", *_PIP, "--no-deps", f"/mnt/{wheel.name}")
    shutil.copytree(image, opt / "image", symlinks=True)
    source = opt / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", source / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", source)
    (source / "artifacts").mkdir()
    shutil.copytree(Path(__file__).parent, opt / "l1", ignore=ignored)
    shutil.copy(_busybox_image(), opt / "busybox.tar")
    # L1 would compile the tests slowly.
    _chroot(userland, opt, wheel.parent, "/opt/kata/bin/python", "-m", "compileall", "-q", "/opt/source/tests")
    make_disk(opt, disk, _DISK_MIB)
    shutil.rmtree(opt)


def _wheel() -> Path:
    """The product's wheel, built from the checkout where that has changed."""
    directory = CACHE / f"wheel-{_digest(ROOT / name for name in SOURCES)[:16]}"
    if not directory.is_dir():
        for stale in CACHE.glob("wheel-*"):
            shutil.rmtree(stale)
        partial = CACHE / ".wheel"
        shutil.rmtree(partial, ignore_errors=True)
        _pip("wheel", "--no-deps", "--wheel-dir", str(partial), str(ROOT))
        partial.rename(directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


def _dependencies(wheel: Path, say: Say) -> Path:
    """A directory with the wheels that the product and pytest need in L1."""
    wanted = f"{(ROOT / 'pyproject.toml').read_text()}\0{TEST_REQUIREMENTS}\0{PLATFORMS}"
    directory = CACHE / f"dependencies-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    if not directory.is_dir():
        say("downloading the wheels that it needs")
        for stale in CACHE.glob("dependencies-*"):
            shutil.rmtree(stale)
        partial = CACHE / ".dependencies"
        shutil.rmtree(partial, ignore_errors=True)
        platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
        python = ["--python-version", GUEST_PYTHON, "--implementation", "cp"]
        python += ["--abi", "cp311", "--abi", "abi3", "--abi", "none", "--only-binary", ":all:"]
        _pip("download", *python, *platforms, "--dest", str(partial), str(wheel), *TEST_REQUIREMENTS)
        (partial / wheel.name).unlink(missing_ok=True)  # of today
        partial.rename(directory)
    return directory


def _environment(userland: Userland, wheels: Path, say: Say) -> Path:
    """A tree for /opt with a virtual environment in which everything but the product is installed."""
    directory = CACHE / f"environment-{_digest([wheels, userland.initrd])[:16]}"
    if not directory.is_dir():
        say("installing what it needs in L1")
        for stale in CACHE.glob("environment-*"):
            shutil.rmtree(stale)
        partial = CACHE / ".environment"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _chroot(userland, partial, wheels, "python3", "-m", "venv", "/opt/kata")
        names = [f"/mnt/{path.name}" for path in sorted(wheels.glob("*.whl"))]
        _chroot(userland, partial, wheels, "/opt/kata/bin/pip", "install", *_PIP, "--no-index", "--no-deps", *names)
        partial.rename(directory)
    return directory


def _busybox_image() -> Path:
    """An OCI archive for containerd, which L1 has no umoci to make."""
    archive = CACHE / f"busybox-{_digest([Path(containerd.__file__)])[:16]}.tar"
    if not archive.exists():
        for stale in CACHE.glob("busybox*.tar"):
            stale.unlink()
        scratch = CACHE / ".busybox"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        containerd.make_image(scratch).rename(archive)
        shutil.rmtree(scratch)
    return archive


def _chroot(userland: Userland, opt: Path, wheels: Path, *argv: str) -> None:
    """Run something in the userland with `opt` at /opt and `wheels` at /mnt; the mounts end with it."""
    script = 'mount --bind "$1" "$3/opt" && mount --bind "$2" "$3/mnt" && cd / && exec chroot "$3" "${@:4}"'
    paths = [str(opt), str(wheels), str(userland.root)]
    command = ["unshare", "--mount", "bash", "-c", script, "bash", *paths, *argv]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
    }
    run_tool(*command, env=environment)


def _pip(verb: str, *arguments: str) -> None:
    run_tool(sys.executable, "-m", "pip", verb, *_PIP, *arguments)


def _digest(paths: Iterable[Path]) -> str:
    """Of names and contents of files and trees."""
    digest = hashlib.sha256()
    for top in paths:
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        for path in files:
            if path.suffix != ".pyc":
                digest.update(f"{path.relative_to(top.parent)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
