"""The agent's pure cores: ids, specifications, crun's words, mount options, the kernel's log."""

import json
from pathlib import Path

import pytest

from kata_agent.container.crun import exec_failure, explain, last_message
from kata_agent.container.spec import check_id, guest_spec, network_sysctls, parse, process_of
from kata_agent.errors import CommandNotExecutableError, CommandNotFoundError, CrunError, InvalidError
from kata_agent.server import boot
from kata_agent.server.app import Layout
from kata_common.contract import snake_case
from kata_runtime.sandbox.rootfs import GUEST_SHARED


@pytest.mark.parametrize("good", ["a", "A1", "x_y.z-1", "0" * 76])
def test_ids(good: str) -> None:
    assert check_id(good, "id") == good


@pytest.mark.parametrize("bad", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", "0" * 129, "a\0"])
def test_ids_that_are_no_file_names(bad: str) -> None:
    with pytest.raises(InvalidError, match="id"):
        check_id(bad, "id")


@pytest.mark.parametrize("data", [b"", b"{", b"1", b"[]", b"\xff", b"[" * 100_000, b" " * (9 << 20)])
def test_bytes_that_are_no_specification(data: bytes) -> None:
    with pytest.raises(InvalidError, match="the thing"):
        parse(data, "the thing")


def spec() -> dict[str, object]:
    return {
        "process": {"args": ["sh"], "apparmorProfile": "x", "selinuxLabel": "y"},
        "root": {"path": "/r"},
        "hostname": "h",
        "domainname": "d",
        "linux": {
            "namespaces": [
                {"type": "network", "path": "/proc/1/ns/net"},
                {"type": "ipc", "path": ""},
                {"type": "uts"},
                {"type": "pid"},
            ]
        },
    }


def test_guest_spec() -> None:
    changed = guest_spec(spec(), cgroup="/kata/c", shared={"ipc": "/run/ns/ipc", "uts": "/run/ns/uts"})
    assert changed["linux"]["cgroupsPath"] == "/kata/c"
    # The sandbox's, but for one of its own, which an empty path says.
    assert changed["linux"]["namespaces"] == [{"type": "ipc"}, {"type": "uts", "path": "/run/ns/uts"}, {"type": "pid"}]
    assert not {"hostname", "domainname"} & set(changed)
    assert changed["process"] == {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}


@pytest.mark.parametrize(
    "change",
    [
        {"process": None},
        {"process": {"args": []}},
        {"process": {"args": [1]}},
        {"process": {"args": ["a"], "cwd": 1}},
        {"root": {"path": "relative"}},
        {"root": []},
        {"linux": []},
        {"linux": {"namespaces": ["pid"]}},
        {"linux": {"namespaces": "pid"}},
    ],
)
def test_specifications_that_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        guest_spec({**spec(), **change}, cgroup="/c", shared={})


def test_process_needs_args() -> None:
    with pytest.raises(InvalidError, match="no args"):
        process_of({}, "process")


# Words of crun 1.8.1, as it was seen to say them.
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("executable file `nosuch` not found in $PATH: No such file or directory", CommandNotFoundError),
        ("open executable: Permission denied", CommandNotExecutableError),
        ("open executable: Operation not permitted", CommandNotExecutableError),
        ("exec container process `/bin/garbage`: Exec format error", CommandNotExecutableError),
        ("exec container process (missing dynamic library?) `/x`: No such file or directory", CommandNotFoundError),
        ("exec: Exec format error", CommandNotExecutableError),
        ("mount `proc` to `/proc`: Operation not permitted", CrunError),
        ("", CrunError),
    ],
)
def test_what_crun_means(text: str, kind: type[CrunError]) -> None:
    error = explain("create", text)
    assert type(error) is kind
    assert str(error).startswith("crun create: ")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exec container process `/bin/garbage`: Exec format error\n", 126),
        ("exec container process (missing dynamic library?) `/bin/x`: No such file or directory", 127),
        ("exec: No such file or directory", 127),
        ("hello", 0),
        ("executing: nothing: at all", 0),
    ],
)
def test_failed_execve(text: str, status: int) -> None:
    assert exec_failure(text) == status


def test_last_message(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_message(log) == ""
    lines = [json.dumps({"msg": "first"}), json.dumps({"msg": "second"}), json.dumps({"level": "x"})]
    log.write_text("\n".join(lines) + "\n")
    assert last_message(log) == "second"
    log.write_text("plain text\n")
    assert last_message(log) == "plain text"
    log.write_text("x" * 100_000)
    assert len(last_message(log)) <= 16 * 1024


@pytest.mark.parametrize(
    ("method", "name"),
    [("CreateSandbox", "create_sandbox"), ("GetOOMEvent", "get_oom_event"), ("TtyWinResize", "tty_win_resize"),
     ("Check", "check"), ("SetGuestDateTime", "set_guest_date_time")],
)  # fmt: skip
def test_span_names(method: str, name: str) -> None:
    assert snake_case(method) == name


def test_the_kernels_log() -> None:
    log = (
        b"<5>[    0.000000] Linux version 6.1\n<6>[    5.140900] Run /init as init process\n"
        b"<6>[   12.000001] kata: agent start\n<6>[   13.000000][    T1] kata: clock 7\n"
        b"<6>[   14.x] kata: no time\n[   15.000000] kata: no priority\n<6>[   16.000000] not kata: other\n\xff\xfe"
    )
    assert boot.parse_log(log) == [
        boot.Line(5_140_900_000, "Run /init as init process"),
        boot.Line(12_000_001_000, "kata: agent start"),
        boot.Line(13_000_000_000, "kata: clock 7"),
    ]
    assert boot.parse_log(b"") == []


def test_boot_stages() -> None:
    lines = [
        boot.Line(0, "Linux version"),
        boot.Line(1000, "Run /init as init process"),
        boot.Line(1100, "kata: initramfs start"),
        boot.Line(1300, "kata: initramfs modules"),
        boot.Line(2000, "kata: agent start"),
        boot.Line(3000, "kata: initramfs forged by a workload"),
        boot.Line(4000, "kata: clock 7000"),
    ]
    assert boot.offset_of(lines, "kata: clock 7000", 7000, 7010) == 3005
    assert boot.offset_of(lines, "kata: clock 1", 0, 1) is None
    assert boot.stages(lines, 5) == [
        ("boot.kernel", 0, 1005),
        ("boot.initramfs", 1005, 2005),
        ("boot.initramfs.start", 1105, 1305),
        ("boot.initramfs.modules", 1305, 2005),
    ]
    assert boot.stages([], 0) == []


def test_sysctls_of_the_network_are_taken_out() -> None:
    linux = {
        "sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.5/proxy_arp": "0", "kernel.shm_rmid_forced": "1"}
    }
    assert network_sysctls({"linux": linux}) == {"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0.5/proxy_arp": "0"}
    assert linux["sysctl"] == {"kernel.shm_rmid_forced": "1"}
    assert network_sysctls({}) == {}


@pytest.mark.parametrize(
    "name", ["net.", "net/../kernel/core_pattern", "net/a/../../kernel/x", "net/..", "net.a b", "net/./x"]
)
def test_sysctls_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(InvalidError, match="malformed"):
        network_sysctls({"linux": {"sysctl": {name: "1"}}})


def test_no_container_id_is_in_the_way_of_what_is_shared() -> None:
    """A container named `shared` once could not be created: its bundle would have been where the mount is."""
    assert not Path(GUEST_SHARED).is_relative_to(Layout().bundles)
