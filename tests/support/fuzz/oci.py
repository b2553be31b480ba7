"""What engines and images bring: bundles, processes, resources, indexes, archives, user databases."""

import functools
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from kata_runtime.config.annotations import read_annotations, with_annotations
from kata_runtime.config.model import Config, QemuConfig
from kata_runtime.errors import ConfigError, ImageError, RootfsError
from kata_runtime.oci import image
from kata_runtime.oci.archive import UNREADABLE, Bounds, BoundsError, Meter, entries, opened
from kata_runtime.oci.bundle import read_bundle, read_process, read_resources, read_spec
from kata_runtime.oci.resources import guest_resources
from kata_runtime.oci.sandbox import SandboxSpec
from kata_runtime.oci.spec import ContainerConfig, build, ensure_dev, for_guest, guest_process
from kata_runtime.oci.user import find_user
from support.fuzz.target import Shape, Target, text_of

__all__ = ["TARGETS", "wrote"]

_BOUNDS = Bounds(layers=4, size=1 << 20, entries=200, headers=64 << 10, seconds=2)
_ANY = Config(qemu=QemuConfig(enable_annotations=(".*",)))


@functools.cache
def _place() -> Path:
    """A directory in memory for whatever is read from files."""
    place = Path(tempfile.mkdtemp(prefix="kata-fuzz-", dir="/dev/shm"))
    import atexit
    import shutil

    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def wrote(name: str, data: bytes) -> Path:
    """A file of these bytes."""
    path = _place() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _bundle(data: bytes) -> None:
    directory = wrote("bundle/config.json", data).parent
    (directory / "rootfs").mkdir(exist_ok=True)
    spec = read_spec(directory)
    read_annotations(directory)
    SandboxSpec.of(spec)
    made = for_guest(spec, rootfs="/run/r", mounts="/run/m", bundle="/b", member=len(data) % 2 == 0)
    ensure_dev(made.spec)
    assert json.loads(json.dumps(made.spec)) == made.spec
    for mount in made.mounts:
        assert "/" not in mount.name
    read_bundle(directory)


def _process(data: bytes) -> None:
    made, _ = guest_process(read_process(data))
    again, _ = guest_process(read_process(json.dumps(made).encode()))
    assert again == made


def _resources(data: bytes) -> None:
    kept = guest_resources(read_resources(data))
    assert "devices" not in kept.value
    json.dumps(kept.value)


def _annotations(data: bytes) -> None:
    directory = wrote("annotated/config.json", data).parent
    with_annotations(_ANY, read_annotations(directory))


def _index(data: bytes) -> None:
    layout = wrote("layout/index.json", data).parent
    (layout / "oci-layout").touch()
    image._Source.find(f"{layout}:tag" if len(data) % 2 else str(layout), _BOUNDS)


def _layout(data: bytes) -> None:
    """Index, manifest and configuration are members of one object."""
    try:
        parts = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return  # of no use here
    layout = _place() / "unpacked"
    for digest, name in (("a" * 64, "manifest"), ("b" * 64, "config")):
        wrote(f"unpacked/blobs/sha256/{digest}", json.dumps(parts.get(name)).encode())
    wrote("unpacked/index.json", json.dumps(parts.get("index")).encode())
    digest, config, _ = image._read_layout(image._Source("oci", layout, ""), layout)
    image._has_zstd(layout, digest)
    for word in (*config.env, *config.entrypoint, *config.cmd, config.cwd, config.user):
        assert isinstance(word, str)
    config.args(["x"])


def _archive(data: bytes) -> None:
    path = wrote("archive", data)
    with opened(path) as file:
        meter = Meter(_BOUNDS)
        for _ in entries(file, meter):
            assert meter.entries <= _BOUNDS.entries
            assert meter.size <= _BOUNDS.size


def _named_archive(data: bytes) -> None:
    image._Source.find(str(wrote("archive", data)), _BOUNDS)


def _user(data: bytes) -> None:
    wanted, _, rest = data.partition(b"\0")
    passwd, _, group = rest.partition(b"\0")
    wrote("users/etc/passwd", passwd)
    wrote("users/etc/group", group)
    user = find_user(_place() / "users", wanted.decode(errors="surrogateescape"))
    for number in (user.uid, user.gid, *user.groups):
        assert 0 <= number <= 0xFFFF_FFFE


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _spec(**changes: Any) -> dict[str, Any]:
    """What engines write, fields that few use included."""
    spec = build(ContainerConfig(args=("sh", "-c", "true"), rootfs="rootfs", env=("A=b",), memory=1 << 26))
    linux = spec["linux"]
    linux["devices"] = [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}]
    linux["cgroupsPath"] = "/a/b"
    linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}],
    }
    linux["resources"] |= json.loads(_RESOURCES)
    linux["uidMappings"] = [{"containerID": 0, "hostID": 1000, "size": 1}]
    linux["namespaces"].append({"type": "network", "path": "/run/netns/x"})
    spec["mounts"] += [
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro", "rslave"]},
        {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/hostname", "options": ["bind"]},
        {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]},
    ]
    spec["hostname"] = "h"
    spec["hooks"] = {"prestart": [{"path": "/bin/true", "args": ["libnetwork-setkey", "0123456789ab"], "timeout": 3}]}
    spec["annotations"] = {
        "io.kubernetes.cri.sandbox-cpu-quota": "50000",
        "io.kubernetes.cri-o.PodLinuxResources": '{"cpu_quota": 1, "memory_limit_in_bytes": 2}',
    }
    return spec | changes


_PROCESS = _dumped(
    {
        "args": ["sh"],
        "cwd": "/",
        "env": ["A=b"],
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    }
)
_RESOURCES = _dumped(
    {
        "cpu": {"shares": 2, "quota": 5000, "period": 10000, "burst": 10, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 1 << 26, "swap": 1 << 27, "swappiness": 3},
        "pids": {"limit": 10},
        "blockIO": {"weight": 10},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "1000000", "cpu.max": "1000 10000"},
        "devices": [{"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"}],
    }
)
_KATA = "io.katacontainers."
_ANNOTATED = _dumped(
    {
        "annotations": {
            f"{_KATA}config.hypervisor.default_memory": "256",
            f"{_KATA}config.hypervisor.default_vcpus": "1.5",
            f"{_KATA}config.hypervisor.kernel_params": "quiet a=b",
            f"{_KATA}config.hypervisor.virtio_fs_extra_args": '["--xattr"]',
            f"{_KATA}config.runtime.enable_tracing": "true",
            f"{_KATA}config.agent.kernel_modules": "loop max_loop=3; dm",
        }
    }
)
_LAYOUT = _dumped(
    {
        "index": {
            "manifests": [{"digest": "sha256:" + "a" * 64, "annotations": {"org.opencontainers.image.ref.name": "tag"}}]
        },
        "manifest": {
            "config": {"digest": "sha256:" + "b" * 64},
            "layers": [{"digest": "sha256:" + "c" * 64, "mediaType": "t+gzip"}],
        },
        "config": {"config": {"Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": None, "WorkingDir": "/", "User": "1:2"}},
    }
)


def _tar(mode: str, **files: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as tar:  # type: ignore[call-overload] # its modes are literals
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/").replace("_json", ".json").replace("_layout", "-layout"))
            member.size = len(content)
            member.pax_headers = {"comment": "x" * 20}
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a" * 120
        tar.addfile(link)
    return made.getvalue()


_OCI = {
    "oci_layout": b'{"imageLayoutVersion":"1.0.0"}',
    "index_json": json.dumps(json.loads(_LAYOUT)["index"]).encode(),
}
_DOCKER = {"manifest_json": b'[{"Config":"c","RepoTags":["x:latest"],"Layers":["l"]}]'}
_TARS = tuple(_tar(f"w:{kind}", **files) for kind in ("", "gz", "bz2", "xz") for files in (_OCI, _DOCKER))
_USERS = text_of(
    (
        "root\0root:x:0:0:root:/root:/bin/sh\nuser:x:1000:100::/home/user:\n\0root:x:0:\nwheel:x:10:root,user\n",
        "user:wheel\0user:x:1000:100\n#c\n\nshort\n\0wheel:x:10:user\n",
        "1000\0a:x:1000:5:::\n\0b:x:5:a\n",
        "\0\0",
    )
)
_SPECS = (
    _dumped(_spec()),
    _dumped(_spec(linux={"namespaces": [{"type": "uts"}, {"type": "pid"}]})),
)
TARGETS = (
    Target(
        "oci-bundle",
        "oci.bundle.read_spec, oci.spec.for_guest, oci.sandbox",
        _bundle,
        _SPECS,
        (RootfsError, ConfigError),
        Shape.JSON,
        seconds=4.0,
    ),
    Target(
        "oci-process",
        "oci.bundle.read_process, oci.spec.guest_process",
        _process,
        (_PROCESS,),
        (RootfsError,),
        Shape.JSON,
    ),
    Target(
        "oci-resources",
        "oci.bundle.read_resources, oci.resources",
        _resources,
        (_RESOURCES,),
        (RootfsError,),
        Shape.JSON,
    ),
    Target("annotations", "config.annotations", _annotations, (_ANNOTATED,), (ConfigError,), Shape.JSON),
    Target(
        "image-index",
        "oci.image: index.json",
        _index,
        (_dumped(json.loads(_LAYOUT)["index"]),),
        (ImageError,),
        Shape.JSON,
    ),
    Target("image-layout", "oci.image: manifest, configuration", _layout, (_LAYOUT,), (ImageError,), Shape.JSON),
    Target(
        "image-archive",
        "oci.image: archives, docker's and OCI's",
        _named_archive,
        _TARS,
        (ImageError,),
        words=_TARS[:1],
    ),
    Target("tar", "oci.archive.entries", _archive, _TARS, (BoundsError, *UNREADABLE), words=_TARS[:1]),
    Target(
        "passwd-group",
        "oci.user.find_user",
        _user,
        _USERS,
        (RootfsError,),
        Shape.TEXT,
        text_of(("root", ":x:0:0:", "\0")),
    ),
)
