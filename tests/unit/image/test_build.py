"""The image build as a whole, with small packages and fake tools: what is rebuilt when, and what a failure leaves."""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_runtime.errors import ImageError
from kata_runtime.image import Artifacts, build, builder, packages, wheels
from support.image import Tools, debian

# Many small programs: half a second each on a busy machine.
pytestmark = pytest.mark.slow


class Site:
    """A host with the fake tools, on which images are built."""

    def __init__(self, root: Path, tools: Tools) -> None:
        self.tools = tools
        self.output = root / "lib/image"
        self.cache = root / "cache"
        self.agent = root / "agent/kata_agent"
        self.progress: list[str] = []
        self.hidden: set[str] = set()
        self.agent.mkdir(parents=True)
        (self.agent / "main.py").write_text("def main(): pass\n")

    def hide(self, tool: str) -> None:
        """Let a tool be missing."""
        self.hidden.add(tool)

    def which(self, name: str, path: str | None = None) -> str | None:
        """shutil.which without what is hidden."""
        return None if name in self.hidden else shutil.which(name, path=path)

    def build(self, *, force: bool = False) -> str:
        """Build; the digest of what there is then."""
        return build(self.output, cache=self.cache, progress=self.progress.append, force=force).digest

    def files(self) -> dict[str, bytes]:
        """The image as it is."""
        return {
            str(path.relative_to(self.output)): path.read_bytes() for path in self.output.rglob("*.*") if path.is_file()
        }

    def leftovers(self) -> list[str]:
        """What a failed build should not have left beside the image and in the cache."""
        return [path.name for place in (self.output.parent, self.cache) for path in place.glob(".*.new-*")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    tools = Tools(tmp_path / "bin")
    debian(tools, tmp_path / "packages")
    site = Site(tmp_path, tools)
    monkeypatch.setenv("PATH", f"{tools.directory}:{os.environ['PATH']}")
    monkeypatch.setattr("kata_runtime.image.tools.which", site.which)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    monkeypatch.setattr(builder, "_installed", lambda name: site.agent)
    monkeypatch.setattr(builder, "AGENT_PACKAGES", ("kata_agent",))
    monkeypatch.setattr(packages, "KEYRINGS", (tmp_path / "packages",))
    monkeypatch.setattr(Path, "is_file", lambda path: path.exists())
    monkeypatch.setattr(wheels.Wheels, "update", lambda self: [])
    monkeypatch.setattr(wheels.Wheels, "known", lambda self: [])
    return site


def test_an_image_has_all_its_parts(site: Site) -> None:
    site.build()
    artifacts = Artifacts.at(site.output)
    manifest = artifacts.check()
    assert manifest.kernel_version == "6.1.0-1-cloud-amd64"
    assert artifacts.kernel.read_bytes().startswith(b"\x7fELF")
    assert (artifacts.default_rootfs / "bin/sh").readlink() == Path("busybox")
    assert [package["version"] for package in manifest.inputs["packages"]] == ["1:1.35", "6.1.1-1"]  # type: ignore[attr-defined]
    assert "proxy:3128" in (site.cache / "apt/apt.conf").read_text()


def test_nothing_is_done_when_nothing_has_changed(site: Site) -> None:
    first = site.build()
    calls, before = len(site.tools.calls()), site.files()
    assert site.build() == first
    assert len(site.tools.calls()) == calls
    assert site.files() == before


def test_an_image_that_is_up_to_date_needs_no_cache(site: Site) -> None:
    first = site.build()
    shutil.rmtree(site.cache)
    site.tools.log.unlink()
    assert site.build() == first
    assert site.tools.calls() == []


def test_a_change_of_the_agent_touches_only_the_agent(site: Site) -> None:
    first = site.build()
    site.tools.log.unlink()
    (site.agent / "main.py").write_text("def main(): return 0\n")
    assert site.build() != first
    assert {line.split()[0] for line in site.tools.calls()} == {"chroot", "mke2fs"}


def test_what_only_the_host_has_leaves_the_images_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the digest of the builder, on a copy of what is installed."""
    for name in (*builder.AGENT_PACKAGES, "kata_traces"):
        source = builder._installed(name)
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(builder, "_installed", lambda name: tmp_path / name)

    def inputs() -> object:
        return builder._Build(tmp_path / "image", tmp_path / "cache", lambda _: None)._own_inputs()

    first = inputs()
    views = sorted(path for path in (tmp_path / "kata_traces/views").rglob("*") if path.is_file())
    assert {path.suffix for path in views} >= {".py", ".css"}
    for path in views:
        path.write_bytes(path.read_bytes() + b"\n")
    assert inputs() == first
    for package in builder.AGENT_PACKAGES:
        before = inputs()
        changed = tmp_path / package / "__init__.py"
        changed.write_text(f"{changed.read_text()}\n") if changed.exists() else changed.touch()
        assert inputs() != before, package


def test_force_asks_the_mirror_again(site: Site) -> None:
    site.build()
    site.tools.log.unlink()
    site.build(force=True)
    assert site.tools.calls("apt-get update")
    assert site.tools.calls("dpkg-deb")


@pytest.mark.parametrize("name", ["vmlinux", "initrd.img", "rootfs.img"])
def test_an_image_with_a_byte_that_changed_is_built_again(site: Site, name: str) -> None:
    """What the error of a start advises works."""
    manifest = site.build()
    path = site.output / name
    whole, state = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert site.build() == manifest
    assert path.read_bytes() == whole


def test_a_damaged_image_is_built_again(site: Site) -> None:
    site.build()
    Artifacts.at(site.output).image.write_bytes(b"")
    site.build()
    Artifacts.at(site.output).check()


def _broken(tool: str, message: str) -> Callable[[Site], None]:
    return lambda site: site.tools.add(tool, f"echo '{message}' >&2; exit 1")


def _missing(tool: str) -> Callable[[Site], None]:
    return lambda site: site.hide(tool)


@pytest.mark.parametrize(
    ("sabotage", "complaint", "hint"),
    [
        (_broken("apt-get", "E: Could not resolve deb.debian.org"), "package lists.*Could not resolve", "network"),
        (_broken("dpkg-deb", "unexpected end of file"), "can't unpack .*unexpected end of file", "damaged"),
        (_broken("mke2fs", "No space left on device"), "file system.*No space left", "free some space"),
        (_broken("chroot", "ModuleNotFoundError: No module named pydantic"), "No module named pydantic", "image"),
        (_missing("mke2fs"), "mke2fs is missing", "e2fsprogs"),
        (_missing("dpkg-deb"), "dpkg-deb is missing", "apt-get install dpkg"),
        (_missing("apt-get"), "apt-get is missing", "apt-get install apt"),
    ],
)
def test_a_failure_leaves_the_image_as_it_was(
    site: Site, sabotage: Callable[[Site], None], complaint: str, hint: str
) -> None:
    site.build()
    before = site.files()
    sabotage(site)
    with pytest.raises(ImageError, match=complaint) as caught:
        site.build(force=True)
    assert hint in caught.value.hint
    assert site.files() == before
    assert site.leftovers() == []


def test_a_full_disk_leaves_the_image_as_it_was(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build()
    before = site.files()

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("kata_runtime.image.builder.shutil.copyfile", full)
    with pytest.raises(ImageError, match="No space left on device") as caught:
        site.build(force=True)
    assert caught.value.hint == "free some space"
    assert site.files() == before
    assert site.leftovers() == []


def test_a_first_build_that_fails_leaves_no_image(site: Site) -> None:
    site.tools.add("mke2fs", "exit 1")
    with pytest.raises(ImageError):
        site.build()
    assert not site.output.exists()
    with pytest.raises(ImageError, match="no guest image") as caught:
        Artifacts.at(site.output).check()
    assert "kata-runtime image build" in caught.value.hint


def test_what_a_killed_build_left_goes_with_the_next(site: Site) -> None:
    site.build()
    (site.output.parent / f".{site.output.name}.new-killed").mkdir()
    (site.cache / ".base-0123.new-killed").mkdir()
    site.build()
    assert site.leftovers() == []


def test_two_builds_take_turns(site: Site) -> None:
    site.build()
    waiting = threading.Event()
    done: list[str] = []

    def report(line: str) -> None:
        if line.startswith("waiting"):
            waiting.set()

    with (site.cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(
            target=lambda: done.append(build(site.output, cache=site.cache, progress=report).digest)
        )
        other.start()
        assert waiting.wait(10)
        assert done == []
    other.join(10)
    assert done == [Artifacts.at(site.output).check().digest]


def test_root_is_needed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="needs root") as caught:
        site.build()
    assert "sudo" in caught.value.hint
