"""The guest image: kernel, initramfs and read-only root file system, built from Debian's and PyPI's packages."""

from collections.abc import Callable
from pathlib import Path

from kata_common import places
from kata_runtime.errors import ImageError
from kata_runtime.image.artifacts import Artifacts, Manifest

__all__ = ["DEFAULT_CACHE", "DEFAULT_OUTPUT", "Artifacts", "ImageError", "Manifest", "build"]

DEFAULT_OUTPUT = Path(places.IMAGE_DIR)
DEFAULT_CACHE = Path("/var/cache/kata-containers")


def build(output: Path, *, cache: Path, progress: Callable[[str], None], force: bool = False) -> Manifest:
    """Make the image in `output` unless it is up to date; see `kata_runtime.image.builder.build`."""
    # What only boots an image need not import what makes one.
    from kata_runtime.image import builder

    return builder.build(output, cache=cache, progress=progress, force=force)
