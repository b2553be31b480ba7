"""Fetches a container image into a file that `run --image` takes, by skopeo and the administrator's policy."""

import re
import tempfile
from pathlib import Path

from kata_runtime import process
from kata_runtime.errors import ImageError, ProcessError
from kata_runtime.oci.image import POLICY, accepted

__all__ = ["file_of", "pull"]

_TIMEOUT = 3600.0  # seconds
# skopeo's (containers-transports(5)); anything else is the name of an image in a registry.
_TRANSPORTS = ("containers-storage:", "dir:", "docker:", "docker-archive:", "docker-daemon:", "oci:", "oci-archive:")


def file_of(image: str) -> Path:
    """A file's name for an image, in the working directory."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", image.rpartition("/")[2]).strip("-.")
    return Path(f"{name or 'image'}.tar")


async def pull(image: str, file: Path, policy: Path = POLICY) -> None:
    """Put the image of this name into `file`, an OCI archive, in one step.

    Raises:
        ImageError: it can't be had, in skopeo's words; `file` is as it was.
        HostError: skopeo is missing.
    """
    skopeo = process.find_program("skopeo", package="skopeo")
    source = image if image.startswith(_TRANSPORTS) else f"docker://{image}"
    # On the same disk, and without a colon, which would separate path and reference.
    with tempfile.TemporaryDirectory(prefix=".kata-pull-", dir=_directory(file)) as work:
        argv = [skopeo, accepted(policy), f"--tmpdir={work}", "copy", source, f"oci-archive:image.tar:{_tag(image)}"]
        try:
            await process.run(["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", work, *argv], timeout=_TIMEOUT)
        except ProcessError as error:
            raise ImageError(
                f"{image} can't be pulled: {error.output.strip() or error}",
                hint="as NAME:TAG of a registry, or as skopeo has it: docker://…, oci:…",
            ) from error
        (Path(work) / "image.tar").replace(file)


def _directory(file: Path) -> Path:
    directory = file.absolute().parent
    if file.is_dir() or not directory.is_dir():
        raise ImageError(f"{file} is no place for an image", hint="--output FILE")
    return directory


def _tag(image: str) -> str:
    name, colon, tag = image.rpartition(":")
    return tag if colon and name and re.fullmatch(r"\w[\w.-]{0,127}", tag, re.ASCII) else "latest"
