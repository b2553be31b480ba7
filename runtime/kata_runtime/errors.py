"""What can go wrong on the host side, as one tree.

    KataError                    what happened, and a hint what to do; exit code 125
    ├── ConfigError              a configuration file or key
    ├── HostError                this machine lacks something (root, a program, a device)
    ├── ImageError               the guest image or a container image
    ├── RootfsError              a root filesystem or bundle given by the user
    ├── SandboxError             a sandbox in the wrong state, or an id that is taken
    ├── TemplateError            a template can't be used, or not be made: a cold start is no worse for it
    ├── ProcessError             a helper program failed (argv, exit status, what it said)
    ├── HypervisorError          QEMU did not start, died, or refused a command
    │   ├── QmpError             QEMU's own answer (command, class, description)
    │   └── BootError            the guest never became ready (stage, console, QEMU's words)
    └── AgentError               the agent refused a call (method, gRPC status)
        ├── CommandNotExecutableError  exit code 126
        └── CommandNotFoundError       exit code 127

Errors of libraries are translated once, where they enter (`raise … from`). Messages are for the person at the keyboard;
what a program wants to know is an attribute.
"""

from collections.abc import Sequence

__all__ = [
    "AgentError",
    "BootError",
    "CommandNotExecutableError",
    "CommandNotFoundError",
    "ConfigError",
    "HostError",
    "HypervisorError",
    "ImageError",
    "KataError",
    "ProcessError",
    "QmpError",
    "RootfsError",
    "SandboxError",
    "TemplateError",
    "quoted",
]


class KataError(Exception):
    """Root of the tree. `hint` says what the user can do about it and may be empty."""

    exit_code = 125

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(KataError):
    """A configuration file can't be used; the message names file and key."""


class HostError(KataError):
    """This machine lacks something that is needed."""


class ImageError(KataError):
    """The guest image can't be built or used, or a container image can't be unpacked."""


class RootfsError(KataError):
    """A root filesystem or bundle can't be used."""


class SandboxError(KataError):
    """The sandbox is not in a state in which this can be done, or its id is taken."""


class TemplateError(KataError):
    """A template, or the place for them, can't be used, or one can't be made."""


class ProcessError(KataError):
    """A helper program failed.

    `status` is its exit status (negative: the signal that ended it), `output` the end of what it wrote to stderr.
    """

    def __init__(self, argv: Sequence[str], status: int, output: str, *, hint: str = "") -> None:
        how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        said = f": {output.strip()}" if output.strip() else ""
        super().__init__(f"{argv[0]} {how}{said}", hint=hint)
        self.argv = tuple(argv)
        self.status = status
        self.output = output


class HypervisorError(KataError):
    """QEMU did not start, died, or can't do what is asked."""


class QmpError(HypervisorError):
    """QEMU refused a QMP command; `kind` is QMP's error class."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.kind = kind
        self.description = description


class BootError(HypervisorError):
    """The guest did not become ready; `stage` is how far it came, `console` its last lines, `cause` the one that tells
    most, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        stage: str,
        console: Sequence[str],
        hypervisor: str,
        output: str,
        hint: str = "",
        cause: str = "",
    ) -> None:
        parts = [f"{message}{f': {cause}' if cause else ''} (it came as far as: {stage})"]
        if console:
            parts += ["last lines of the guest's console:", *(f"  | {line}" for line in console)]
        super().__init__("\n".join(parts) + quoted(hypervisor, output), hint=hint)
        self.stage = stage
        self.console = tuple(console)
        self.output = output


def quoted(who: str, output: str, *, lines: int = 40) -> str:
    """What a program said last, to follow the message about its end: in the same line if that is all, or ""."""
    said = output.strip().splitlines()[-lines:]
    if len(said) > 1:
        return "\n".join([f"\n{who} said:", *(f"  | {line}" for line in said)])
    return f"; {who} said: {said[0]}" if said else ""


class AgentError(KataError):
    """The agent refused or failed a call; `code` is the name of the gRPC status, as NOT_FOUND."""

    def __init__(self, method: str, code: str, details: str, *, hint: str = "") -> None:
        super().__init__(f"agent: {method}: {details} ({code})", hint=hint)
        self.method = method
        self.code = code
        self.details = details


class CommandNotExecutableError(AgentError):
    """The workload's command is there but can't be executed."""

    exit_code = 126


class CommandNotFoundError(AgentError):
    """The workload's command is not in the container."""

    exit_code = 127
