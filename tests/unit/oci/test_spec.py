"""OCI runtime configurations: what we make, and what becomes of one that was made for a host."""

import copy
import json
from typing import Any

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.oci.spec import (
    CAPABILITIES,
    ContainerConfig,
    GuestSpec,
    HostMount,
    User,
    build,
    ensure_dev,
    for_guest,
    merge_env,
)


def in_guest(
    spec: dict[str, Any], *, bundle: str = "/", member: bool = False, disable_guest_seccomp: bool = True
) -> GuestSpec:
    return for_guest(
        spec,
        rootfs="/guest/rootfs",
        mounts="/guest/mounts",
        bundle=bundle,
        member=member,
        disable_guest_seccomp=disable_guest_seccomp,
    )


def made_for_a_host(**linux: Any) -> dict[str, Any]:
    """What containerd writes for `ctr run`, as far as it matters here."""
    return {
        "ociVersion": "1.1.0",
        "process": {
            "args": ["sh"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["A=b"],
            "apparmorProfile": "docker-default",
            "selinuxLabel": "x",
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1073741816},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615},
            ],
        },
        "root": {"path": "/run/containerd/rootfs", "readonly": True},
        "hostname": "h",
        "annotations": {"a": "b"},
        "hooks": {"prestart": [{"path": "/usr/bin/nvidia"}], "startContainer": [{"path": "/in/container"}]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": "/host/path",
            "namespaces": [
                {"type": "pid"},
                {"type": "network", "path": "/var/run/netns/x"},
                {"type": "ipc"},
                {"type": "time"},
            ],
            "maskedPaths": ["/proc/kcore"],
            **linux,
        },
    }


def test_defaults() -> None:
    spec = build(ContainerConfig(args=("sh", "-c", "x"), rootfs="/r"))
    assert spec["root"] == {"path": "/r", "readonly": False}
    assert spec["process"]["args"] == ["sh", "-c", "x"]
    assert [entry["type"] for entry in spec["linux"]["namespaces"]] == ["pid", "ipc", "uts", "mount", "cgroup"]
    assert [mount["destination"] for mount in spec["mounts"]] == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
    ]
    assert spec["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert "hostname" not in spec
    assert json.loads(json.dumps(spec)) == spec


def test_calls_do_not_share_what_they_return() -> None:
    one, two = (build(ContainerConfig(args=("sh",), rootfs="/r")) for _ in range(2))
    one["mounts"][0]["options"].append("x")
    one["linux"]["resources"]["devices"][0]["allow"] = True
    assert two == build(ContainerConfig(args=("sh",), rootfs="/r"))


@pytest.mark.parametrize(("uid", "held"), [(0, list(CAPABILITIES)), (1000, [])])
def test_only_root_holds_capabilities(uid: int, held: list[str]) -> None:
    capabilities = build(ContainerConfig(args=("sh",), rootfs="/r", user=User(uid, uid)))["process"]["capabilities"]
    assert capabilities["bounding"] == list(CAPABILITIES)
    assert capabilities["effective"] == capabilities["permitted"] == held
    assert "inheritable" not in capabilities


def test_everything_that_can_be_asked_for() -> None:
    spec = build(
        ContainerConfig(
            args=("sh",),
            rootfs="/r",
            env=("PATH=/bin", "A=1"),
            cwd="/tmp",
            user=User(5, 6, (7, 8), "/home/u"),
            terminal=True,
            hostname="box",
            readonly=True,
            no_new_privileges=True,
            cpus=1.5,
            memory=1 << 20,
        )
    )
    process = spec["process"]
    assert process["env"] == ["PATH=/bin", "HOME=/home/u", "HOSTNAME=box", "TERM=xterm", "A=1"]
    assert process["user"] == {"uid": 5, "gid": 6, "additionalGids": [7, 8]}
    assert (process["terminal"], process["cwd"], process["noNewPrivileges"]) == (True, "/tmp", True)
    assert (spec["hostname"], spec["root"]["readonly"]) == ("box", True)
    assert spec["linux"]["resources"]["cpu"] == {"period": 100_000, "quota": 150_000}
    assert spec["linux"]["resources"]["memory"] == {"limit": 1 << 20}


def test_smallest_cpu_quota_is_one_that_the_kernel_takes() -> None:
    resources = build(ContainerConfig(args=("sh",), rootfs="/r", cpus=0.001))["linux"]["resources"]
    assert resources["cpu"]["quota"] == 1000


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ([], ()),
        ([("A=1", "B=2"), ("A=3",)], ("A=3", "B=2")),
        ([("A=1",), ("A=",)], ("A=",)),
        ([("A=b=c",), ("a=1",)], ("A=b=c", "a=1")),
    ],
)
def test_merge_env(layers: list[tuple[str, ...]], merged: tuple[str, ...]) -> None:
    assert merge_env(*layers) == merged


def test_for_guest_leaves_its_input_alone() -> None:
    spec = made_for_a_host()
    before = copy.deepcopy(spec)
    result = in_guest(spec)
    result.spec["process"]["env"].append("X=y")
    result.spec["linux"]["maskedPaths"].append("/x")
    assert spec == before


def test_for_guest_keeps_what_is_the_containers_and_drops_what_is_the_hosts() -> None:
    result = in_guest(made_for_a_host())
    spec = result.spec
    assert spec["root"] == {"path": "/guest/rootfs", "readonly": True}
    assert [entry for entry in spec["linux"]["namespaces"] if entry["type"] in ("network", "time")] == []
    assert {"pid", "ipc", "uts", "mount", "cgroup"} == {entry["type"] for entry in spec["linux"]["namespaces"]}
    assert "cgroupsPath" not in spec["linux"]
    assert "annotations" not in spec
    assert spec["linux"]["maskedPaths"] == ["/proc/kcore"]
    assert spec["process"]["rlimits"] == made_for_a_host()["process"]["rlimits"]
    assert not {"apparmorProfile", "selinuxLabel"} & set(spec["process"])
    assert spec["hooks"] == {"startContainer": [{"path": "/in/container"}]}
    assert result.hooks == {"prestart": [{"path": "/usr/bin/nvidia"}]}
    assert spec["hostname"] == "h"


def test_namespaces_that_the_host_shares_are_private_in_the_guest() -> None:
    """A container with the host's pid namespace (no entry) must not see the agent."""
    kinds = {entry["type"] for entry in in_guest(made_for_a_host(namespaces=[])).spec["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup"}


def test_user_namespace_keeps_its_mappings_only_if_it_is_the_containers_own() -> None:
    mappings = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    own = made_for_a_host(namespaces=[{"type": "user"}], uidMappings=mappings, gidMappings=mappings)
    linux = in_guest(own).spec["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == linux["gidMappings"] == mappings
    # One by path is made anew with the same mappings (a pod's containers have them), or it would be the guest's own.
    joined = made_for_a_host(
        namespaces=[{"type": "user", "path": "/proc/3/ns/user"}], uidMappings=mappings, gidMappings=mappings
    )
    linux = in_guest(joined).spec["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == mappings
    with pytest.raises(
        RootfsError, match=r"linux.namespaces\[0\].path can't be had in a VM: /proc/3/ns/user"
    ) as caught:
        in_guest(made_for_a_host(namespaces=[{"type": "user", "path": "/proc/3/ns/user"}]))
    assert "uidMappings" in caught.value.hint
    without = made_for_a_host(namespaces=[{"type": "pid"}], uidMappings=mappings, gidMappings=mappings)
    assert "uidMappings" not in in_guest(without).spec["linux"]


@pytest.mark.parametrize("disabled", [True, False])
def test_seccomp_is_the_configurations_choice(disabled: bool) -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
    result = in_guest(made_for_a_host(seccomp=profile), disable_guest_seccomp=disabled)
    assert result.spec["linux"].get("seccomp") == (None if disabled else profile)
    told = [note for note in result.notes if note.startswith("linux.seccomp: ")]
    assert told == (["linux.seccomp: [runtime] disable_guest_seccomp is set"] if disabled else [])


def test_network_sysctls_are_the_guests() -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
    result = in_guest(made_for_a_host(sysctl=sysctls))
    assert result.spec["linux"]["sysctl"] == sysctls


def test_resources() -> None:
    resources = {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
            {"allow": True, "type": "c", "access": "m"},
        ],
        "cpu": {"shares": 512, "quota": 1000, "period": 10000, "cpus": "0-3", "mems": "0", "burst": 7},
        "memory": {"limit": 1 << 20, "swappiness": 10, "kernel": 5, "disableOOMKiller": False},
        "pids": {"limit": 100},
        "blockIO": {"weight": 10},
        "network": {},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "unified": {"memory.high": "1", "cpuset.cpus": "0"},
    }
    result = in_guest(made_for_a_host(resources=resources))
    assert result.spec["linux"]["resources"] == {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": True, "type": "c", "access": "m"},
        ],
        "cpu": {"shares": 512, "quota": 1000, "period": 10000, "cpus": "0-3"},
        "memory": {"limit": 1 << 20},
        "pids": {"limit": 100},
        "blockIO": {"weight": 10},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "unified": {"memory.high": "1", "cpuset.cpus": "0", "cpu.max.burst": "7"},
    }
    assert [note.partition(": ")[0] for note in result.notes if "resources" in note] == [
        "linux.resources.cpu.mems",
        "linux.resources.memory.swappiness",
        "linux.resources.memory.kernel",
        "linux.resources.devices[2]",
    ]


def test_devices_of_the_host_have_no_meaning_in_the_guest() -> None:
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    disk = {"path": "/dev/loop-control", "type": "c", "major": 10, "minor": 237}
    result = in_guest(made_for_a_host(devices=[null, disk]))
    assert result.spec["linux"]["devices"] == [null]
    assert "linux.devices[1]: the guest doesn't have the host's /dev/loop-control" in result.notes


def mount(destination: str, source: str, kind: str = "bind", *options: str) -> dict[str, Any]:
    return {"destination": destination, "source": source, "type": kind, "options": list(options)}


def test_mounts_of_the_host_are_listed_and_renamed() -> None:
    spec = {
        **made_for_a_host(),
        "mounts": [
            mount("/data", "/srv/data", "bind", "rbind", "rw", "rshared"),
            mount("/etc/hosts", "hosts", "none", "bind", "ro"),
            mount("/x", "../../../etc", "bind"),
            mount("/run", "tmpfs", "tmpfs", "mode=755"),
        ],
    }
    result = in_guest(spec, bundle="/run/b")
    assert result.mounts == (
        HostMount("/srv/data", "000-data", "/data", False, follows=True),
        HostMount("/run/b/hosts", "001-hosts", "/etc/hosts", True),
        HostMount("/etc", "002-x", "/x", False),
    )
    assert result.spec["mounts"] == [
        mount("/data", "/guest/mounts/000-data", "bind", "rbind", "rw"),
        mount("/etc/hosts", "/guest/mounts/001-hosts", "bind", "bind", "ro"),
        mount("/x", "/guest/mounts/002-x", "bind"),
        mount("/run", "tmpfs", "tmpfs", "mode=755"),
    ]


@pytest.mark.parametrize("destination", ["/a/../..", "/a b/..", "/" + "x" * 300, "/", "/a\n/b\x1b"])
def test_names_of_mounts_are_plain(destination: str) -> None:
    [shared] = in_guest({**made_for_a_host(), "mounts": [mount(destination, "/srv")]}).mounts
    assert "/" not in shared.name
    assert shared.name.startswith("000-")
    assert shared.name.isprintable()
    assert len(shared.name) <= 68


def test_shared_memory_of_the_host_becomes_the_guests_own() -> None:
    spec = {**made_for_a_host(), "mounts": [mount("/dev/shm", "/run/containerd/x/shm", "bind", "rbind")]}
    result = in_guest(spec)
    assert result.mounts == ()
    assert result.spec["mounts"][0]["type"] == "tmpfs"
    shared = for_guest(spec, rootfs="/r", mounts="/m", shm="/guest/shm")
    assert shared.mounts == ()
    options = ["rbind", "nosuid", "noexec", "nodev"]
    assert shared.spec["mounts"] == [mount("/dev/shm", "/guest/shm", "bind", *options)]


def test_shared_memory_of_its_own_stays_its_own() -> None:
    """A tmpfs that only this container has, as with Docker's `--ipc=private`."""
    spec = {**made_for_a_host(), "mounts": [mount("/dev/shm", "shm", "tmpfs", "size=1m")]}
    assert for_guest(spec, rootfs="/r", mounts="/m", shm="/guest/shm").spec["mounts"] == spec["mounts"]


@pytest.mark.parametrize("source", ["/dev/sda", "/dev", "/proc/sys", "/sys/fs/bpf", "/srv/../dev/pts"])
def test_kernel_directories_of_the_host_are_refused(source: str) -> None:
    with pytest.raises(RootfsError, match=r"mount at /x: .* of the host can't be had in a VM"):
        in_guest({**made_for_a_host(), "mounts": [mount("/x", source)]})


@pytest.mark.parametrize(
    ("source", "kind"),
    [("/proc", "proc"), ("/sys", "sysfs"), ("/sys/fs/cgroup", "cgroup"), ("/dev/mqueue", "mqueue")],
)
def test_file_systems_of_the_hosts_kernel_become_the_guests_own(source: str, kind: str) -> None:
    result = in_guest({**made_for_a_host(), "mounts": [mount("/x", source, "bind", "rbind", "rslave", "nosuid", "ro")]})
    assert result.mounts == ()
    assert result.spec["mounts"] == [mount("/x", kind, kind, "nosuid", "ro")]
    assert f"mounts: {source} for /x is the guest's own, not the host's" in result.notes


@pytest.mark.parametrize("source", ["/dev/null", "/dev/urandom", "/dev/shm/files"])
def test_devices_of_every_kernel_and_files_in_memory_are_shared(source: str) -> None:
    [shared] = in_guest({**made_for_a_host(), "mounts": [mount("/x", source)]}).mounts
    assert shared.source == source


@pytest.mark.parametrize("kind", ["ext4", "nfs", "overlay", ""])
def test_file_systems_that_a_guest_cannot_be_given(kind: str) -> None:
    with pytest.raises(RootfsError, match="mount at /x: a file system of type") as caught:
        in_guest({**made_for_a_host(), "mounts": [mount("/x", "/dev/sdb1", kind)]})
    assert "bind mount" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "member", "own"),
    [
        ([], False, []),
        ([], True, []),
        (["pid", "ipc", "uts"], False, []),
        # Who joins a sandbox has what it names, and no more.
        (["pid", "ipc", "uts"], True, ["ipc", "uts"]),
        (["pid=/proc/9/ns/pid", "ipc=/proc/9/ns/ipc", "uts"], True, ["uts"]),
    ],
)
def test_namespaces_of_the_sandbox(asked: list[str], member: bool, own: list[str]) -> None:
    entries = [dict(zip(("type", "path"), entry.split("="), strict=False)) for entry in asked]
    found = in_guest(made_for_a_host(namespaces=entries), member=member).spec["linux"]["namespaces"]
    assert [entry["type"] for entry in found] == ["pid", "ipc", "uts", "mount", "cgroup"]
    assert [entry["type"] for entry in found if entry.get("path") == ""] == own


@pytest.mark.parametrize(
    ("namespaces", "said"),
    [
        ([{"type": "ipc", "path": "/proc/3/ns/ipc"}], "[0].path can't be had in a VM: /proc/3/ns/ipc is a namespace"),
        ([{"type": "pid"}, {"type": "mount", "path": "/m"}], "[1].path can't be had in a VM: /m is a namespace"),
        ([{"type": "cgroup", "path": "/c"}], "[0].path can't be had in a VM"),
        ([{"type": "time", "path": "/t"}], "[0].path can't be had in a VM"),
        ([{"type": "net"}], "[0].type: 'net' is no namespace of Linux"),
        ([{"type": "pid"}, {"type": "pid"}], "[1].type: there are two pid namespaces"),
    ],
)
def test_namespaces_that_cannot_be_had(namespaces: list[dict[str, str]], said: str) -> None:
    with pytest.raises(RootfsError) as caught:
        in_guest(made_for_a_host(namespaces=namespaces))
    assert f"linux.namespaces{said}" in str(caught.value)


def test_a_specification_of_ours_passes_unchanged() -> None:
    ours = build(ContainerConfig(args=("sh",), rootfs="/guest/rootfs", cpus=1, memory=1 << 30))
    result = in_guest(ours)
    theirs = {**result.spec, "linux": {key: value for key, value in result.spec["linux"].items() if value}}
    assert theirs == ours
    assert (result.mounts, dict(result.hooks), result.notes) == ((), {}, ())


@pytest.mark.parametrize(
    ("options", "readonly", "follows"),
    [
        ((), False, False),
        (("rbind", "ro"), True, False),
        (("bind", "rro", "rprivate"), True, False),
        (("ro", "rw"), False, False),
        (("rw", "nosuid", "ro", "rslave"), True, True),
        (("slave",), False, True),
    ],
)
def test_how_a_mount_of_the_host_is_shared(options: tuple[str, ...], readonly: bool, follows: bool) -> None:
    result = in_guest({**made_for_a_host(), "mounts": [mount("/data", "/srv", "bind", *options)]})
    assert [(found.readonly, found.follows) for found in result.mounts] == [(readonly, follows)]


def test_devices_are_never_made_in_the_root_file_system() -> None:
    spec = in_guest({**made_for_a_host(), "mounts": [mount("/x", "x", "tmpfs")]}).spec
    assert ensure_dev(spec)
    assert [(entry["destination"], entry["type"]) for entry in spec["mounts"]] == [("/dev", "tmpfs"), ("/x", "tmpfs")]
    for place in ("/dev", "/dev/", "dev"):
        given = {"mounts": [mount(place, "tmpfs", "tmpfs")]}
        assert not ensure_dev(given)
        assert len(given["mounts"]) == 1
