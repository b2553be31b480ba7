"""Which stage of a sandbox's life, and which lane of a view, a span belongs to: the one table of it.

A new span needs no row: its time counts for its parent's stage. One that begins another stage goes into STAGE_OF or
STAGE_OF_PREFIX; a row that no span in the code has fails tests/unit/traces/test_stages.py.
"""

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from kata_common.contract import snake_case

__all__ = ["Lane", "Role", "Rule", "Stage", "lane", "rule"]


class Stage(StrEnum):
    """In the order of a sandbox's life, as views show them."""

    CONFIG = "runtime start"
    HOST = "host setup"
    QEMU = "QEMU"
    # Of a clone, in place of a boot.
    RESTORE = "restore"
    HOTPLUG = "hotplug"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    INITRAMFS = "initramfs"
    AGENT = "agent"
    SANDBOX = "sandbox"
    CONTAINER = "container"
    EXEC = "exec"
    WORKLOAD = "workload"
    STOP = "stop"


class Lane(StrEnum):
    """Who did the work."""

    RUNTIME = "runtime"
    QEMU = "QEMU"
    KERNEL = "kernel"
    AGENT = "agent"
    CONTAINER = "container"


class Role(IntEnum):
    """What a span does with its time. Beside each other, the lower one is what the time is spent on."""

    WORKS = 0
    # It goes on by itself and nobody has to wait for it: the workload.
    LASTS = 1
    # It only waits for others.
    WAITS = 2


class Rule(NamedTuple):
    """What a name says about a span."""

    stage: Stage | None
    role: Role = Role.WORKS


# Names as in Kata where the operation exists there (see DESIGN, chapter 4); agent calls by their server's name.
STAGE_OF: Final[dict[str, Rule]] = {
    "rootSpan": Rule(None),
    "startRuntime": Rule(Stage.CONFIG),
    "startShim": Rule(Stage.CONFIG),
    "startDaemon": Rule(Stage.CONFIG),
    "awaitCreate": Rule(Stage.CONFIG, Role.WAITS),
    "loadConfig": Rule(Stage.CONFIG),
    "prepareWorkload": Rule(Stage.HOST),
    "unpackImage": Rule(Stage.HOST),
    "bindMountContainerRootfs": Rule(Stage.HOST),
    "create": Rule(Stage.HOST),
    "createSandboxFromConfig": Rule(Stage.HOST),
    "createSandbox": Rule(Stage.HOST),
    "createNetwork": Rule(Stage.HOST),
    "startVirtiofsd": Rule(Stage.HOST),
    "startVsockBackend": Rule(Stage.HOST),
    "StartVM": Rule(Stage.QEMU),
    # It waits for the monitor while QEMU starts, which is `boot.qemu`: whichever ends first, the blame must not change.
    "launchQemu": Rule(Stage.QEMU, Role.WAITS),
    "findTemplate": Rule(Stage.RESTORE),
    "copyMemory": Rule(Stage.RESTORE),
    "restoreVM": Rule(Stage.RESTORE),
    "HotplugDevices": Rule(Stage.HOTPLUG),
    "boot.firmware": Rule(Stage.FIRMWARE),
    "boot.kernel": Rule(Stage.KERNEL),
    "boot.initramfs": Rule(Stage.INITRAMFS),
    "boot.agent": Rule(Stage.AGENT),
    "waitVM": Rule(Stage.AGENT, Role.WAITS),
    "clockSync": Rule(Stage.AGENT),
    "get_guest_details": Rule(Stage.AGENT),
    "set_tracing": Rule(Stage.AGENT),
    "create_sandbox": Rule(Stage.SANDBOX),
    "setup_shared_namespaces": Rule(Stage.SANDBOX),
    "Start": Rule(Stage.CONTAINER),
    "createContainer": Rule(Stage.CONTAINER),
    "startContainer": Rule(Stage.CONTAINER),
    "create_container": Rule(Stage.CONTAINER),
    "start_container": Rule(Stage.CONTAINER),
    "Exec": Rule(Stage.EXEC),
    "enterContainer": Rule(Stage.EXEC),
    "exec_process": Rule(Stage.EXEC),
    "Wait": Rule(Stage.WORKLOAD, Role.WAITS),
    "waitProcess": Rule(Stage.WORKLOAD, Role.WAITS),
    "wait_process": Rule(Stage.WORKLOAD, Role.WAITS),
    "process": Rule(Stage.WORKLOAD, Role.LASTS),
    "sandbox": Rule(Stage.WORKLOAD, Role.LASTS),
    # Input that does not come holds the workload up; output just follows it.
    "stdio.stdin": Rule(Stage.WORKLOAD),
    "stdio.stdout": Rule(Stage.WORKLOAD, Role.WAITS),
    "stdio.stderr": Rule(Stage.WORKLOAD, Role.WAITS),
    "Stop": Rule(Stage.STOP),
    "stopSandbox": Rule(Stage.STOP),
    "StopVM": Rule(Stage.STOP),
    "stopContainer": Rule(Stage.STOP),
    "Delete": Rule(Stage.STOP),
    "Shutdown": Rule(Stage.STOP),
    "Cleanup": Rule(Stage.STOP),
    "remove_container": Rule(Stage.STOP),
    "destroy_sandbox": Rule(Stage.STOP),
}
STAGE_OF_PREFIX: Final[tuple[tuple[str, Rule], ...]] = (
    ("crun create", Rule(Stage.CONTAINER)),
    ("crun start", Rule(Stage.CONTAINER)),
    ("crun exec", Rule(Stage.EXEC)),
    ("crun delete", Rule(Stage.STOP)),
)
# The client side of an agent call: its stage is the server side's, also where the agent does not trace.
CALL: Final = "AgentService."

LANE_OF: Final[dict[str, Lane]] = {
    "launchQemu": Lane.QEMU,
    "boot.firmware": Lane.QEMU,
    "boot.kernel": Lane.KERNEL,
    "boot.initramfs": Lane.KERNEL,
    "boot.agent": Lane.AGENT,
    "process": Lane.CONTAINER,
}
LANE_OF_PREFIX: Final[tuple[tuple[str, Lane], ...]] = (
    ("qmp.", Lane.QEMU),
    ("boot.initramfs.", Lane.KERNEL),
    ("crun ", Lane.CONTAINER),
)


def rule(name: str) -> Rule | None:
    """The stage of spans called `name`; None where they belong to their parent's."""
    if name.startswith(CALL):
        name = snake_case(name.removeprefix(CALL))
    found = STAGE_OF.get(name)
    if found:
        return found
    return next((rule for prefix, rule in STAGE_OF_PREFIX if name.startswith(prefix)), None)


def lane(name: str, *, agent: bool) -> Lane:
    """The lane of spans called `name`; `agent` says whether the agent recorded them."""
    found = LANE_OF.get(name) or next((lane for prefix, lane in LANE_OF_PREFIX if name.startswith(prefix)), None)
    return found or (Lane.AGENT if agent else Lane.RUNTIME)
