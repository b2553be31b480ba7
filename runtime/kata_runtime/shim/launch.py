"""What `start` hands to the daemon and `delete` works with, and the files that they leave for each other.

In a bundle (the working directory of all of them) are:

    address   where the shim listens; containerd reads it when it comes back after a restart
    shim.pid  the daemon's process id
    log       a fifo made by containerd, which copies what comes out of it to its own log
"""

import os

from kata_common.ids import MAX_SOCKET_PATH
from kata_runtime.shim.grouping import Group

__all__ = ["ADDRESS_FILE", "LOG_FIFO", "PID_FILE", "SOCKET_DIR", "Launch", "read_file", "socket_address"]

ADDRESS_FILE = "address"
PID_FILE = "shim.pid"
LOG_FIFO = "log"

# Where containerd's own shims have their sockets, whatever containerd's state directory is (pkg/shim/util_unix.go).
SOCKET_DIR = "/run/containerd/s"


class Launch:
    """One invocation of the shim, in full. All paths are absolute; `started` is a CLOCK_MONOTONIC reading (ns)."""

    __slots__ = (
        "address",
        "bundle",
        "containerd",
        "containerd_version",
        "debug",
        "forked",
        "group",
        "id",
        "namespace",
        "options",
        "publish_binary",
        "started",
        "traceparent",
        "ttrpc_address",
    )

    def __init__(self, *, namespace: str, container_id: str, bundle: str, group: Group) -> None:
        self.namespace = namespace
        self.id = container_id
        self.bundle = bundle
        self.group = group
        # unix:// and the path on which this sandbox's shim listens.
        self.address = ""
        # containerd's gRPC socket; its ttrpc socket, to which events go (empty: to nobody, as under CRI-O); its binary.
        self.containerd = ""
        self.ttrpc_address = ""
        self.publish_binary = ""
        self.containerd_version = ""
        self.debug = False
        self.options: list[tuple[str, bytes]] = []
        self.started = 0
        # When the daemon began, on the same clock.
        self.forked = 0
        self.traceparent = ""


def socket_address(launch: Launch, directory: str = "") -> str:
    """The address of a sandbox's shim: the same for all containers of a sandbox, and for nobody else on this host.

    Raises:
        OSError: `directory` is so long that no socket can be made in it.
    """
    import hashlib

    # containerd's socket is part of the name because several containerds may use the same namespaces and ids.
    name = hashlib.sha256("/".join((launch.containerd, launch.namespace, launch.group.sandbox_id)).encode()).hexdigest()
    path = f"{directory or SOCKET_DIR}/{name}"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise OSError(
            f"{path} is too long for a unix socket ({MAX_SOCKET_PATH} bytes); give containerd a shorter directory"
        )
    return f"unix://{path}"


def read_file(path: str) -> str:
    """The text in a small file, without white space around it; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
