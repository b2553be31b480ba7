"""What config.json asks for, in a real guest and beside runc: applied, or refused by name (docs/compatibility.md)."""

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.bundles import make_bundle, run_by_runc, runc_missing
from support.kata import Kata

pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(runc_missing()), reason=runc_missing() or "runc")]

# What does not depend on the kernel or on cgroup v1: both must say the same.
SAME = """
grep -E '^(Sig(Blk|Ign)|NoNewPrivs|Seccomp|Cap...|Groups|Umask):' /proc/self/status
hostname; cat /proc/sys/kernel/domainname; id; umask; ulimit -n; ulimit -c; ionice -p $$; cat /proc/self/oom_score_adj
env | sort; pwd; cat /proc/sys/kernel/msgmax; uname -m; nice; mkdir /tmp/denied; touch /proc/sys/x
stat -c %t:%T /dev/null; cat /proc/1/cmdline | tr '\\0' ' '; ls /sys/firmware; stat -c %a /dev/shm
"""
SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
}
ASKED: dict[str, Any] = {
    "hostname": "asked-name",
    "domainname": "asked.example",
    "process": {
        "env": ["PATH=/bin:/usr/bin", "GREETING=hi there", "EMPTY=", "EQUAL=a=b"],
        "cwd": "/tmp",
        "user": {"uid": 0, "gid": 0, "umask": 0o027, "additionalGids": [5, 7]},
        "capabilities": {kind: ["CAP_CHOWN", "CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        "noNewPrivileges": True,
        "oomScoreAdj": 250,
    },
    "linux": {
        "sysctl": {"kernel.msgmax": "8191"},
        "seccomp": SECCOMP,
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
    },
}


def test_what_runc_does(kata: Kata, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "sh", "-c", SAME, **ASKED)
    theirs = run_by_runc(bundle, f"spec{os.getpid()}")
    ours = kata("run", "--bundle", str(bundle))
    assert theirs.returncode == 0, theirs.stderr
    # runc 1.1 knows no domain name.
    wanted = theirs.stdout.decode().replace("(none)", "asked.example")
    assert ours.stdout.decode() == wanted
    assert b"asked-name" in ours.stdout
    assert b"Seccomp:\t2\n" in ours.stdout
    assert b"can't create directory '/tmp/denied': Permission denied" in ours.stderr
    assert ours.returncode == 0


# What runc has no answer to (1.1, or a host with cgroup v1): the file of the guest, and its content.
LIMITS = {
    "cpu.max": "50000 100000",
    "cpu.max.burst": "1000",
    "cpu.weight": "20",
    "cpuset.cpus": "0",
    "memory.max": "268435456",
    "memory.low": "134217728",
    "memory.high": "201326592",
    "pids.max": "77",
    "io.weight": "default 4950",
    "hugetlb.2MB.max": "4194304",
}


def test_every_limit_is_in_the_guests_cgroup(kata: Kata, tmp_path: Path) -> None:
    files = " ".join(f"/sys/fs/cgroup/{name}" for name in LIMITS)
    script = f"for f in {files}; do echo ${{f##*/}}=$(cat $f); done; ionice -p $$; cat /proc/self/stat | cut -d' ' -f41"
    resources = {
        "devices": [{"allow": False, "access": "rwm"}],
        "cpu": {"quota": 50000, "period": 100000, "burst": 1000, "shares": 512, "cpus": "0"},
        "memory": {"limit": 256 << 20, "reservation": 128 << 20},
        "pids": {"limit": 77},
        "blockIO": {"weight": 500},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}, {"pageSize": "64GB", "limit": 0}],
        "unified": {"memory.high": "201326592"},
    }
    process = {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
    }
    bundle = make_bundle(tmp_path / "b", "sh", "-c", script, linux={"resources": resources}, process=process)
    done = kata("run", "--bundle", str(bundle))
    lines = done.stdout.decode().splitlines()
    assert dict(line.split("=", 1) for line in lines[: len(LIMITS)]) == LIMITS, done.stderr
    # SCHED_BATCH is 3 (linux/sched.h).
    assert lines[len(LIMITS) :] == ["best-effort: prio 6", "3"]


def test_idle_and_swap_are_in_the_guests_cgroup(kata: Kata, tmp_path: Path) -> None:
    """An idle group has no weight, so not with the others; swap of OCI is memory and swap together."""
    files = " ".join(f"/sys/fs/cgroup/{name}" for name in ("cpu.idle", "memory.max", "memory.swap.max", "rdma.max"))
    resources = {
        "cpu": {"idle": 1},
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "swappiness": 10},
        "unified": {"pids.max": "55"},
    }
    script = f"for f in {files}; do cat $f; done; cat /sys/fs/cgroup/pids.max"
    bundle = make_bundle(tmp_path / "b", "sh", "-c", script, linux={"resources": resources})
    done = kata("run", "--bundle", str(bundle))
    assert done.stdout.decode().split() == ["1", str(64 << 20), str(32 << 20), "55"], done.stderr
    assert b"linux.resources.memory.swappiness" in done.stderr


REFUSED: dict[str, dict[str, Any]] = {
    "linux.intelRdt": {"linux": {"intelRdt": {"closID": "guaranteed"}}},
    "linux.memoryPolicy": {"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}},
    "linux.netDevices.eth0": {"linux": {"netDevices": {"eth0": {}}}},
    "linux.timeOffsets.monotonic": {"linux": {"timeOffsets": {"monotonic": {"secs": 5}}}},
    "linux.seccomp.listenerPath": {"linux": {"seccomp": {**SECCOMP, "listenerPath": "/run/listener"}}},
    "linux.resources.rdma.mlx5": {"linux": {"resources": {"rdma": {"mlx5": {"hcaHandles": 3}}}}},
    "linux.resources.unified.rdma.max": {"linux": {"resources": {"unified": {"rdma.max": "mlx5 hca_handle=2"}}}},
    "linux.namespaces[0].path": {"linux": {"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]}},
    "mounts[0].uidMappings": {
        "mounts": [
            {
                "destination": "/x",
                "source": "/tmp",
                "type": "bind",
                "options": ["bind"],
                "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
            }
        ]
    },
    "vm.hypervisor": {"vm": {"hypervisor": {"path": "/bin/false"}}},
    "process.env[0]": {"process": {"env": ["NOVALUE"]}},
    "process.args[1]": {"process": {"args": ["echo", "a\0b"]}},
    "hostname": {"hostname": "x", "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_refused_by_name(kata: Kata, tmp_path: Path, field: str) -> None:
    """Before anything is booted, in one line."""
    bundle = make_bundle(tmp_path / "b", "true", **REFUSED[field])
    done = kata("run", "--bundle", str(bundle))
    first, *rest = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert first.startswith(f"kata-runtime: {field}"), first
    assert len(rest) <= 2
    assert not list(kata.trace_dir.glob("*")) if kata.trace_dir.exists() else True


def test_noted(kata: Kata, tmp_path: Path) -> None:
    """What can't matter in a VM is told, once, and the container runs."""
    process = {"apparmorProfile": "docker-default", "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"}
    linux = {"mountLabel": "x", "resources": {"memory": {"swappiness": 60}}}
    bundle = make_bundle(tmp_path / "b", "echo", "ran", process=process, linux=linux, newField={"x": 1})
    done = kata("run", "--bundle", str(bundle))
    assert done.stdout == b"ran\n"
    [line] = [line for line in done.stderr.decode().splitlines() if "not applied of the specification" in line]
    for field in (
        "process.apparmorProfile",
        "process.selinuxLabel",
        "linux.mountLabel",
        "linux.resources.memory.swappiness",
        "newField: no field of the OCI runtime specification 1.3",
    ):
        assert field in line


def test_without_a_uts_namespace_the_name_is_the_hosts(kata: Kata, tmp_path: Path) -> None:
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "mount", "network")]
    bundle = make_bundle(tmp_path / "b", "hostname", linux={"namespaces": namespaces})
    spec = json.loads((bundle / "config.json").read_text())
    del spec["hostname"]
    (bundle / "config.json").write_text(json.dumps(spec))
    assert run_by_runc(bundle, f"uts{os.getpid()}").stdout.decode().strip() == socket.gethostname()
    assert kata("run", "--bundle", str(bundle)).stdout.decode().strip() == socket.gethostname()


def test_user_namespace(kata: Kata, tmp_path: Path) -> None:
    mappings = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    linux = {
        "uidMappings": mappings,
        "gidMappings": mappings,
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "user")],
    }
    script = "id -u; cat /proc/self/uid_map; touch /made"
    bundle = make_bundle(tmp_path / "b", "sh", "-c", script, linux=linux)
    subprocess.run(["chown", "-R", "100000:100000", str(bundle / "rootfs")], check=True)
    bundle.chmod(0o711)
    done = kata("run", "--bundle", str(bundle))
    assert done.stdout.split() == [b"0", b"0", b"100000", b"65536"], done.stderr
    assert (bundle / "rootfs/made").stat().st_uid == 100000
