"""`start` without a new process: a member of the pool, whose guest runs and whose imports are done, is the daemon.

Its guest is another's than the daemon would have had? Then it ends it and makes the right one, as a daemon does. Before
containerd has its answer nothing is imported but what asks for a member, and only where a pool serves.
"""

import base64
import os

from kata_common.places import POOL
from kata_runtime.shim.grouping import Group
from kata_runtime.shim.launch import Launch

__all__ = ["launch_of", "lend"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import socket
    from typing import Any

# As they are; `options` are bytes, `group` is an object of its own.
_PLAIN = tuple(name for name in Launch.__slots__ if name not in ("group", "options"))


def lend(launch: Launch, listener: "socket") -> int:
    """Have a member of the pool serve `listener`: its process id, 0 where there is none to be had."""
    pool = os.environ.get("KATA_POOL", POOL)
    # Of core scheduling: a member is in another group of processes.
    if not os.access(pool, os.F_OK) or os.environ.get("SCHED_CORE"):
        return 0
    from kata_runtime.pool.client import lend as lend_member

    request = {"do": "shim", "environment": dict(os.environ), "started": launch.started, "launch": _told(launch)}
    lent = lend_member(pool, request, (listener.fileno(),))
    if lent is None:
        return 0
    stream, pid = lent
    stream.close()
    return pid


def _told(launch: Launch) -> "dict[str, Any]":
    told = {name: getattr(launch, name) for name in _PLAIN}
    told["group"] = [launch.group.kind, launch.group.sandbox_id]
    told["options"] = [[kind, base64.b64encode(value).decode()] for kind, value in launch.options]
    return told


def launch_of(told: "Mapping[str, Any]") -> Launch:
    """What `lend` was asked for."""
    launch = Launch(namespace="", container_id="", bundle="", group=Group(*told["group"]))
    for name in _PLAIN:
        setattr(launch, name, told[name])
    launch.options = [(kind, base64.b64decode(value)) for kind, value in told["options"]]
    return launch
