"""What a pod may change of the configuration, by annotations of its OCI specification.

Names are Kata's, `io.katacontainers.config.<table>.<key>`; `runtime.enable_tracing` is ours. Kata asks its key
`enable_annotations` only for annotations of the hypervisor; here it is asked for all. One that it does not allow, that
has a value which is none, or that asks for what is not here is an error. docs/compatibility.md has the table.
"""

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kata_common.documents import parse_json
from kata_runtime.config.model import Config
from kata_runtime.config.policy import policy_text
from kata_runtime.errors import ConfigError

__all__ = ["APPLIED", "FOREIGN", "PREFIX", "check_container", "read_annotations", "with_annotations"]

KATA = "io.katacontainers."
PREFIX = f"{KATA}config."
# Of each container, not only of the sandbox's own; and of the sandbox, outside its table (Kata's annotations.go).
CONTAINER = f"{KATA}container."

_log = logging.getLogger("kata.config")

# What Go's strconv.ParseBool takes, by which Kata reads them.
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise ValueError("true or false")
    return _BOOLEANS[text]


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return value

    return read


def _integer(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return int(text)

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("an absolute path")
    return text


def _modules(text: str) -> tuple[str, ...]:
    """Kata separates them by semicolons (docs/how-to/how-to-load-kernel-modules-with-kata.md)."""
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _words(text: str) -> tuple[str, ...]:
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError("a JSON array of strings")
    return tuple(found)


class Applied(NamedTuple):
    """Where a value goes: the table's attribute of `Config`, its field, and what makes the value of the text (its
    ValueError says what it should be). With `adds` it is appended.
    """

    table: str
    field: str
    read: Callable[[str], Any]
    adds: bool = False


# By the name after the prefix.
APPLIED: Mapping[str, Applied] = {
    "runtime.enable_tracing": Applied("runtime", "enable_tracing", _boolean),
    "runtime.disable_guest_seccomp": Applied("runtime", "disable_guest_seccomp", _boolean),
    "runtime.create_container_timeout": Applied("runtime", "create_container_timeout", _number(1, 86400)),
    "runtime.sandbox_cgroup_only": Applied("runtime", "sandbox_cgroup_only", _boolean),
    "agent.enable_tracing": Applied("agent", "enable_tracing", _boolean),
    "agent.kernel_modules": Applied("agent", "kernel_modules", _modules),
    "agent.debug_console_enabled": Applied("agent", "debug_console_enabled", _boolean),
    "agent.policy": Applied("agent", "policy", policy_text),
    "hypervisor.default_vcpus": Applied("qemu", "default_vcpus", _number(-1024, 1024)),
    "hypervisor.default_memory": Applied("qemu", "default_memory", _integer(64, 16 << 20)),
    "hypervisor.default_max_vcpus": Applied("qemu", "default_maxvcpus", _integer(0, 240)),
    "hypervisor.default_max_memory": Applied("qemu", "default_maxmemory", _integer(0, 16 << 20)),
    "hypervisor.kernel": Applied("qemu", "kernel", _path),
    "hypervisor.initrd": Applied("qemu", "initrd", _path),
    "hypervisor.image": Applied("qemu", "image", _path),
    "hypervisor.kernel_params": Applied("qemu", "kernel_params", str, adds=True),
    "hypervisor.machine_type": Applied("qemu", "machine_type", _one_of("q35")),
    "hypervisor.cpu_features": Applied("qemu", "cpu_features", str),
    "hypervisor.shared_fs": Applied("qemu", "shared_fs", _one_of("virtio-fs")),
    "hypervisor.virtio_fs_cache": Applied("qemu", "virtio_fs_cache", _one_of("never", "metadata", "auto", "always")),
    "hypervisor.virtio_fs_extra_args": Applied("qemu", "virtio_fs_extra_args", _words),
    "hypervisor.disable_vhost_net": Applied("qemu", "disable_vhost_net", _boolean),
    "hypervisor.guest_hook_path": Applied("qemu", "guest_hook_path", _path),
    "hypervisor.rootless": Applied("qemu", "rootless", _boolean),
}
_UNCHECKED = "files are not checked by a hash"
_NO_PROGRAM = "a pod can't name programs of the host: set it in configuration.toml"
# What Kata's keys are called where an annotation has another name (annotations.go, annotations/mod.rs).
_RENAMED = {
    "hypervisor.blk_logical_sector_size": ("hypervisor.qemu", "block_device_logical_sector_size"),
    "hypervisor.blk_physical_sector_size": ("hypervisor.qemu", "block_device_physical_sector_size"),
    "hypervisor.cc_init_data": ("hypervisor.qemu", "initdata"),
    "hypervisor.block_device_num_queues": ("hypervisor.qemu", "num_queues"),
    "hypervisor.block_device_queue_size": ("hypervisor.qemu", "queue_size"),
    "hypervisor.enable_swap": ("hypervisor.qemu", "enable_guest_swap"),
}
# Refused whatever they say, and what to do instead.
FOREIGN: Mapping[str, str] = {
    **{f"hypervisor.{what}_hash": _UNCHECKED for what in ("kernel", "initrd", "image", "firmware", "firmware_volume",
                                                          "path", "jailer_path")},
    "hypervisor.asset_hash_type": _UNCHECKED,
    "hypervisor.path": _NO_PROGRAM,
    "hypervisor.jailer_path": _NO_PROGRAM,
    "hypervisor.virtio_fs_daemon": _NO_PROGRAM,
    "hypervisor.default_gpus": "devices of the host are not passed to a guest",
    "hypervisor.default_gpu_model": "devices of the host are not passed to a guest",
    "runtime.experimental_force_guest_pull": "images are the host's to pull",
    "runtime.experimental.force_guest_pull": "images are the host's to pull",
}  # fmt: skip
_TABLES = {"hypervisor": "hypervisor.qemu", "agent": "agent.kata", "runtime": "runtime"}


def read_annotations(bundle: Path) -> dict[str, str]:
    """The annotations of Kata's in a bundle's config.json; none where it can't be read, which others will say."""
    try:
        content = (bundle / "config.json").read_bytes()
        # Most have none: the whole need not be parsed twice.
        found = parse_json(content).get("annotations") if KATA.encode() in content else {}
    except (OSError, ValueError, AttributeError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(key): str(value) for key, value in found.items() if str(key).startswith(KATA)}


def with_annotations(config: Config, annotations: Mapping[str, str]) -> Config:
    """`config` as a pod with these annotations wants it.

    Raises:
        ConfigError: one is not allowed, is unknown, has a value that is none, or asks for what is not here.
    """
    check_container(annotations)
    wanted = config
    for name in sorted(annotations):
        text = annotations[name].strip()
        if name == f"{KATA}config_path":
            raise ConfigError(f"annotation {name}: a pod can't name a file of the host", hint="use ConfigPath of "
                              "containerd's options for the runtime")  # fmt: skip
        if name == f"{KATA}enable_vcpus_pinning":
            _judge(name, text, "runtime", "enable_vcpus_pinning")
        if name.startswith(PREFIX):
            wanted = _with(config, wanted, name, text)
    return wanted


def check_container(annotations: Mapping[str, str]) -> None:
    """What annotations ask for one container, of whatever place in its pod.

    Raises:
        ConfigError: what is not here.
    """
    for name, text in sorted(annotations.items()):
        if str(name).startswith(CONTAINER) and str(text).strip() not in ("", "0"):
            raise ConfigError(f"annotation {name}: a guest has no swap", hint="remove it")


def _with(config: Config, wanted: Config, name: str, text: str) -> Config:
    key = name.removeprefix(PREFIX)
    table = _RENAMED.get(key) or (_TABLES.get(key.partition(".")[0], ""), key.partition(".")[2])
    rule = APPLIED.get(key)
    from kata_runtime.config.kata_keys import KATA_KEYS, agent_parameters

    if rule is None and key not in FOREIGN and table[1] not in KATA_KEYS.get(table[0], {}):
        near = difflib.get_close_matches(key, APPLIED, n=1, cutoff=0.6)
        raise ConfigError(f"annotation {name} is unknown", hint=f"did you mean {PREFIX}{near[0]}?" if near else
                          "docs/compatibility.md has those that there are")  # fmt: skip
    if not _allowed(config, key):
        raise ConfigError(f"annotation {name} is not enabled", hint="allow it by [hypervisor.qemu] enable_annotations")
    if key in FOREIGN:
        raise ConfigError(f"annotation {name} can't be had here: {FOREIGN[key]}", hint="remove it")
    if rule is None:
        _judge(name, text, *table)
        return wanted
    try:
        value = rule.read(text)
    except ValueError as error:
        raise ConfigError(f"annotation {name}: expected {error}, got {text[:60]!r}") from None
    if key == "hypervisor.kernel_params" and (problems := agent_parameters(text)):
        raise ConfigError(f"annotation {name}: {'; '.join(problems)}")
    before = getattr(wanted, rule.table)
    if rule.adds:
        value = " ".join(filter(None, (getattr(before, rule.field), value)))
    return replace(wanted, **{rule.table: replace(before, **{rule.field: value})})


def _judge(name: str, text: str, table: str, key: str) -> None:
    """A key of Kata's that we do not have: what is done here anyway is taken."""
    from kata_runtime.config.kata_keys import KATA_KEYS

    rule = KATA_KEYS[table][key]
    kind = type(rule.taken[0])
    value: object = text
    if kind is bool:
        value = _BOOLEANS.get(text)
    elif kind in (int, float):
        try:
            value = float(text)
        except ValueError:
            value = None
    elif kind is list:
        value = [] if text in ("", "[]") else [text]
    if value is None:
        raise ConfigError(
            f"annotation {name}: expected {'true or false' if kind is bool else 'a number'}, got {text[:60]!r}"
        )
    if value in rule.taken:
        return
    if not rule.noted:
        raise ConfigError(f"annotation {name} can't be {text[:60]!r} here: {rule.says}")
    _log.warning("annotation %s has no effect: %s", name, rule.says)


def _allowed(config: Config, name: str) -> bool:
    try:
        return any(
            re.fullmatch(pattern, text)
            for pattern in config.qemu.enable_annotations
            for text in (name, name.rpartition(".")[2])
        )
    except re.error as error:
        raise ConfigError(
            f"[hypervisor.qemu] enable_annotations: {error.pattern!r} is no regular expression: {error}"
        ) from error
