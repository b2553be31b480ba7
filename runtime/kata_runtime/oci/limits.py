"""What the containers of a sandbox may use, as far as it is known before the sandbox is made. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_common.documents import parse_json
from kata_runtime.errors import ConfigError

__all__ = ["NOTHING", "Asked", "Limits", "asked_by", "of_limits"]

# The kernel's default (cpu.max), in µs.
_PERIOD: Final = 100_000
# So much and more is how a limit says that there is none: the kernel's greatest number of pages, rounded somehow.
_NO_LIMIT: Final = 1 << 62
# What containerd's CRI says of all containers of a pod (pkg/cri/annotations), and CRI-O (pkg/annotations; JSON of CRI's
# LinuxContainerResources).
_CRI: Final = "io.kubernetes.cri.sandbox-"
_CRI_O: Final = "io.kubernetes.cri-o.PodLinuxResources"


@dataclass(frozen=True, slots=True)
class Asked:
    """What containers may use: CPUs, and bytes of memory; 0 is no limit."""

    cpus: float = 0.0
    memory: int = 0


NOTHING: Final = Asked()


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one container: its CPUs' quota and period (µs), and bytes of memory; 0 where nothing was said, -1 for none."""

    quota: int = 0
    period: int = 0
    memory: int = 0

    def changed(self, resources: Mapping[str, Any]) -> "Limits":
        """With what OCI's LinuxResources say; the rest stays."""
        cpu, memory = resources.get("cpu") or {}, resources.get("memory") or {}
        unified = resources.get("unified") or {}
        quota, period = _words(unified.get("cpu.max"), cpu.get("quota"), cpu.get("period"))
        (limit,) = _words(unified.get("memory.max"), memory.get("limit"))
        return Limits(quota or self.quota, period or self.period, limit or self.memory)

    @property
    def asked(self) -> Asked:
        """What they come to."""
        return of_limits(self.quota, self.period, self.memory)


def asked_by(spec: Mapping[str, Any], *, pod: bool) -> Asked:
    """What the first container of a sandbox says: of a pod by CRI's annotations, else by its own limits.

    Raises:
        ConfigError: an annotation is no number.
    """
    if pod:
        return _of_annotations(spec.get("annotations") or {})
    return Limits().changed((spec.get("linux") or {}).get("resources") or {}).asked


def _words(text: object, *usual: object) -> list[int]:
    """Numbers of a cgroup's file, where it is asked for; else the usual fields. What is no number says nothing."""
    words: list[object] = list(usual)
    if isinstance(text, str):
        words[: len(text.split())] = text.split()[: len(usual)]
    return [-1 if word == "max" else int(word) if re.fullmatch(r"-?\d{1,20}", word) else 0 for word in map(str, words)]


def of_limits(quota: int, period: int, memory: int) -> Asked:
    """What a quota and its period (µs) and bytes of memory ask for; zero and less, and what is huge, is no limit."""
    cpus = quota / (period if period > 0 else _PERIOD) if quota > 0 else 0.0
    return Asked(cpus, memory if 0 < memory < _NO_LIMIT else 0)


def _of_annotations(annotations: Mapping[str, str]) -> Asked:
    names = [f"{_CRI}{name}" for name in ("cpu-quota", "cpu-period", "memory")]
    values = {name: annotations[name] for name in names if annotations.get(name)}
    if not values and annotations.get(_CRI_O):
        values = _of_cri_o(annotations[_CRI_O])
        names = ["cpu_quota", "cpu_period", "memory_limit_in_bytes"]
    for name, value in values.items():
        if not re.fullmatch(r"-?\d{1,19}", str(value), re.ASCII):
            raise ConfigError(f"annotation {name}: expected an integer, got {str(value)[:60]!r}")
    quota, period, memory = (int(values.get(name, 0)) for name in names)
    return of_limits(quota, period, memory)


def _of_cri_o(text: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"annotation {_CRI_O} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"annotation {_CRI_O}: expected an object")
    return {
        name: value for name, value in values.items() if name in ("cpu_quota", "cpu_period", "memory_limit_in_bytes")
    }
