"""The agent's dependencies from PyPI: wheels for the guest's Python, pinned with their hashes in requirements.txt."""

import hashlib
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.errors import ImageError
from kata_runtime.image import tools

__all__ = ["REQUIREMENTS", "Wheel", "Wheels"]

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
GUEST_PYTHON = "3.11"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in the cache, named as in the package index."""

    name: str
    version: str
    sha256: str
    file: str


class Wheels:
    """The wheels below the cache directory `cache`."""

    def __init__(self, cache: Path, progress: Callable[[str], None], requirements: Path = REQUIREMENTS) -> None:
        self._requirements = requirements
        self._progress = progress
        # A directory per list of requirements: what lies in it is complete, or it is not there.
        self.directory = cache / f"wheels-{self.key()[:16]}"

    def key(self) -> str:
        """Changes when the list of requirements does."""
        return hashlib.sha256(self._requirements.read_bytes()).hexdigest()

    def known(self) -> list[Wheel] | None:
        """The wheels that are in the cache, or None where they are not."""
        files = sorted(self.directory.glob("*.whl"))
        return [self._describe(path) for path in files] or None

    def update(self) -> list[Wheel]:
        """Download what is missing. Raises ImageError where there is no network or a hash does not match."""
        known = self.known()
        if known:
            return known
        self._progress("downloading Python packages")
        partial = self.directory.with_name(f"{self.directory.name}.partial")
        platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
        tools.run(
            [
                *(
                    sys.executable,
                    "-I",
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--require-hashes",
                    "--only-binary",
                    ":all:",
                ),
                *("--no-deps", "--python-version", GUEST_PYTHON, "--implementation", "cp"),
                *("--abi", "cp311", "--abi", "abi3", "--abi", "none", *platforms),
                *("--requirement", self._requirements, "--dest", partial),
            ],
            doing="download the agent's Python packages",
            hint="it needs the network and pip; behind a proxy set https_proxy",
        )
        partial.rename(self.directory)
        wheels = self.known()
        if wheels is None:
            raise ImageError(f"pip downloaded nothing: {self.directory}", hint="try again with --force")
        return wheels

    def unpack(self, wheel: Wheel, destination: Path) -> None:
        """Put the wheel's files into `destination`, as they lie in a site-packages directory."""
        try:
            with zipfile.ZipFile(self.directory / wheel.file) as archive:
                archive.extractall(destination)
        except zipfile.BadZipFile as error:
            raise ImageError(f"a wheel is damaged: {self.directory / wheel.file}", hint="build with --force") from error

    @staticmethod
    def _describe(path: Path) -> Wheel:
        name, version = path.name.split("-")[:2]
        return Wheel(name.replace("_", "-"), version, hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
