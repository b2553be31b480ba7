"""What holds a sandbox's processes: the pod's cgroup, and what each of them still may."""

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_runtime.sandbox.cgroup import hierarchies
from support import processes
from support.kata import Kata

SECURITY = Path(__file__).parents[2] / "docs/security.md"
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
NAMES = {"qemu-system-x86_64": "QEMU", "vsock.device": "vsock backend"}
LIMIT = 450 << 20


def memory_top() -> Path:
    """The hierarchy that has the memory controller."""
    return next(top for top in hierarchies() if (top / "memory.limit_in_bytes").exists() or top.name == "memory")


@contextmanager
def pod(name: str) -> Iterator[Path]:
    """A cgroup with a limit of memory, as a kubelet makes one for a pod, in the hierarchy that has the controller."""
    directory = memory_top() / name
    directory.mkdir()
    (directory / "memory.limit_in_bytes").write_text(str(LIMIT))
    try:
        yield directory
    finally:
        directory.rmdir()


def bundle(directory: Path, cgroups_path: str, *command: str) -> Path:
    """A bundle of the default root file system that runs `command`."""
    subprocess.run(["crun", "spec"], cwd=directory, check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"] |= {"args": list(command), "terminal": False, "oomScoreAdj": 321}
    image = os.environ.get("KATA_IMAGE_DIR", "/var/lib/kata-containers/image")
    config["root"] = {"path": f"{image}/default-rootfs", "readonly": True}
    config["linux"]["cgroupsPath"] = cgroups_path
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def first_line(child: "subprocess.Popen[bytes]", timeout: float = 90) -> bytes:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], timeout)
    return child.stdout.readline() if ready else b""


def processes_of(cgroup: Path) -> dict[str, int]:
    """The sandbox's processes by name."""
    found = {}
    for pid in map(int, (cgroup / "cgroup.procs").read_text().split()):
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        name = next((known for sign, known in NAMES.items() if sign in command), command.split(" ")[0].split("/")[-1])
        # virtiofsd is two: one that waits outside, and one that serves.
        found[f"{name}, serving" if name in found else name] = pid
    return found


def test_a_guest_that_eats_all_its_memory_dies_in_its_pods_cgroup(kata: Kata, tmp_path: Path) -> None:
    """And nobody else: a neighbour in a cgroup of its own lives on."""
    name = f"kata-test-{os.getpid()}"
    eat = "echo begins; dd if=/dev/zero of=/dev/null bs=1600M count=1"
    with pod(name) as limited, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as neighbour:
        command = bundle(tmp_path, f"/{name}/box", "sh", "-c", eat)
        done = kata("run", "--bundle", str(command), "--memory", "2G")
        assert done.stdout.startswith(b"begins")
        assert done.returncode == 125
        assert b"killed by signal 9" in done.stderr
        assert int((limited / "memory.max_usage_in_bytes").read_text()) <= LIMIT
        assert int((limited / "memory.failcnt").read_text()) > 0
        assert neighbour.poll() is None
        assert neighbour.stdin is not None
        neighbour.stdin.close()
    assert not [top for top in hierarchies() if (top / name).exists() or (top / f"kata_{name}").exists()]


@pytest.fixture
def sandbox(kata: Kata, tmp_path: Path) -> Iterator[Path]:
    """The cgroup of a sandbox that runs."""
    name = f"kata-test-{os.getpid()}"
    command = bundle(tmp_path, f"/{name}/box", "sh", "-c", "echo begins; exec sleep 60")
    with kata.start("run", "--bundle", str(command), stdout=subprocess.PIPE) as child:
        try:
            assert first_line(child) == b"begins\n"
            yield memory_top() / name / "kata_box"
        finally:
            child.terminate()
            child.wait(60)


def facts(pid: int) -> dict[str, str]:
    """What a process may, in words."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    uid = int(status["Uid"].split()[0])
    limits = Path(f"/proc/{pid}/limits").read_text()
    ours = [name for name in NAMESPACES if namespace(pid, name) != namespace(os.getpid(), name)]
    descriptors = {descriptor_kind(path, target) for path, target in processes.open_files(pid).items()}
    return {
        "user": "root" if uid == 0 else "one of its own" if uid >= 0x7000_0000 else str(uid),
        "capabilities": capability_names(int(status["CapPrm"], 16)),
        "bounding set": capability_names(int(status["CapBnd"], 16)),
        "NoNewPrivs": status["NoNewPrivs"],
        "seccomp": {"0": "none", "2": "filter"}[status["Seccomp"]],
        "own namespaces": " ".join(ours),
        "root": root_of(pid),
        "core": re.search(r"Max core file size\s+(\S+)", limits)[1],  # type: ignore[index]
        "oom_score_adj": Path(f"/proc/{pid}/oom_score_adj").read_text().strip(),
        "descriptors": " ".join(sorted(descriptors)),
    }


def root_of(pid: int) -> str:
    """All that it sees of files: what is mounted at its root, of that file system (proc(5), mountinfo), and how."""
    root = Path(f"/proc/{pid}/root")
    if root.samefile("/"):
        return "the host's"
    mounts = [line.split()[3:6] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    [(source, options)] = [(source, options) for source, point, options in mounts if point == "/"]
    what = source.rpartition("/")[2] or ("a file system" if any(root.iterdir()) else "nothing")
    access = " ".join(word for word in options.split(",") if word in ("ro", "rw", "nosuid", "nodev", "noexec"))
    return f"{what} ({access})"


def namespace(pid: int, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def descriptor_kind(path: Path, target: str) -> str:
    """What a descriptor is of, without what differs from run to run."""
    if target.startswith("anon_inode:"):
        return target.removeprefix("anon_inode:").strip("[]")
    if target.startswith("/memfd:"):
        return "memfd"
    if path.is_char_device():
        return f"/dev/{Path(target).name}"  # of a mount that it sees no more
    if "/.uid-" in target:
        return "lease"
    if target.startswith("/"):
        return "image" if target.endswith(".img") else "directory" if path.is_dir() else "file"
    return target.partition(":")[0]


CAPABILITIES = {
    0: "chown", 1: "dac_override", 2: "dac_read_search", 3: "fowner", 4: "fsetid", 6: "setgid", 7: "setuid",
    8: "setpcap", 18: "sys_chroot", 21: "sys_admin", 24: "sys_resource", 27: "mknod", 31: "setfcap",
}  # fmt: skip


def capability_names(bits: int) -> str:
    return (
        " ".join(name for number, name in CAPABILITIES.items() if bits >> number & 1)
        + ("" if not bits & ~sum(1 << number for number in CAPABILITIES) else f" and more ({bits:x})")
        or "none"
    )


def documented() -> dict[str, dict[str, str]]:
    """The table of docs/security.md."""
    text = SECURITY.read_text()
    table = text.partition("<!-- facts: begin -->")[2].partition("<!-- facts: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    head, _, *body = rows
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def test_what_each_helper_may_is_what_the_documentation_says(sandbox: Path) -> None:
    found = {name: facts(pid) for name, pid in processes_of(sandbox).items()}
    if os.environ.get("KATA_WRITE_FACTS"):
        write(found)
    assert found == documented()


def write(found: dict[str, dict[str, str]]) -> None:
    """For whoever changed them on purpose."""
    head = ["process", *next(iter(found.values()))]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join([name, *row.values()])} |" for name, row in sorted(found.items())]
    before, _, rest = SECURITY.read_text().partition("<!-- facts: begin -->")
    after = rest.partition("<!-- facts: end -->")[2]
    SECURITY.write_text(before + "\n".join(["<!-- facts: begin -->", *lines, "<!-- facts: end -->"]) + after)


def test_a_killed_runtime_leaves_no_cgroup_and_no_user(kata: Kata, tmp_path: Path) -> None:
    """The next run on the host removes them."""
    name = f"kata-test-{os.getpid()}"
    command = bundle(tmp_path, f"/{name}/box", "sh", "-c", "echo begins; exec sleep 60")
    with kata.start("run", "--bundle", str(command), "--name", "killed", stdout=subprocess.PIPE) as child:
        assert first_line(child) == b"begins\n"
        cgroup = memory_top() / name / "kata_box"
        found = processes_of(cgroup)
        [user] = {Path(f"/proc/{found[name]}").stat().st_uid for name in ("QEMU", "vsock backend") if name in found}
        lease = Path(f"/run/kata/.uid-{user}")
        assert lease.is_file()
        pids = [os.pidfd_open(pid) for pid in found.values()]
        child.kill()
        deadline = time.monotonic() + 20
        for pid in pids:
            assert select.select([pid], [], [], max(deadline - time.monotonic(), 0))[0], "a helper outlives the runtime"
            os.close(pid)
    assert cgroup.exists()
    assert kata.run("true").returncode == 0
    assert not cgroup.exists()
    assert not lease.exists()
    for top in hierarchies():
        (top / name).rmdir()
