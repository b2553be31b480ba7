"""Names of attributes that are said in one place and read in another, and what they mean.

OpenTelemetry's names (semantic conventions 1.37, https://opentelemetry.io/docs/specs/semconv/) for what these cover;
Kata's `source`, `package`, `subsystem`, `sandbox_id`, `container_id` and `exec_id` as they are; `kata.*` for the rest.
The table in docs/tracing.md is made from SCHEMA (`python -m kata_telemetry.conventions`).
"""

from collections.abc import Mapping
from typing import Final

__all__ = [
    "ACCELERATOR",
    "CONTAINER_NAME",
    "CPU_PRESSURE",
    "FAILURE_HINT",
    "HOST_CPUS",
    "IMAGE_NAME",
    "IO_PRESSURE",
    "LABELS",
    "LOAD",
    "MEMORY_PRESSURE",
    "POD_NAME",
    "POD_NAMESPACE",
    "POD_UID",
    "SCHEMA",
    "SLOW",
    "START_PATH",
    "START_REASON",
    "STEAL",
    "of_pod",
]

FAILURE_HINT: Final = "kata.hint"
ACCELERATOR: Final = "kata.vm.accelerator"
SLOW: Final = "kata.start.slow"
START_PATH: Final = "kata.start.path"
START_REASON: Final = "kata.start.reason"
LOAD: Final = "kata.host.load"
HOST_CPUS: Final = "kata.host.cpus"
STEAL: Final = "kata.host.steal"
CPU_PRESSURE: Final = "kata.host.pressure.cpu"
IO_PRESSURE: Final = "kata.host.pressure.io"
MEMORY_PRESSURE: Final = "kata.host.pressure.memory"
CONTAINER_NAME: Final = "container.name"
IMAGE_NAME: Final = "container.image.name"
POD_NAME: Final = "k8s.pod.name"
POD_NAMESPACE: Final = "k8s.namespace.name"
POD_UID: Final = "k8s.pod.uid"

# By name: on which spans, and what it says.
SCHEMA: Final[Mapping[str, tuple[str, str]]] = {
    "source": ("all", "`runtime` or `agent`: who recorded the span (Kata's)"),
    "package": ("all", "the part of Kata that does this (Kata's)"),
    "subsystem": ("all", "the part of the package (Kata's)"),
    "sandbox_id": ("all", "the sandbox's id (Kata's)"),
    "container_id": ("of a container", "its id (Kata's)"),
    "exec_id": ("of an exec", "its id (Kata's)"),
    "exception.type": ("event `exception`", "the error's class"),
    "exception.message": ("event `exception`", "the error's text"),
    CONTAINER_NAME: ("root", "the container's name, as CRI or the engine gave it"),
    IMAGE_NAME: ("root", "the image that the container comes from"),
    POD_NAME: ("root", "the pod's name, from CRI's annotations"),
    POD_NAMESPACE: ("root", "the pod's namespace"),
    POD_UID: ("root", "the pod's uid"),
    ACCELERATOR: ("root", "`kvm`, or `tcg`: QEMU emulates the guest's processor"),
    SLOW: ("root", "true where the start took longer than `slow_start_threshold`"),
    START_PATH: ("root", "where the VM came from: `cold` (it booted), `template` (a clone), `pool` (a clone that ran)"),
    START_REASON: ("root", "why it is no clone: what stood against it"),
    FAILURE_HINT: ("the one that failed", "what to do about it, as stderr said it"),
    LOAD: ("root", "load of the host (one minute) when the sandbox began"),
    HOST_CPUS: ("root", "processors of the host that the runtime may use"),
    STEAL: ("root", "share of the start's processor time that the host's own hypervisor took away"),
    CPU_PRESSURE: ("root", "share of the start in which tasks of the host waited for a processor (PSI, some)"),
    IO_PRESSURE: ("root", "the same for disks"),
    MEMORY_PRESSURE: ("root", "the same for memory"),
}
# Of the root, what a list of traces shows and searches.
LABELS: Final = (CONTAINER_NAME, IMAGE_NAME, POD_NAME, POD_NAMESPACE, POD_UID, ACCELERATOR, SLOW, START_PATH)

# By annotation of config.json, the first that is there: containerd's CRI, CRI-O's, nerdctl's.
_ANNOTATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    POD_NAME: ("io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"),
    POD_NAMESPACE: ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"),
    POD_UID: ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
    CONTAINER_NAME: ("io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName", "nerdctl/name"),
    IMAGE_NAME: ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "org.opencontainers.image.ref.name"),
}
_LONGEST: Final = 256


def of_pod(annotations: Mapping[str, str]) -> dict[str, str]:
    """What the annotations of a container say about its pod and itself, by OpenTelemetry's names."""
    found = {}
    for name, keys in _ANNOTATIONS.items():
        value = next((annotations[key] for key in keys if annotations.get(key)), "")
        if value:
            found[name] = value[:_LONGEST]
    return found


def table() -> str:
    """SCHEMA as a table in Markdown."""
    rows = [f"| `{name}` | {where} | {what} |" for name, (where, what) in SCHEMA.items()]
    return "\n".join(["| attribute | spans | |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
