"""What a container is made of: its specification for the guest, and its root filesystem."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kata_runtime.config.annotations import check_container
from kata_runtime.mount import Mount
from kata_runtime.oci import spec as oci
from kata_runtime.oci.bundle import Bundle
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
) -> Workload:
    """A bundle's specification, changed for the guest. `layers` are to be mounted at its root filesystem's place.

    Hooks for the host are the caller's to run. `share` is the container's id or `Sandbox.share_name`'s,
    `shm` is `Sandbox.shm`, `member` whether it joins a sandbox that others have as well.

    Raises:
        RootfsError: it wants what a guest can't be given.
    """
    with _trace.span("convertSpec", share=share) as span:
        guest = oci.for_guest(
            bundle.spec,
            rootfs=guest_rootfs(share),
            mounts=guest_mounts(share),
            bundle=str(bundle.directory),
            shm=shm,
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
        layers=layers,
        share=share,
        points=mount_points(guest.spec),
    )
    return Workload(guest.spec, rootfs, bundle)


def check(bundle: Bundle, *, member: bool) -> None:
    """Refuse a bundle that `of_bundle` would refuse, before there is a sandbox for it.

    Raises:
        RootfsError, ConfigError: it wants what a guest can't be given.
    """
    check_container(bundle.spec.get("annotations") or {})
    oci.for_guest(bundle.spec, rootfs="/", mounts="/", bundle=str(bundle.directory), member=member)


def tell(notes: Sequence[str]) -> None:
    """Say in the log what of a specification is not applied, and why: one line for one container."""
    if notes:
        _log.warning("not applied of the specification: %s", "; ".join(notes))
