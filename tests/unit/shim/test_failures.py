import pytest

from kata_runtime.errors import (
    AgentError,
    BootError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    HostError,
    KataError,
    RootfsError,
    SandboxError,
)
from kata_runtime.shim.failures import to_status
from kata_runtime.shim.ttrpc.errors import Code, NotFound


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AgentError("StatsContainer", "NOT_FOUND", "no such container"), Code.NOT_FOUND),
        # Of the command: a client would think that the container is gone.
        (AgentError("ExecProcess", "NOT_FOUND", "no such command"), Code.UNKNOWN),
        (AgentError("PauseContainer", "FAILED_PRECONDITION", "it is stopped"), Code.FAILED_PRECONDITION),
        (AgentError("Anything", "UNAVAILABLE", "the guest is gone"), Code.UNKNOWN),
        (ConfigError("bad key"), Code.INVALID_ARGUMENT),
        (RootfsError("bad bundle"), Code.INVALID_ARGUMENT),
        (SandboxError("not ready"), Code.FAILED_PRECONDITION),
        (HostError("no QEMU"), Code.FAILED_PRECONDITION),
        (BootError("no agent", stage="kernel", console=(), hypervisor="QEMU", output=""), Code.UNKNOWN),
    ],
)
def test_codes(error: KataError, code: Code) -> None:
    assert to_status(error).code == code


def test_people_get_the_hint_too() -> None:
    assert str(to_status(HostError("no QEMU", hint="install it"))) == "no QEMU (install it)"
    refused = NotFound("gone")
    assert to_status(refused) is refused


def test_docker_finds_its_words() -> None:
    missing = CommandNotFoundError("CreateContainer", "NOT_FOUND", "`x` not found in $PATH: No such file or directory")
    assert "no such file or directory" in str(to_status(missing))
    refused = CommandNotExecutableError("CreateContainer", "FAILED_PRECONDITION", "open executable: Permission denied")
    assert "permission denied" in str(to_status(refused))
