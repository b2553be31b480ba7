"""What `run` runs: root filesystem and specification, from whichever source the user named."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kata_runtime.errors import KataError
from kata_runtime.image import Artifacts
from kata_runtime.oci import spec as oci
from kata_runtime.oci.user import find_user
from kata_runtime.sandbox.rootfs import Rootfs, guest_path

__all__ = ["Workload", "prepare"]


@dataclass(frozen=True)
class Workload:
    """A container to be: its specification for the guest, its root filesystem, and what else of the host it mounts."""

    spec: oci.Spec
    rootfs: Rootfs
    mounts: tuple[oci.HostMount, ...] = field(default=())


def prepare(options: argparse.Namespace, argv: Sequence[str], image_dir: Path, container_id: str) -> Workload:
    """The workload of a `run` command line.

    Raises:
        KataError: no command, or a source that can't be used.
    """
    rootfs = Rootfs(options.rootfs.absolute()) if options.rootfs else _default_rootfs(image_dir)
    rootfs.check()
    if not argv:
        raise KataError("there is no command to run", hint="kata-runtime run … -- COMMAND [ARG…]")
    config = oci.ContainerConfig(
        args=tuple(argv),
        rootfs=guest_path(container_id),
        env=_environment(options.env),
        cwd=options.cwd or "/",
        user=find_user(rootfs.path, options.user),
        terminal=options.tty,
        hostname=container_id,
    )
    return Workload(oci.build(config), rootfs)


def _default_rootfs(image_dir: Path) -> Rootfs:
    path = Artifacts.at(image_dir).default_rootfs
    if not path.is_dir():
        raise KataError(f"the default root filesystem is missing: {path}", hint="build it: kata-runtime image build")
    return Rootfs(path, ephemeral=True)


def _environment(entries: Sequence[str]) -> tuple[str, ...]:
    for entry in entries:
        name, equals, _ = entry.partition("=")
        if not name or not equals:
            raise KataError(f"--env {entry!r} has no form K=V")
    return tuple(entries)
