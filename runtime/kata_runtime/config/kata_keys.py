"""Names of the keys that Kata Containers 4.1.0 has and we do not (yet), to tell them from typing errors.

Sources: Kata's configuration-qemu.toml.in and the structs that its two runtimes parse
(src/runtime/pkg/katautils/config.go, src/libs/kata-types/src/config).
"""

__all__ = ["INSTEAD", "KATA_KEYS", "KATA_TABLES"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Tables that Kata has and we do not.
KATA_TABLES = frozenset({
    "factory",
    "hypervisor.acrn",
    "hypervisor.clh",
    "hypervisor.cloud-hypervisor",
    "hypervisor.dragonball",
    "hypervisor.firecracker",
    "hypervisor.openvmm",
    "hypervisor.qemu.factory",
    "hypervisor.remote",
    "hypervisor.stratovirt",
    "agent.kata.mem_agent",
    "runtime.shared_mounts",
})  # fmt: skip

KATA_KEYS: dict[str, frozenset[str]] = {
    "hypervisor.qemu": _names(
        """
        block_device_aio block_device_cache_direct block_device_cache_noflush block_device_cache_set
        block_device_driver block_device_logical_sector_size block_device_physical_sector_size boot_from_template
        boot_to_template cold_plug_vfio confidential_guest ctlpath default_bridges default_maxmemory default_maxvcpus
        device_state_path disable_block_device_use disable_guest_selinux disable_image_nvdimm disable_nesting_checks
        disable_seccomp disable_selinux disk_rate_limiter_bw_max_rate
        disk_rate_limiter_bw_one_time_burst disk_rate_limiter_ops_max_rate disk_rate_limiter_ops_one_time_burst
        enable_debug enable_guest_swap enable_hugepages enable_iommu enable_iommu_platform
        enable_iothreads enable_mem_prealloc enable_numa
        enable_vhost_user_store enable_virtio_mem entropy_source extra_monitor_socket
        firmware firmware_volume guest_extension_images guest_hook_path guest_memory_dump_paging guest_memory_dump_path
        hot_plug_vfio hugepage_type hypervisor_loglevel indep_iothreads initdata jailer_path kernel_verity_params
        log_level machine_accelerators measurement_algo memory_offset memory_path memory_slots msize_9p
        net_rate_limiter_bw_max_rate net_rate_limiter_bw_one_time_burst net_rate_limiter_ops_max_rate
        net_rate_limiter_ops_one_time_burst network_queues num_queues numa_mapping overhead_memory overhead_vcpus
        pcie_root_port pcie_switch_port pflashes prefetch_list_path queue_size reclaim_guest_freed_memory
        remote_hypervisor_socket remote_hypervisor_timeout rootfs_type rootless_user rx_rate_limiter_max_rate
        seccomp_sandbox selinux_label sev_snp_guest snp_guest_policy snp_id_auth snp_id_block
        tdx_quote_generation_service_socket_port tx_rate_limiter_max_rate use_legacy_serial valid_entropy_sources
        valid_hypervisor_paths valid_jailer_paths valid_vhost_user_store_paths valid_virtio_fs_daemon_paths
        vhost_user_reconnect_timeout_sec vhost_user_store_path virtio_fs_cache_size virtio_fs_is_dax
        virtio_fs_queue_size vm_rootfs_driver
        """
    ),
    "agent.kata": _names(
        """
        cdh_api_timeout cdh_api_timeout_ms container_pipe_size create_container_timeout debug_console_enabled
        dial_timeout_ms enable_debug launch_process_timeout log_level log_port
        passfd_listener_port policy
        reconnect_timeout_ms server_port visible_cdi_devices
        """
    ),
    "runtime": _names(
        """
        agent_name dan_conf disable_guest_empty_dir disable_new_netns emptydir_mode enable_pprof enable_vcpus_pinning
        experimental guest_selinux_label hypervisor_name internetworking_model jaeger_endpoint jaeger_password
        jaeger_user keep_abnormal kubelet_root_dir log_level name passfd_listener_port pod_resource_api_sock
        sandbox_bind_mounts shared_mounts static_sandbox_resource_mgmt use_passfd_io vfio_mode
        """
    ),
}

# What to use in place of a key of Kata's.
INSTEAD = {
    "create_container_timeout": "[runtime] create_container_timeout (seconds)",
    "dial_timeout_ms": "[agent.kata] dial_timeout (seconds)",
    "enable_debug": "[runtime] enable_debug",
    "hypervisor_loglevel": "[runtime] enable_debug",
    "jaeger_endpoint": "[runtime] otlp_endpoint (Jaeger takes OTLP on ports 4317 and 4318)",
    "jaeger_password": "[runtime] otlp_headers",
    "jaeger_user": "[runtime] otlp_headers",
    "log_level": "enable_debug",
    "reconnect_timeout_ms": "[agent.kata] dial_timeout (seconds)",
    "seccomp_sandbox": "[hypervisor.qemu] seccompsandbox",
}
