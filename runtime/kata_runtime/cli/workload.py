"""What `run` runs: root filesystem and specification, from whichever source the user named."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kata_common.ids import hostname_of
from kata_runtime.cli.options import environment
from kata_runtime.errors import KataError
from kata_runtime.image import Artifacts
from kata_runtime.oci import spec as oci
from kata_runtime.oci.text import check_text
from kata_runtime.oci.user import find_user
from kata_runtime.sandbox.rootfs import Rootfs, guest_mounts, guest_rootfs
from kata_runtime.sandbox.workload import Workload, of_bundle, tell

__all__ = ["prepare"]


async def prepare(
    options: argparse.Namespace, argv: Sequence[str], image_dir: Path, container_id: str, *, disable_guest_seccomp: bool
) -> Workload:
    """The workload of a `run` command line.

    Raises:
        KataError: no command, or a source that can't be used.
    """
    if options.bundle:
        return _of_bundle(options, argv, container_id, disable_guest_seccomp=disable_guest_seccomp)
    variables: tuple[str, ...] = ()
    cwd, user = "/", ""
    if options.image:
        from kata_runtime.oci.image import unpack

        image = await unpack(options.image)
        rootfs = Rootfs(image.rootfs, ephemeral=True)
        variables, cwd, user = image.config.env, image.config.cwd, image.config.user
        argv = image.config.args(argv)
    elif options.rootfs:
        rootfs = Rootfs(options.rootfs.absolute())
    else:
        rootfs = _default_rootfs(image_dir)
    rootfs.check()
    if not argv:
        raise KataError("there is no command to run", hint="kata-runtime run … -- COMMAND [ARG…]")
    config = oci.ContainerConfig(
        args=tuple(argv),
        rootfs=guest_rootfs(container_id),
        env=oci.merge_env(variables, environment(options.env)),
        cwd=options.cwd or cwd,
        user=find_user(rootfs.path, options.user or user),
        terminal=options.tty,
        hostname=hostname_of(container_id),
    )
    spec = oci.build(config)
    spec["mounts"] += options.volume
    check_text(spec, "")
    if options.volume:
        guest = oci.for_guest(spec, rootfs=guest_rootfs(container_id), mounts=guest_mounts(container_id), bundle="/")
        tell(guest.notes)
        return Workload(guest.spec, replace(rootfs, mounts=guest.mounts))
    return Workload(spec, rootfs)


def _of_bundle(
    options: argparse.Namespace, argv: Sequence[str], container_id: str, *, disable_guest_seccomp: bool
) -> Workload:
    """A bundle's own specification, changed by what the command line says and then for the guest."""
    from kata_runtime.oci.bundle import read_bundle

    bundle = read_bundle(options.bundle)
    process = bundle.spec["process"]
    process["terminal"] = options.tty
    if argv:
        process["args"] = list(argv)
    process["env"] = list(oci.merge_env(process.get("env") or (), environment(options.env)))
    if options.cwd:
        process["cwd"] = options.cwd
    if options.user:
        user = find_user(bundle.rootfs, options.user)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    bundle.spec["mounts"] = [*(bundle.spec.get("mounts") or ()), *options.volume]
    check_text(process, "process")
    return of_bundle(bundle, container_id, disable_guest_seccomp=disable_guest_seccomp)


def _default_rootfs(image_dir: Path) -> Rootfs:
    path = Artifacts.at(image_dir).default_rootfs
    if not path.is_dir():
        raise KataError(f"the default root filesystem is missing: {path}", hint="build it: kata-runtime image build")
    return Rootfs(path, ephemeral=True)
