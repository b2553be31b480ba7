"""OCI bundles: a directory with config.json and a root filesystem, made by somebody else."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_common.documents import parse_json
from kata_common.files import is_directory
from kata_runtime.errors import RootfsError
from kata_runtime.oci.spec import Spec
from kata_runtime.oci.text import check_environment, check_text

__all__ = ["Bundle", "read_bundle", "read_process", "read_resources"]

# The agent's own limit for a specification.
_MAX_CONFIG = 8 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose `spec` has, where present, the types that `for_guest` relies on; `rootfs` is on the host."""

    directory: Path
    rootfs: Path
    spec: Spec


def read_bundle(directory: Path, *, mounted: bool = False) -> Bundle:
    """Read and check a bundle. With `mounted` its root filesystem is to be mounted yet: the place is made where it is
    missing (as by runc's shim).

    Raises:
        RootfsError: it is no bundle, or its config.json can't be used; the message names the field.
    """
    spec = read_spec(directory)
    rootfs = directory.absolute() / spec["root"]["path"]
    if mounted and rootfs.parent == directory.absolute():
        with suppress(OSError):  # what is there instead is told below
            rootfs.mkdir(mode=0o711, exist_ok=True)
    if not is_directory(rootfs):
        raise RootfsError(f"{directory / 'config.json'}: root.path: {rootfs} is not a directory")
    return Bundle(directory.absolute(), rootfs, spec)


def read_spec(directory: Path) -> Spec:
    """Read and check a bundle's config.json, whose root filesystem may be gone.

    Raises:
        RootfsError: as `read_bundle`.
    """
    path = directory / "config.json"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        hint = "an OCI bundle is a directory with config.json in it; for a plain root filesystem use --rootfs"
        raise RootfsError(f"{directory} is not an OCI bundle: there is no {path}", hint=hint) from None
    except OSError as error:
        raise RootfsError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _MAX_CONFIG:
        raise RootfsError(f"{path} is longer than {_MAX_CONFIG} bytes")
    try:
        spec = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise RootfsError(f"{path} is not JSON: {error}") from error
    if problem := _problem(spec, _CONFIG, ""):
        hint = "the OCI runtime specification says how it is written"
        raise RootfsError(f"{path}: {problem}", hint=hint)
    check_text(spec, "")
    check_environment(spec["process"].get("env") or (), "process.env")
    return dict(spec)


def read_process(content: bytes) -> Spec:
    """Check an OCI process that comes as JSON.

    Raises:
        RootfsError: it can't be used; the message names the field.
    """
    process = _read(content, "process", _PROCESS)
    check_environment(process.get("env") or (), "process.env")
    return process


def read_resources(content: bytes) -> Spec:
    """Check OCI's LinuxResources that come as JSON.

    Raises:
        RootfsError: it can't be used; the message names the field.
    """
    return _read(content, "resources", _RESOURCES)


def _read(content: bytes, what: str, shape: "_Shape") -> Spec:
    if len(content) > _MAX_CONFIG:
        raise RootfsError(f"{what} is longer than {_MAX_CONFIG} bytes")
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise RootfsError(f"{what} is not JSON: {error}") from error
    if problem := _problem(value, shape, what):
        raise RootfsError(problem, hint="the OCI runtime specification says how it is written")
    check_text(value, what)
    return dict(value)


class _Absolute(str):
    """Stands for an absolute path in a shape."""

    __slots__ = ()


# What a shape is: a type; a list of one shape; a mapping of keys to shapes, those that must be there marked with "!";
# or of _ANY to the shape of all members.
_ANY = "*"
_Shape = type | list[Any] | Mapping[str, Any]
_PROCESS: _Shape = {
    "args!": [str],
    "cwd!": _Absolute,
    "env": [str],
    "terminal": bool,
    "user": {"uid": int, "gid": int, "additionalGids": [int]},
    "rlimits": [{"type!": str, "soft!": int, "hard!": int}],
    "capabilities": {kind: [str] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
    "noNewPrivileges": bool,
    "oomScoreAdj": int,
    "scheduler": {
        "policy!": str,
        "nice": int,
        "priority": int,
        "flags": [str],
        "runtime": int,
        "deadline": int,
        "period": int,
    },
    "ioPriority": {"class!": str, "priority": int},
    "execCPUAffinity": {"initial": str, "final": str},
}
_MAPPING: _Shape = {"containerID!": int, "hostID!": int, "size!": int}
_RESOURCES: _Shape = {
    "cpu": {"shares": int, "quota": int, "period": int, "burst": int, "idle": int, "cpus": str, "mems": str},
    "memory": {"limit": int, "reservation": int, "swap": int, "checkBeforeUpdate": bool},
    "pids": {"limit": int},
    "blockIO": dict,
    "hugepageLimits": [{"pageSize!": str, "limit!": int}],
    "unified": dict,
    "devices": [{"allow!": bool, "type": str, "major": int, "minor": int, "access": str}],
}
_LINUX: _Shape = {
    "namespaces": [{"type!": str, "path": str}],
    "devices": [
        {"path!": str, "type!": str, "major": int, "minor": int, "fileMode": int, "uid": int, "gid": int},
    ],
    "resources": _RESOURCES,
    "seccomp": dict,
    "sysctl": {_ANY: str},
    "uidMappings": [_MAPPING],
    "gidMappings": [_MAPPING],
    "timeOffsets": dict,
    "rootfsPropagation": str,
    "maskedPaths": [str],
    "readonlyPaths": [str],
}
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_CONFIG: _Shape = {
    "process!": _PROCESS,
    "root!": {"path!": str, "readonly": bool},
    "mounts": [{"destination!": _Absolute, "type": str, "source": str, "options": [str]}],
    "linux": _LINUX,
    "hostname": str,
    "domainname": str,
    "hooks": {kind: [{"path!": _Absolute, "args": [str], "env": [str], "timeout": int}] for kind in _HOOKS},
    "annotations": {_ANY: str},
}
_NAMES = {str: "a string", int: "an integer", bool: "true or false", dict: "an object", _Absolute: "an absolute path"}


def _problem(value: object, shape: _Shape, where: str) -> str:
    """What is wrong with `value`, the first thing found; empty if nothing."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where}: expected a list"
        if where == "process.args" and not value:
            return f"{where}: there is no command"
        found = (_problem(member, shape[0], f"{where}[{index}]") for index, member in enumerate(value))
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{where or 'the whole'}: expected an object"
        members: Mapping[str, Any] = dict.fromkeys(value, shape[_ANY]) if _ANY in shape else shape
        found = (_member_problem(value, key, inner, where) for key, inner in members.items())
    else:
        return "" if _is(value, shape) else f"{where}: expected {_NAMES[shape]}"
    return next(filter(None, found), "")


def _member_problem(value: Mapping[str, Any], key: str, shape: _Shape, where: str) -> str:
    name = key.rstrip("!") if key not in value else key
    path = f"{where}.{name}" if where else name
    # Go's encoders write null for what is empty.
    if value.get(name) is None:
        return f"{path}: is missing" if key.endswith("!") else ""
    return _problem(value[name], shape, path)


def _is(value: object, kind: type) -> bool:
    if kind is _Absolute:
        return isinstance(value, str) and value.startswith("/")
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
