"""Keys that Kata Containers 4.1.0 has and we do not: a value that says what is done here anyway is taken.

Sources: Kata's configuration-qemu.toml.in and configuration-qemu-runtime-rs.toml.in, and the structs that its two
runtimes parse (src/runtime/pkg/katautils/config.go, src/libs/kata-types/src/config). docs/compatibility.md shows this.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kata_common.contract import Port

__all__ = ["AGENT_PARAMETERS", "ALIASES", "KATA_KEYS", "KATA_TABLES", "KataKey", "agent_parameters"]


class KataKey(NamedTuple):
    """`taken` are the values that say what is done here (the first one gives the type). Of any other value, `says` is
    why it is no matter (with `noted`; it is told to the log), or what to do instead (it is an error).
    """

    taken: tuple[Any, ...]
    says: str
    noted: bool = False


def _off(says: str, *names: str) -> dict[str, KataKey]:
    """Keys for something that we don't have; empty, false and 0 are taken. Names with the type: name:bool."""
    nothing: dict[str, Any] = {"bool": False, "int": 0, "str": "", "list": []}
    split = (name.partition(":") for name in names)
    return {name: KataKey((nothing[kind or "bool"],), says) for name, _, kind in split}


def _noted(says: str, **defaults: object) -> dict[str, KataKey]:
    return {name: KataKey((value,), says, noted=True) for name, value in defaults.items()}


_REMOVE = "there is no such thing here: remove it"
_BLOCK = "QEMU's own is used for block devices"
_NO_VFIO = "devices of the host are not passed to a guest: remove it"
_OTHER_VMM = "for another hypervisor"
_HOTPLUG = "a VM has places for what is plugged in later"
_CONFIDENTIAL = "confidential guests are not supported: remove it"
_VHOST_USER = "for vhost-user devices, which are not given to a guest"
_TESTED_ONLY = "QEMU is not limited: use tc on the pod's interfaces"
_TABLES: dict[str, dict[str, KataKey]] = {
    "hypervisor.qemu": {
        "rootfs_type": KataKey(("ext4",), "the guest's image is ext4: remove it"),
        **_noted(
            "the guest's image is a virtio-blk device",
            vm_rootfs_driver="virtio-blk-pci",
            disable_image_nvdimm=True,
        ),
        **_noted("annotations can't name programs or paths here", valid_hypervisor_paths=[],
                 valid_virtio_fs_daemon_paths=[], valid_vhost_user_store_paths=[], valid_jailer_paths=[],
                 valid_entropy_sources=[]),
        **_noted(_HOTPLUG, default_bridges=1, memory_slots=10),
        **_noted("a VM has default_vcpus and default_memory on top of its containers' limits", overhead_vcpus=0.0,
                 overhead_memory=0),
        "virtio_fs_queue_size": KataKey((1024,), "the queue has 1024 places: remove it"),
        **_noted("QEMU chooses", block_device_aio="io_uring", queue_size=128, num_queues=1),
        **_noted("for 9p, which is not used", msize_9p=8192),
        **_noted(_VHOST_USER, vhost_user_store_path="", vhost_user_reconnect_timeout_sec=0),
        **_noted("accelerators are asked what they can do", disable_nesting_checks=True),
        **_noted("the guest's console is a serial one", use_legacy_serial=True),
        **_noted("QEMU runs without privileges and with its own seccomp filter; no label is set", disable_selinux=True),
        "disable_guest_selinux": KataKey((True,), "the guest has no SELinux policy: remove it"),
        "entropy_source": KataKey(("/dev/urandom", "/dev/random", ""), "entropy is the kernel's: remove it"),
        "hot_plug_vfio": KataKey(("no-port", ""), _NO_VFIO),
        "cold_plug_vfio": KataKey(("no-port", ""), _NO_VFIO),
        "network_queues": KataKey((1,), "a network device has one pair of queues: remove it"),
        "enable_debug": KataKey((False,), "use [runtime] enable_debug; the console is always kept"),
        "log_level": KataKey(("info",), "use [runtime] enable_debug"),
        "hypervisor_loglevel": KataKey((1, 0), "use [runtime] enable_debug"),
        "disable_seccomp": KataKey((False,), 'use [hypervisor.qemu] seccompsandbox = ""'),
        **_noted("for confidential guests, which are not supported", measurement_algo="",
                 tdx_quote_generation_service_socket_port=0),
        **_noted(_OTHER_VMM, remote_hypervisor_socket="", remote_hypervisor_timeout=600, jailer_path="", ctlpath=""),
        **_noted("each QEMU has a user of its own", rootless_user=""),
        **_noted("for enable_hugepages", hugepage_type=""),
        **_off("firmware is QEMU's SeaBIOS: remove it", "firmware:str", "firmware_volume:str", "pflashes:list"),
        **_off("the guest's image has no hashes to be checked by: remove it", "kernel_verity_params:str"),
        **_off("QEMU's options are ours: remove it", "machine_accelerators:str", "extra_monitor_socket:str"),
        **_off("memory is allocated as it is used: remove it", "enable_mem_prealloc", "enable_hugepages",
               "memory_offset:int", "memory_path:str"),
        "enable_virtio_mem": KataKey((False, True), "memory that comes while a VM runs is virtio-mem's"),
        **_off("a VM has the size that default_memory says: remove it", "reclaim_guest_freed_memory",
               "enable_guest_swap"),
        **_off("files are shared without DAX: remove it", "virtio_fs_cache_size:int", "virtio_fs_is_dax",
               "prefetch_list_path:str"),
        **_off(f"{_BLOCK}: remove it", "block_device_cache_set", "block_device_cache_direct",
               "block_device_cache_noflush", "block_device_logical_sector_size:int",
               "block_device_physical_sector_size:int", "enable_iothreads", "indep_iothreads:int",
               "enable_vhost_user_store"),
        **_off(_NO_VFIO, "enable_iommu", "enable_iommu_platform", "pcie_root_port:int", "pcie_switch_port:int"),
        **_off("a guest has one memory node: remove it", "enable_numa", "numa_mapping:list"),
        **_off(_TESTED_ONLY, "rx_rate_limiter_max_rate:int", "tx_rate_limiter_max_rate:int",
               *(f"{what}_rate_limiter_{kind}_{limit}:int" for what in ("disk", "net") for kind in ("bw", "ops")
                 for limit in ("max_rate", "one_time_burst"))),
        **_off("a guest's memory is not dumped: see its console in the sandbox's log", "guest_memory_dump_path:str",
               "guest_memory_dump_paging"),
        **_off(_CONFIDENTIAL, "confidential_guest", "sev_snp_guest", "snp_guest_policy:int", "snp_id_auth:str",
               "snp_id_block:str", "initdata:str"),
        **_off("the image is one: remove it", "guest_extension_images:list"),
        **_off("see [factory]", "boot_from_template", "boot_to_template", "device_state_path:str"),
        **_off(_REMOVE, "selinux_label:str"),
    },
    "agent.kata": {
        "enable_debug": KataKey((False,), "use [runtime] enable_debug"),
        "log_level": KataKey(("info",), "use [runtime] enable_debug"),
        **_noted("dial_timeout is how long an agent may take", dial_timeout_ms=10, reconnect_timeout_ms=3000),
        **_noted("for confidential guests, which are not supported", cdh_api_timeout=50, cdh_api_timeout_ms=50000),
        "server_port": KataKey((1024,), "the agent's port is 1024: remove it"),
        "log_port": KataKey((1025,), "the agent's log is the guest's console: remove it", noted=True),
        "passfd_listener_port": KataKey((int(Port.STDIO),), f"stdio's port is {Port.STDIO:d}", noted=True),
        "launch_process_timeout": KataKey((0,), "create_container_timeout is how long a start may take", noted=True),
        **_off("a pipe has the kernel's size: remove it", "container_pipe_size:int"),
        **_off(_NO_VFIO, "visible_cdi_devices"),
    },
    "agent.kata.mem_agent": {
        "mem_agent_enable": KataKey((False,), "the guest's memory is not reclaimed: remove it"),
        "enable": KataKey((False,), "the guest's memory is not reclaimed: remove it"),
        **_noted("for mem_agent_enable", memcg_disable=False, memcg_swap=False, memcg_swappiness_max=50,
                 memcg_period_secs=600, memcg_period_psi_percent_limit=1, memcg_eviction_psi_percent_limit=1,
                 memcg_eviction_run_aging_count_min=3, compact_disable=False, compact_period_secs=600,
                 compact_period_psi_percent_limit=1, compact_psi_percent_limit=5, compact_sec_max=300, compact_order=9,
                 compact_threshold=1024, compact_force_times=(1 << 63) - 1),
    },
    # Of the one in Rust; see ALIASES.
    "hypervisor.qemu.factory": {},
    "runtime": {
        "internetworking_model": KataKey(("tcfilter",), "interfaces are redirected by tc: remove it"),
        "hypervisor_name": KataKey(("qemu",), "the hypervisor is QEMU: remove it"),
        "agent_name": KataKey(("kata",), "the agent is Kata's: remove it"),
        "name": KataKey(("virt_container",), "there is one kind of runtime: remove it"),
        **_off("use [runtime] otlp_endpoint (Jaeger takes OTLP on ports 4317 and 4318)", "jaeger_endpoint:str"),
        **_off("use [runtime] otlp_headers", "jaeger_user:str", "jaeger_password:str"),
        **_off("the VM is in the network namespace of its pod: remove it", "disable_new_netns"),
        **_off("use cpusets of the pod's cgroup: remove it", "enable_vcpus_pinning"),
        **_off("the guest has no SELinux policy: remove it", "guest_selinux_label:str"),
        **_off("use a bind mount of the container: remove it", "sandbox_bind_mounts:list", "shared_mounts:list"),
        "vfio_mode": KataKey(("guest-kernel", "vfio", ""), _NO_VFIO),
        "disable_guest_empty_dir": KataKey((True,), "directories of a pod are the host's, shared: remove it"),
        "emptydir_mode": KataKey(("shared-fs", ""), "directories of a pod are the host's, shared: remove it"),
        **_off("there are no such features: remove it", "experimental:list"),
        **_off("there is no profiler to ask: use tracing", "enable_pprof"),
        **_noted("networks come from the pod's namespace", dan_conf="/run/kata-containers/dans"),
        **_noted("volumes are known by their mounts", kubelet_root_dir="/var/lib/kubelet"),
        **_off(_NO_VFIO, "pod_resource_api_sock:str"),
        **_off("a sandbox whose agent is lost ends: remove it", "keep_abnormal"),
        **_noted("stdio is a vsock stream", use_passfd_io=True, passfd_listener_port=int(Port.STDIO)),
        "log_level": KataKey(("info",), "use enable_debug"),
    },
}  # fmt: skip
KATA_KEYS: Mapping[str, Mapping[str, KataKey]] = _TABLES
# Other hypervisors' tables: what stands in them is for those.
KATA_TABLES = frozenset({
    "hypervisor.acrn",
    "hypervisor.clh",
    "hypervisor.cloud-hypervisor",
    "hypervisor.dragonball",
    "hypervisor.firecracker",
    "hypervisor.openvmm",
    "hypervisor.remote",
    "hypervisor.stratovirt",
})  # fmt: skip
# Keys that one of Kata's runtimes has by another name, or in another table.
ALIASES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("hypervisor.qemu", "seccomp_sandbox"): ("hypervisor.qemu", "seccompsandbox"),
    ("hypervisor.qemu.factory", "enable_template"): ("factory", "enable_template"),
    ("hypervisor.qemu.factory", "template_path"): ("factory", "template_path"),
    ("agent.kata", "create_container_timeout"): ("runtime", "create_container_timeout"),
}
# Words of [hypervisor.qemu] kernel_params that Kata's agent reads (src/agent/src/config.rs), and what is to be used
# here; empty: it is taken. Any other agent.* is refused, too.
AGENT_PARAMETERS: Mapping[str, str] = {
    "agent.log": "",
    "agent.debug_console": "",
    "agent.debug_console_vport": "",
    "agent.unified_cgroup_hierarchy": "",
    "agent.trace": "[agent.kata] enable_tracing",
    "agent.hotplug_timeout": "[agent.kata] dial_timeout",
    "agent.launch_process_timeout": "[runtime] create_container_timeout",
}
_AGENT_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "critical")


def agent_parameters(kernel_params: str) -> list[str]:
    """What is wrong with the words for the agent on the guest's kernel command line."""
    problems = []
    for word in kernel_params.split():
        name, _, value = word.partition("=")
        instead = AGENT_PARAMETERS.get(name, "nothing: remove it")
        if name.startswith("agent.") and instead:
            problems.append(f"{name} is not read by this agent; use {instead}")
        elif name == "agent.debug_console_vport" and not (value.isascii() and value.isdecimal() and int(value)):
            problems.append(f"{word[:60]}: the debug console is a port of vsock, {Port.CONSOLE:d} as a rule")
        elif name == "agent.log" and value not in _AGENT_LEVELS:
            problems.append(f"agent.log={value[:40]} is none of {', '.join(_AGENT_LEVELS)}")
    return problems
