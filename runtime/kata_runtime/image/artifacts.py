"""A built guest image on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from kata_common.documents import parse_json
from kata_runtime.errors import ImageError

__all__ = ["BUILD_HINT", "FORMAT", "Artifacts", "Manifest"]

# Of the image and its manifest; the runtime boots only images of its own format.
FORMAT = 1
BUILD_HINT = "build it: kata-runtime image build"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image was made from (`inputs`) and what came out (`outputs`, sizes in bytes; `sha256`, digests).

    `digest` is that of the inputs; it has no date in it.
    """

    format: int
    digest: str
    kernel_version: str
    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    tools: Mapping[str, str]
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest. Raises ImageError where it can't be read or is of another format."""
        try:
            fields = parse_json(path.read_text())
            manifest = cls(**fields)
        except FileNotFoundError as error:
            raise ImageError(f"there is no guest image: {path.parent}", hint=BUILD_HINT) from error
        except (OSError, ValueError, TypeError) as error:
            raise ImageError(f"the guest image's manifest is damaged: {path}: {error}", hint=BUILD_HINT) from error
        if manifest.format != FORMAT:
            raise ImageError(
                f"the guest image has format {manifest.format}, this runtime boots format {FORMAT}: {path.parent}",
                hint=BUILD_HINT,
            )
        return manifest

    def dump(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Paths of an image: what QEMU boots, the root file system of the default container (a directory), the manifest."""

    kernel: Path
    initrd: Path
    image: Path
    default_rootfs: Path
    manifest: Path

    @classmethod
    def at(cls, directory: Path) -> Self:
        """The artifacts of the image in `directory`; says nothing about whether there is one."""
        return cls(
            kernel=directory / "vmlinux",
            initrd=directory / "initrd.img",
            image=directory / "rootfs.img",
            default_rootfs=directory / "default-rootfs",
            manifest=directory / "manifest.json",
        )

    @property
    def booted(self) -> tuple[Path, ...]:
        """The files that a guest boots from."""
        return (self.kernel, self.initrd, self.image)

    def check(self) -> Manifest:
        """The manifest of an image that is complete. Raises ImageError, with a hint, where it is not."""
        manifest = Manifest.load(self.manifest)
        for path in self.booted:
            size = path.stat().st_size if path.is_file() else None
            if size is None or size != manifest.outputs.get(path.name):
                state = "missing" if size is None else "damaged"
                raise ImageError(f"the guest image's {path.name} is {state}: {path}", hint=BUILD_HINT)
        if not self.default_rootfs.is_dir():
            raise ImageError(f"the default root file system is missing: {self.default_rootfs}", hint=BUILD_HINT)
        return manifest
