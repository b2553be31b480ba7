"""What the runtime and the agent must say alike: ports, calls and how they are traced, kinds of errors.

The messages themselves are protos/agent.proto's; docs/architecture.md has the ports in words. Boot marks are in
`kata_common.marks`, ids and bounds in `kata_common.ids`.
"""

import re
from enum import IntEnum, StrEnum
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "AGENT_SERVICE",
    "CALL_REPLY",
    "CALL_REQUEST",
    "CLOCK_ANSWER",
    "CLOCK_QUESTION",
    "CONNECTED",
    "ERROR_KEY",
    "HOST_CID",
    "HOST_SOCKET",
    "LOCALHOST_PORT",
    "MAX_CALL",
    "REFUSED",
    "RPCS",
    "Level",
    "Marker",
    "Port",
    "Rpc",
    "snake_case",
]

# OpenTelemetry's service.name of the agent's spans.
AGENT_SERVICE: Final = "kata-agent"
# The host's context id (VMADDR_CID_HOST of linux/vm_sockets.h).
HOST_CID: Final = 2


class Port(IntEnum):
    """Ports of vsock: the guest's, but for the last one. AGENT, CONSOLE and FORWARDER are Kata's, the others ours."""

    # gRPC.
    AGENT = 1024
    # A shell of the guest's own, where it was asked for.
    CONSOLE = 1026
    # Each connection is one stream of a process, known by the host's port number (StdioPorts).
    STDIO = 1027
    # CLOCK_QUESTION in, CLOCK_ANSWER out, as often as one likes.
    CLOCK = 1028
    # LOCALHOST_PORT in, CONNECTED or a refusal out, then the bytes of that connection.
    LOCALHOST = 1029
    # One call without gRPC: CALL_REQUEST in, CALL_REPLY out. The end of the connection cancels it.
    CALLS = 1030
    # HOST_SOCKET in, then nothing until somebody connects to that socket: CONNECTED out, and the bytes.
    SOCKETS = 1031
    # The trace forwarder, on the host (`kata_telemetry.wire`).
    FORWARDER = 10240


# Any eight bytes.
CLOCK_QUESTION: Final = Struct(">8s")
# The same bytes, CLOCK_MONOTONIC and CLOCK_REALTIME in ns.
CLOCK_ANSWER: Final = Struct(">8sqq")
LOCALHOST_PORT: Final = Struct(">H")
# The number that CreateContainerRequest gave a unix socket of the host.
HOST_SOCKET: Final = Struct(">I")
# Lengths of the message, of the method's name and of its metadata (key and value in turn, each ended by a zero byte),
# which follow in the order name, metadata, message.
CALL_REQUEST: Final = Struct(">IBH")
# The length of what follows, and gRPC's status. With OK the message follows, else a Marker or nothing, a zero byte, and
# text.
CALL_REPLY: Final = Struct(">IB")
MAX_CALL: Final = 4 << 20
CONNECTED: Final = b"\0"
REFUSED: Final = b"\1"

# The key of gRPC's trailing metadata that says which kind of error its text describes. The host must match no text.
ERROR_KEY: Final = "kata-error"


class Marker(StrEnum):
    """Kinds of errors on which the host acts."""

    COMMAND_NOT_FOUND = "command-not-found"
    COMMAND_NOT_EXECUTABLE = "command-not-executable"


class Level(IntEnum):
    """How much of a trace is recorded."""

    OFF = -1
    # The stages of a sandbox's life.
    ESSENTIAL = 0
    NORMAL = 1
    # What is asked again and again, and each single step.
    DETAILED = 2

    @classmethod
    def of(cls, name: str) -> "Level":
        """The level called `name`, as configuration.toml has it. Raises ValueError."""
        try:
            return cls[name.upper()]
        except KeyError:
            raise ValueError(f"trace level {name!r} is none of essential, normal, detailed") from None


class Rpc(NamedTuple):
    """How a call of protos/agent.proto is traced, by both sides.

    Without a `level` neither records a span. Of a call that `repeats` (a dashboard asks) the agent records the first
    ones of a sandbox only.
    """

    level: Level | None = Level.NORMAL
    repeats: bool = False


# A new call needs its row here, besides its message, its method in the agent and whoever calls it (docs/adding.md).
RPCS: Final[dict[str, Rpc]] = {
    "CreateSandbox": Rpc(Level.ESSENTIAL),
    "DestroySandbox": Rpc(Level.ESSENTIAL),
    # It forgets itself.
    "ForgetSandbox": Rpc(None),
    "CreateContainer": Rpc(Level.ESSENTIAL),
    "StartContainer": Rpc(Level.ESSENTIAL),
    "RemoveContainer": Rpc(Level.ESSENTIAL),
    "StatsContainer": Rpc(Level.DETAILED, repeats=True),
    "PauseContainer": Rpc(),
    "ResumeContainer": Rpc(),
    "UpdateContainer": Rpc(),
    "UpdateEphemeralMounts": Rpc(),
    "GetDiagnosticData": Rpc(),
    "ExecProcess": Rpc(Level.ESSENTIAL),
    "SignalProcess": Rpc(),
    "WaitProcess": Rpc(Level.ESSENTIAL),
    "ListProcesses": Rpc(Level.DETAILED, repeats=True),
    "CloseStdin": Rpc(),
    "TtyWinResize": Rpc(Level.DETAILED),
    "UpdateInterface": Rpc(),
    "UpdateRoutes": Rpc(),
    "AddARPNeighbors": Rpc(),
    "ListInterfaces": Rpc(Level.DETAILED),
    "ListRoutes": Rpc(Level.DETAILED),
    "GetIPTables": Rpc(),
    "SetIPTables": Rpc(),
    "GetGuestDetails": Rpc(Level.DETAILED),
    # The timekeeper's, as long as the sandbox lives.
    "SetGuestDateTime": Rpc(None),
    "ReseedRandomDev": Rpc(),
    "GetMetrics": Rpc(Level.DETAILED, repeats=True),
    "CopyFile": Rpc(Level.DETAILED, repeats=True),
    "AddSwap": Rpc(),
    "AddSwapPath": Rpc(),
    "SetPolicy": Rpc(),
    # They last as long as the sandbox: a span would say nothing.
    "GetOOMEvent": Rpc(None),
    "StreamSpans": Rpc(None),
    "OnlineCPUMem": Rpc(),
    "MemHotplugByProbe": Rpc(),
    # A kubelet asks again and again.
    "GetVolumeStats": Rpc(Level.DETAILED, repeats=True),
    "ResizeVolume": Rpc(),
    "SetTracing": Rpc(),
    # Asked every few seconds.
    "Check": Rpc(None),
    "Version": Rpc(None),
}

_WORD: Final = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"


def snake_case(method: str) -> str:
    """`CreateContainer` → `create_container`, `GetOOMEvent` → `get_oom_event`, `Wait4Exit` → `wait4_exit`.

    So are called the methods that answer a call, and their spans (Kata's agent names them like this, too).
    """
    return re.sub(_WORD, "_", method).lower()
