"""What a container is made of: its specification for the guest, and its root filesystem."""

import logging
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from kata_runtime.config.annotations import check_container
from kata_runtime.mount import Mount
from kata_runtime.oci import spec as oci
from kata_runtime.oci.bundle import Bundle
from kata_runtime.oci.disks import mounts_as_devices
from kata_runtime.sandbox import direct_volumes
from kata_runtime.sandbox.disks import DiskMount, DiskSource, guest_disk, node_source, root_disk
from kata_runtime.sandbox.rootfs import Rootfs, guest_mounts, guest_rootfs, mount_points
from kata_telemetry.span import Site

__all__ = ["Workload", "check", "of_bundle", "tell"]

_trace = Site(package="virtcontainers", subsystem="container")
_log = logging.getLogger("kata.sandbox")


@dataclass(frozen=True)
class Workload:
    """A container to be: its specification for the guest, its root filesystem, and the bundle that it is of, if any."""

    spec: oci.Spec
    rootfs: Rootfs
    bundle: Bundle | None = None


def of_bundle(
    bundle: Bundle,
    share: str,
    *,
    disable_guest_seccomp: bool,
    layers: tuple[Mount, ...] = (),
    shm: str = "",
    member: bool = False,
    disks: bool = True,
) -> Workload:
    """A bundle's specification, changed for the guest. `layers` are to be mounted at its root filesystem's place.

    Hooks for the host are the caller's to run. `share` is the container's id or `Sandbox.share_name`'s,
    `shm` is `Sandbox.shm`, `member` whether it joins a sandbox that others have as well. With `disks` a root filesystem
    that is a block device is for the guest to mount.

    Raises:
        RootfsError: it wants what a guest can't be given.
    """
    with _trace.span("convertSpec", share=share) as span:
        disk = root_disk(layers, guest_disk(share, "rootfs")) if disks else None
        volumes = _direct_volumes(bundle, share)
        guest = oci.for_guest(
            mounts_as_devices(bundle.spec),
            rootfs=disk.point if disk else guest_rootfs(share),
            mounts=guest_mounts(share),
            bundle=str(bundle.directory),
            shm=shm,
            volumes={volume.volume: volume.point for volume in volumes},
            member=member,
            disable_guest_seccomp=disable_guest_seccomp,
        )
        span.set(host_mounts=len(guest.mounts), dropped=len(guest.notes))
    tell(guest.notes)
    if oci.ensure_dev(guest.spec):
        _log.info("the bundle mounts nothing at /dev: the guest has a tmpfs there, not the root file system's own")
    readonly = bool((bundle.spec.get("root") or {}).get("readonly"))
    rootfs = Rootfs(
        bundle.rootfs,
        readonly=readonly,
        mounts=guest.mounts,
        layers=() if disk else layers,
        share=share,
        points=mount_points(guest.spec),
        disk=disk,
        volumes=volumes,
        nodes=guest.disks,
    )
    return Workload(guest.spec, rootfs, bundle)


def check(bundle: Bundle, *, member: bool) -> None:
    """Refuse a bundle that `of_bundle` would refuse, before there is a sandbox for it.

    Raises:
        RootfsError, ConfigError: it wants what a guest can't be given.
    """
    check_container(bundle.spec.get("annotations") or {})
    volumes = {volume.volume: volume.point for volume in _direct_volumes(bundle, "")}
    spec, directory = mounts_as_devices(bundle.spec), str(bundle.directory)
    guest = oci.for_guest(spec, rootfs="/", mounts="/", bundle=directory, volumes=volumes, member=member)
    for source in (*map(node_source, guest.disks), *(volume.source for volume in _direct_volumes(bundle, ""))):
        os.close(source.open())


def _direct_volumes(bundle: Bundle, share: str) -> tuple[DiskMount, ...]:
    """What of the bundle's mounts is a volume that only the guest mounts."""
    found: dict[str, DiskMount] = {}
    for mount in bundle.spec.get("mounts") or ():
        path = posixpath.normpath(posixpath.join(str(bundle.directory), mount.get("source") or ""))
        volume = direct_volumes.find(path)
        if volume is not None:
            disk = DiskSource(f"mount at {mount['destination']}", volume.device, readonly="ro" in volume.options)
            point = guest_disk(share, f"volume-{len(found)}")
            found.setdefault(path, DiskMount(disk, volume.fstype, point, volume.options, path))
    return tuple(found.values())


def tell(notes: Sequence[str]) -> None:
    """Say in the log what of a specification is not applied, and why: one line for one container."""
    if notes:
        _log.warning("not applied of the specification: %s", "; ".join(notes))
