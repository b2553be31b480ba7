"""The configuration as the rest of the runtime sees it: frozen dataclasses, one per table of configuration.toml.

Names, units and meanings are Kata's where Kata has the key (its configuration-qemu.toml, 4.1.0); what is ours says so.
A default stands here once more than in configuration.toml; a test holds the two together. This module costs next to
nothing to import: pydantic reads these classes only when a file has changed (see `load`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from kata_common import places

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["AgentConfig", "Config", "FactoryConfig", "QemuConfig", "RuntimeConfig"]

# QEMU's own seccomp filter as strict as it gets for what we ask of QEMU after its start.
QEMU_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class _Schema:
    """Further entries of pydantic-core's schema for a type, in a form that does not need pydantic to be imported."""

    def __init__(self, **entries: object) -> None:
        self.entries = entries

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        merged: Any = {**handler(source), **self.entries}
        return merged  # type: ignore[no-any-return]


# A tuple that TOML writes as an array: the container is lax, its members stay strict.
Strings = Annotated[tuple[str, ...], _Schema(strict=False)]
Seconds = Annotated[float, _Schema(gt=0, le=86400)]
AbsolutePath = Annotated[str, _Schema(pattern=r"^(/.*)?$")]
# OpenTelemetry's standard names (OTEL_TRACES_SAMPLER); empty: the variable's.
Sampler = Literal[
    "",
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]
LogLevel = Literal["debug", "info", "warning", "error"]
# What pydantic has to know; a plain dict, so that nothing is imported for it.
_STRICT = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, slots=True)
class QemuConfig:
    """`[hypervisor.qemu]`: the virtual machine. An empty path means: find it, or use what `image build` made."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    path: str = ""
    kernel: AbsolutePath = ""
    initrd: AbsolutePath = ""
    image: AbsolutePath = ""
    kernel_params: str = ""
    machine_type: Literal["q35"] = "q35"
    cpu_features: str = "pmu=off"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"  # ours
    default_vcpus: Annotated[float, _Schema(ge=-1024, le=1024)] = 1.0
    default_memory: Annotated[int, _Schema(ge=64, le=16 << 20)] = 2048  # MiB
    default_maxvcpus: Annotated[int, _Schema(ge=0, le=240)] = 0
    default_maxmemory: Annotated[int, _Schema(ge=0, le=16 << 20)] = 0  # MiB
    block_device_driver: Literal["virtio-scsi", "virtio-blk", "virtio-blk-pci"] = "virtio-scsi"
    disable_block_device_use: bool = False
    shared_fs: Literal["virtio-fs"] = "virtio-fs"
    virtio_fs_daemon: str = ""
    virtio_fs_cache: Literal["never", "metadata", "auto", "always"] = "auto"
    virtio_fs_extra_args: Strings = ()
    seccompsandbox: str = QEMU_SANDBOX
    enable_annotations: Strings = ("enable_tracing",)
    rootless: bool = True
    disable_vhost_net: bool = False
    guest_hook_path: AbsolutePath = ""

    def vcpus(self, host_cpus: int) -> int:
        """Number of the guest's CPUs: fractions count up, a negative default means all, more than all is all."""
        wanted = math.ceil(self.default_vcpus)
        return max(1, host_cpus if wanted < 0 else min(wanted, host_cpus))


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`[agent.kata]`: the agent in the guest."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    enable_tracing: bool = False
    trace_transport: Literal["runtime", "forwarder"] = "runtime"  # ours
    dial_timeout: Seconds = 45.0
    health_check_request_timeout_ms: Annotated[int, _Schema(ge=1000, le=3_600_000)] = 30_000
    kernel_modules: Strings = ()
    debug_console_enabled: bool = False
    policy: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """`[runtime]`: the host side. The keys from `trace_dir` on are ours."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    enable_tracing: bool = False
    enable_debug: bool = False
    disable_guest_seccomp: bool = False
    sandbox_cgroup_only: bool = True
    static_sandbox_resource_mgmt: bool = False
    create_container_timeout: Seconds = 60.0
    trace_dir: AbsolutePath = places.TRACE_DIR
    trace_root: Literal["lifetime", "start"] = "lifetime"
    trace_level: Literal["essential", "normal", "detailed"] = "normal"
    trace_sampler: Sampler = ""
    trace_sampler_arg: str = ""
    trace_keep: str = ""
    trace_log_levels: Annotated[tuple[LogLevel, ...], _Schema(strict=False)] = ()
    flight_recorder: bool = True
    slow_start_threshold: Annotated[float, _Schema(ge=0, le=86400)] = 0.0
    otlp_endpoint: str = ""
    otlp_protocol: Literal["", "grpc", "http/protobuf"] = ""
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold credentials
    otlp_timeout: Annotated[float, _Schema(ge=0, le=86400)] = 0.0
    otlp_certificate: AbsolutePath = ""
    otlp_client_certificate: AbsolutePath = ""
    otlp_client_key: AbsolutePath = ""


@dataclass(frozen=True, slots=True)
class FactoryConfig:
    """`[factory]`: guests that have booted before they are wanted."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    enable_template: bool = False
    template_path: AbsolutePath = ""
    template_on_demand: bool = True  # ours
    vm_cache_number: Annotated[int, _Schema(ge=0, le=64)] = 0
    vm_cache_endpoint: AbsolutePath = "/var/run/kata-containers/cache.sock"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, which `files` it was read from (the later ones win), and what of them has no effect:
    `notes`, for the log.
    """

    qemu: QemuConfig = field(default_factory=QemuConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    factory: FactoryConfig = field(default_factory=FactoryConfig)
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def hypervisor(self) -> QemuConfig:
        """The table of the hypervisor in use, for what all of them have: guest, sizes, shared directory."""
        return self.qemu

    @classmethod
    def default(cls) -> "Config":
        """What holds without any file."""
        return cls()

    def describe_files(self) -> str:
        """The files that were read, in order, for spans and logs."""
        return ", ".join(self.files) or "built-in defaults"
