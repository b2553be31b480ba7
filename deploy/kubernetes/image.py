"""Makes the OCI image that deploy/kubernetes runs, without a registry: `nox -s kubernetes`.

Of the Debian package, busybox, and install.sh. The archive is for `ctr images import`, or for skopeo to push.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TAG = "latest"
APPLETS = ("basename", "cat", "chroot", "md5sum", "cp", "env", "ls", "rm", "sh", "sleep")


def main() -> int:
    """Make it, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="kata-python_VERSION_amd64.deb")
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts", metavar="DIR", help="default: artifacts")
    options = parser.parse_args()
    busybox = shutil.which("busybox")
    if busybox is None:
        print("image.py: busybox is missing: apt-get install busybox-static", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="kata-oci-") as name:
        archive = make(options.package, Path(busybox), Path(name))
        options.output.mkdir(parents=True, exist_ok=True)
        target = options.output / f"{options.package.stem.removesuffix('_amd64')}.oci.tar"
        shutil.move(archive, target)
    print(target)
    return 0


def make(package: Path, busybox: Path, scratch: Path) -> Path:
    """The archive of an image with these in it, below the directory `scratch`."""
    layout, bundle = scratch / "layout", scratch / "bundle"
    image = ("--image", f"{layout}:{TAG}")
    for command in (("init", "--layout", layout), ("new", *image), ("unpack", "--rootless", *image, bundle)):
        run("umoci", *command)
    binaries = bundle / "rootfs/bin"
    binaries.mkdir(parents=True)
    shutil.copy2(busybox, binaries / "busybox")
    for applet in APPLETS:
        (binaries / applet).symlink_to("busybox")
    shutil.copy2(HERE / "install.sh", bundle / "rootfs")
    shutil.copy2(package, bundle / "rootfs")
    run("umoci", "repack", *image, bundle)
    run("umoci", "config", *image, "--config.entrypoint", "/install.sh", "--config.env", "PATH=/bin")
    archive = scratch / "image.tar"
    run("tar", "-C", layout, "-cf", archive, ".")
    return archive


def run(*command: str | Path) -> None:
    """Run a tool to its end; its output goes to stderr."""
    subprocess.run(list(map(str, command)), check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
