"""The table of all targets, by name."""

from support.fuzz import guest, oci, protocols, traces, vsock
from support.fuzz.target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    target.name: target for room in (oci, protocols, guest, vsock, traces) for target in room.TARGETS
}
