"""Builds the Debian package: `nox -s deb -- [--output DIR] [--version VERSION]`. The first time it downloads wheels.

The package has the project's wheel and those that it needs, for the Pythons of Debian 12, 13 and Ubuntu 24.04, pinned
by requirements.txt; its postinst makes a virtual environment of them, offline.
"""

import argparse
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kata_runtime.cli.install import documented
from kata_runtime.cli.main import whole_parser
from kata_runtime.install.items import CONFIGURATION, Layout, items

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "deb"
# What the distributions have, and the platforms of wheels that their glibc is new enough for.
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
HOME = "/opt/kata-python"
SHARE = "usr/share/kata-python"
PIP = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--quiet")


def main() -> int:
    """Build it, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts", metavar="DIR", help="default: artifacts")
    parser.add_argument(
        "--version", default=f"{version('kata-python')}-1", help="of the package (default: %(default)s)"
    )
    parser.add_argument("--python", action="append", choices=PYTHONS, help="for this Python alone; may be repeated")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kata-deb-") as name:
        tree = Path(name) / "tree"
        wheels(tree / SHARE, options.python or PYTHONS)
        files(tree)
        control(tree, options.version)
        target = options.output / f"kata-python_{options.version}_amd64.deb"
        # Most of it is wheels, which are compressed already.
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, target)
    print(target)
    return 0


def run(*command: str | Path) -> None:
    """Run a tool to its end; its output goes to stderr."""
    subprocess.run(list(map(str, command)), check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


# --- wheels ---------------------------------------------------------------------------------------------------------


def needed(python: str) -> set[str]:
    """The packages that the project needs, and what they need, with this Python on Linux."""
    found: set[str] = set()
    left = ["kata-python"]
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    while left:
        for text in requires(left.pop()) or ():
            wanted = Requirement(text)
            extras = ["", *wanted.extras]
            name = canonicalize_name(wanted.name)
            if wanted.marker and not any(wanted.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                continue
            if name not in found:
                found.add(name)
                left.append(name)
    return found


def pinned() -> dict[str, str]:
    """The entries of requirements.txt, with their hashes, by name."""
    entries: Iterator[str] = iter(re.split(r"\n(?=\S)", (ROOT / "requirements.txt").read_text()))
    return {canonicalize_name(entry.partition("==")[0]): entry for entry in entries}


def wheels(share: Path, pythons: "tuple[str, ...] | list[str]") -> None:
    """Put all wheels, and for each Python the list of its own with their hashes, into the package."""
    directory = share / "wheels"
    directory.mkdir(parents=True)
    own = own_wheel(directory)
    known = pinned()
    for python in pythons:
        listed = [known[name] for name in sorted(needed(python))]
        text = "\n".join([*listed, own, ""])
        for path in downloaded(python, "\n".join(listed)):
            if not (directory / path.name).exists():
                shutil.copy(path, directory)
        (share / f"requirements-{python}.txt").write_text(text)


def own_wheel(directory: Path) -> str:
    """The project's own wheel, built from a copy, for a build may write beside its sources; its entry."""
    with tempfile.TemporaryDirectory() as name:
        ignored = shutil.ignore_patterns("__pycache__", ".*", "artifacts", "tests")
        shutil.copytree(ROOT, Path(name, "source"), symlinks=True, ignore=ignored)
        run(
            *PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", directory, f"{name}/source"
        )
    [wheel] = directory.glob("kata_python-*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"kata-python=={version('kata-python')} --hash=sha256:{digest}"


def downloaded(python: str, requirements: str) -> list[Path]:
    """The wheels of a list, from the cache once they are there."""
    key = hashlib.sha256(f"{python}\n{requirements}".encode()).hexdigest()[:16]
    directory = CACHE / f"wheels-{python}-{key}"
    if not directory.is_dir():
        for stale in CACHE.glob(f"wheels-{python}-*"):
            shutil.rmtree(stale)
        partial = CACHE / f".wheels-{python}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        listed = partial / "requirements.txt"
        listed.write_text(requirements)
        abi = f"cp{python.replace('.', '')}"
        chosen = ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:", "--no-deps"]
        chosen += [word for name in (abi, "abi3", "none") for word in ("--abi", name)]
        chosen += [word for name in PLATFORMS for word in ("--platform", name)]
        run(*PIP, "download", *chosen, "--require-hashes", "--requirement", listed, "--dest", partial)
        listed.unlink()
        partial.rename(directory)
    return sorted(directory.glob("*.whl"))


# --- the rest -------------------------------------------------------------------------------------------------------


def files(tree: Path) -> None:
    """What `kata-runtime install` would write, as the package's own files."""
    layout = Layout(prefix="/usr", units="/usr/lib/systemd/system")
    for item in items(layout, f"{HOME}/current/bin", documented(whole_parser()), version("kata-python")):
        path = tree / item.path[1:]
        content = item.content
        if "/man/" in item.path:
            path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content, mtime=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        if item.link:
            path.symlink_to(item.link)
        else:
            path.write_bytes(content)
    documents = tree / "usr/share/doc/kata-python"
    documents.mkdir(parents=True)
    (documents / "copyright").write_text((ROOT / "LICENSE").read_text())
    run(sys.executable, "-P", ROOT / "docs/reference.py", "--output", documents / "reference")
    (documents / "changelog.gz").write_bytes(gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0))
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def control(tree: Path, release: str) -> None:
    """Control file and maintainer scripts."""
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    directory = tree / "DEBIAN"
    directory.mkdir()
    here = Path(__file__).parent
    for name in ("control.in", "postinst.in", "prerm", "postrm"):
        text = (here / name).read_text().replace("@VERSION@", release).replace("@SIZE@", str(size >> 10))
        (directory / name.removesuffix(".in")).write_text(text)
    for name in ("postinst", "prerm", "postrm"):
        (directory / name).chmod(0o755)
    (directory / "conffiles").write_text(f"{CONFIGURATION}\n")


if __name__ == "__main__":
    sys.exit(main())
