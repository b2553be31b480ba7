"""Builds the guest image from packages, and only what changed of it."""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from kata_common import linux
from kata_runtime.errors import ImageError
from kata_runtime.image import ext4, initramfs, tools, tree
from kata_runtime.image.artifacts import FORMAT, Artifacts, Manifest
from kata_runtime.image.kernel import ModuleTree, extract_vmlinux
from kata_runtime.image.packages import Package, Packages
from kata_runtime.image.verify import digest_of, verify
from kata_runtime.image.wheels import Wheel, Wheels

__all__ = ["build"]

AGENT_PACKAGES = ("kata_agent", "kata_common", "kata_protos", "kata_telemetry")


def build(output: Path, *, cache: Path, progress: Callable[[str], None], force: bool = False) -> Manifest:
    """Make the image in `output` unless it is up to date; its manifest.

    Packages come from the cache directory `cache` once it has them; `force` asks the mirror for today's versions and
    makes everything anew. `progress` gets a line for each step that takes time. The image that is there is replaced in
    one step, at the end. Raises ImageError, and then leaves it as it was.
    """
    output, cache = output.absolute(), cache.absolute()
    if os.geteuid() != 0:
        raise ImageError("building the guest image needs root", hint="its files belong to root; use sudo")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        with _lock(cache / "lock", progress), _lock(output.parent / f".{output.name}.lock", progress):
            return _Build(output, cache, progress).run(force)
    except OSError as error:
        hint = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        where = error.filename or output
        raise ImageError(f"can't build the guest image: {error.strerror}: {where}", hint=hint) from error


class _Build:
    def __init__(self, output: Path, cache: Path, progress: Callable[[str], None]) -> None:
        self.output = output
        self.cache = cache
        self.progress = progress
        self.packages = Packages(cache, progress)
        self.wheels = Wheels(cache, progress)
        self.agent = [_installed(name) for name in AGENT_PACKAGES]

    def run(self, force: bool) -> Manifest:
        self._sweep()
        known = self.packages.known()
        if not force:
            manifest = self._up_to_date(known)
            if manifest:
                return manifest
        packages = known if known is not None and not force else self.packages.update()
        wheels = self.wheels.update()
        inputs = {
            **self._own_inputs(),
            "packages": [asdict(package) for package in packages],
            "wheels": [asdict(wheel) for wheel in wheels],
        }
        base = self._base(packages, wheels, _digest({**inputs, "agent": None}), force)
        return self._assemble(base, inputs)

    def _sweep(self) -> None:
        """Remove what killed builds left; this one holds the locks, so that it belongs to nobody else."""
        for leftover in [*self.cache.glob(".base-*.new-*"), *self.output.parent.glob(f".{self.output.name}.new-*")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def _own_inputs(self) -> dict[str, object]:
        """What comes from this installation: the agent, and this package with its lists of packages and wheels."""
        return {
            "agent": {path.name: _tree_digest(path) for path in self.agent},
            "recipe": _tree_digest(Path(__file__).parent),
        }

    def _up_to_date(self, known: list[Package] | None) -> Manifest | None:
        """The manifest of the image that is there, if nothing has changed; an image needs no cache for that."""
        try:
            manifest = Artifacts.at(self.output).check()
            verify(Artifacts.at(self.output).booted)
        except ImageError:
            return None
        wanted = self._own_inputs()
        if known is not None:
            wanted["packages"] = [asdict(package) for package in known]
        return manifest if all(manifest.inputs.get(key) == value for key, value in wanted.items()) else None

    def _base(self, packages: list[Package], wheels: list[Wheel], key: str, force: bool) -> Path:
        """The cached part of the image that does not depend on the agent's code."""
        base = self.cache / f"base-{key[:16]}"
        if base.is_dir() and not force:
            return base
        for stale in self.cache.glob("base-*"):
            shutil.rmtree(stale)
        self.progress("unpacking packages")
        with _temporary(base) as partial:
            root, kernel = partial / "root", partial / "kernel"
            version = tree.unpack(packages, self.packages.directory, root, kernel)
            modules = ModuleTree(kernel / "lib/modules" / version)
            bzimage = (kernel / "boot" / f"vmlinuz-{version}").read_bytes()
            self.progress("making the guest's root file system")
            names = [*initramfs.BOOT_MODULES, *tree.guest_modules(modules)]
            tree.root_tree(root, self.wheels, wheels, modules, names)
            busybox = root / tree.BUSYBOX
            (partial / "vmlinux").write_bytes(extract_vmlinux(bzimage, root / tree.LIBRARIES / "liblz4.so.1"))
            (partial / "initrd.img").write_bytes(initramfs.build(busybox.read_bytes(), modules))
            (partial / "version").write_text(version)
            tree.default_rootfs(partial / "default-rootfs", busybox)
            _self_check(root)
            shutil.rmtree(kernel)
            partial.rename(base)
        return base

    def _assemble(self, base: Path, inputs: dict[str, object]) -> Manifest:
        self.progress("building the image")
        # The base's tree gets the agent of this very build; the lock keeps others out.
        tree.install_agent(base / "root", self.agent)
        with _temporary(self.output) as partial:
            artifacts = Artifacts.at(partial)
            shutil.copyfile(base / "vmlinux", artifacts.kernel)
            shutil.copyfile(base / "initrd.img", artifacts.initrd)
            shutil.copytree(base / "default-rootfs", artifacts.default_rootfs, symlinks=True)
            ext4.make(base / "root", artifacts.image, tree.TIMESTAMP_NS // 10**9)
            manifest = Manifest(
                format=FORMAT,
                digest=_digest(inputs),
                kernel_version=(base / "version").read_text(),
                inputs=inputs,
                outputs={path.name: path.stat().st_size for path in artifacts.booted},
                tools={"python": sys.version.split()[0]},
                sha256={path.name: digest_of(path) for path in artifacts.booted},
            )
            artifacts.manifest.write_text(manifest.dump())
            partial.chmod(0o755)
            _replace(partial, self.output)
        return manifest


def _installed(name: str) -> Path:
    """The directory of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImageError(f"the package {name} is not installed", hint="install kata-python completely")
    return Path(next(iter(spec.submodule_search_locations)))


def _self_check(root: Path) -> None:
    """Programs of the guest find their libraries, and its Python what the agent imports."""
    hint = "a package is missing from the image's list; please report this"
    # Run, crun would want a /proc.
    linker = "/lib64/ld-linux-x86-64.so.2"
    for program in ("/usr/bin/crun", "/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"):
        tools.run(["chroot", root, linker, "--list", program], doing=f"find the libraries of {program}", hint=hint)
    check = f"import sys; sys.path.append('/{tree.AGENT_DIRECTORY}'); import asyncio, grpc, google.protobuf.message"
    doing = "run Python out of the image"
    tools.run(["chroot", root, tree.PYTHON, "-I", "-S", "-c", check], doing=doing, hint=hint)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _tree_digest(root: Path) -> str:
    """Digest of names and contents of all files below `root`, compiled ones aside."""
    digest = hashlib.sha256()
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for name in sorted(files):
            path = Path(directory, name)
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock, waiting for whoever has it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another image build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    """A new directory beside `final`, gone afterwards whatever happens."""
    path = Path(tempfile.mkdtemp(prefix=f".{final.name}.new-", dir=final.parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _replace(new: Path, final: Path) -> None:
    """Put the directory `new` in the place of `final` in one step; what was there is left under the name of `new`."""
    if not final.exists():
        new.rename(final)
        return
    try:
        linux.exchange(new, final)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
    else:
        return
    # A file system that can't exchange: for a moment there is no image, but never half of one.
    aside = new.with_name(f"{new.name}.old")
    final.rename(aside)
    new.rename(final)
    aside.rename(new)
