"""What a pod may change of the configuration."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from kata_runtime.config import Config
from kata_runtime.config.annotations import APPLIED, FOREIGN, PREFIX, read_annotations, with_annotations
from kata_runtime.errors import ConfigError

RUNTIME, AGENT = f"{PREFIX}runtime.enable_tracing", f"{PREFIX}agent.enable_tracing"


def allowing(*patterns: str) -> Config:
    config = Config.default()
    return replace(config, qemu=replace(config.qemu, enable_annotations=patterns))


@pytest.mark.parametrize(
    ("annotations", "runtime", "agent"),
    [
        ({}, False, False),
        ({RUNTIME: "true"}, True, False),
        ({AGENT: "1", RUNTIME: "T"}, True, True),
        ({AGENT: "false"}, False, False),
    ],
)
def test_a_pod_turns_tracing_on(annotations: dict[str, str], runtime: bool, agent: bool) -> None:
    config = with_annotations(Config.default(), annotations)
    assert (config.runtime.enable_tracing, config.agent.enable_tracing) == (runtime, agent)


def test_and_off() -> None:
    config = Config.default()
    config = replace(config, runtime=replace(config.runtime, enable_tracing=True))
    assert not with_annotations(config, {RUNTIME: "false"}).runtime.enable_tracing


@pytest.mark.parametrize("patterns", [("enable_tracing",), ("agent.enable_tracing",), (r"agent\..*",), (".*_tracing",)])
def test_patterns_that_allow_it(patterns: tuple[str, ...]) -> None:
    assert with_annotations(allowing(*patterns), {AGENT: "true"}).agent.enable_tracing


@pytest.mark.parametrize("patterns", [(), ("tracing",), ("runtime.enable_tracing",), ("enable_trac",), ("",)])
def test_what_is_not_allowed_is_an_error(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"annotation .*agent\.enable_tracing is not enabled") as raised:
        with_annotations(allowing(*patterns), {AGENT: "true"})
    assert "[hypervisor.qemu] enable_annotations" in raised.value.hint


def test_values_and_patterns_that_are_none() -> None:
    with pytest.raises(ConfigError, match="expected true or false, got 'yes'"):
        with_annotations(Config.default(), {AGENT: "yes"})
    with pytest.raises(ConfigError, match=r"enable_annotations: '\(' is no regular expression"):
        with_annotations(allowing("("), {AGENT: "true"})


def test_annotations_of_others_are_theirs() -> None:
    assert with_annotations(Config.default(), {"other": "x", "io.kubernetes.cri.sandbox-id": "y"}) == Config.default()


EVERYTHING = allowing(".*")


@pytest.mark.parametrize(
    ("name", "text", "table", "field", "value"),
    [
        ("runtime.disable_guest_seccomp", "true", "runtime", "disable_guest_seccomp", True),
        ("runtime.sandbox_cgroup_only", "false", "runtime", "sandbox_cgroup_only", False),
        ("runtime.create_container_timeout", "90", "runtime", "create_container_timeout", 90.0),
        ("agent.kernel_modules", "e1000e EEE=1; i915", "agent", "kernel_modules", ("e1000e EEE=1", "i915")),
        ("agent.debug_console_enabled", "true", "agent", "debug_console_enabled", True),
        ("agent.policy", '{"default": "deny"}', "agent", "policy", '{"default": "deny"}'),
        ("agent.policy", "eyJkZWZhdWx0IjogImRlbnkifQ==", "agent", "policy", '{"default": "deny"}'),
        ("hypervisor.default_vcpus", "1.5", "qemu", "default_vcpus", 1.5),
        ("hypervisor.default_memory", "512", "qemu", "default_memory", 512),
        ("hypervisor.default_max_vcpus", "8", "qemu", "default_maxvcpus", 8),
        ("hypervisor.default_max_memory", "8192", "qemu", "default_maxmemory", 8192),
        ("hypervisor.kernel", "/k", "qemu", "kernel", "/k"),
        ("hypervisor.initrd", "/i", "qemu", "initrd", "/i"),
        ("hypervisor.image", "/m", "qemu", "image", "/m"),
        ("hypervisor.kernel_params", "a=b agent.log=debug", "qemu", "kernel_params", "a=b agent.log=debug"),
        ("hypervisor.machine_type", "q35", "qemu", "machine_type", "q35"),
        ("hypervisor.cpu_features", "pmu=on", "qemu", "cpu_features", "pmu=on"),
        ("hypervisor.shared_fs", "virtio-fs", "qemu", "shared_fs", "virtio-fs"),
        ("hypervisor.virtio_fs_cache", "never", "qemu", "virtio_fs_cache", "never"),
        ("hypervisor.virtio_fs_extra_args", '["--a", "b"]', "qemu", "virtio_fs_extra_args", ("--a", "b")),
        ("hypervisor.disable_vhost_net", "1", "qemu", "disable_vhost_net", True),
        ("hypervisor.guest_hook_path", "/hooks", "qemu", "guest_hook_path", "/hooks"),
        ("hypervisor.rootless", "f", "qemu", "rootless", False),
    ],
)
def test_applied(name: str, text: str, table: str, field: str, value: object) -> None:
    config = with_annotations(EVERYTHING, {PREFIX + name: text})
    assert getattr(getattr(config, table), field) == value
    with pytest.raises(ConfigError, match="is not enabled"):
        with_annotations(allowing("other"), {PREFIX + name: text})


def test_every_annotation_that_is_applied_is_tried_above() -> None:
    """And none of Kata's is both applied and refused."""
    [mark] = [mark for mark in test_applied.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(APPLIED) - {"runtime.enable_tracing", "agent.enable_tracing"}
    assert not set(APPLIED) & set(FOREIGN)


def test_kernel_parameters_are_added() -> None:
    config = replace(EVERYTHING, qemu=replace(EVERYTHING.qemu, kernel_params="a=1"))
    assert with_annotations(config, {f"{PREFIX}hypervisor.kernel_params": "b=2"}).qemu.kernel_params == "a=1 b=2"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("hypervisor.default_vcpus", "many", "expected a number from -1024 to 1024, got 'many'"),
        ("hypervisor.default_memory", "1", "expected an integer from 64 to 16777216, got '1'"),
        ("hypervisor.default_memory", "\u0665\u0661\u0662", "expected an integer from 64"),
        ("hypervisor.kernel", "k", "expected an absolute path, got 'k'"),
        ("hypervisor.machine_type", "virt", "expected q35, got 'virt'"),
        ("hypervisor.virtio_fs_extra_args", "--a", "expected a JSON array of strings"),
        ("hypervisor.virtio_fs_cache", "none", "expected never or metadata or auto or always"),
        ("runtime.create_container_timeout", "0", "expected a number from 1 to 86400"),
        ("hypervisor.kernel_params", "agent.devmode", "agent.devmode is not read by this agent"),
        (
            "hypervisor.kernel_params",
            "agent.debug_console_vport=0",
            "agent.debug_console_vport=0: the debug",
        ),
        # Never a warning: what protects the pod.
        (
            "agent.policy",
            "cGFja2FnZSBhZ2VudF9wb2xpY3k=",
            "agent.policy: expected a policy in JSON (docs",
        ),
        ("agent.policy", "deny all", "agent.policy: expected a policy in JSON, or that in base64"),
        ("hypervisor.kernel_hash", "00", "can't be had here: files are not checked by a hash"),
        ("hypervisor.cc_init_data", "x", "can't be 'x' here: confidential guests"),
        ("hypervisor.kernel_verity_params", "x", "can't be 'x' here"),
        ("runtime.guest_selinux_label", "x", "can't be 'x' here: the guest has no SELinux policy"),
        ("hypervisor.path", "/bin/sh", "a pod can't name programs of the host"),
        ("hypervisor.enable_iommu", "true", "can't be 'true' here: devices of the host"),
        ("hypervisor.enable_iommu", "maybe", "expected true or false, got 'maybe'"),
        ("hypervisor.msize_9p", "x", "expected a number, got 'x'"),
        ("hypervisor.default_vcpu", "1", "is unknown"),
        ("made.up", "1", "is unknown"),
    ],
)
def test_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_annotations(EVERYTHING, {PREFIX + name: text})
    assert f"annotation {PREFIX}{name}" in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hypervisor.enable_iommu", "false"),
        ("hypervisor.memory_offset", "0"),
        ("hypervisor.entropy_source", "/dev/urandom"),
        ("runtime.internetworking_model", "tcfilter"),
        ("runtime.vfio_mode", "guest-kernel"),
        ("agent.container_pipe_size", "0"),
    ],
)
def test_what_is_done_here_anyway_is_taken(name: str, text: str) -> None:
    assert with_annotations(EVERYTHING, {PREFIX + name: text}) == EVERYTHING


def test_what_cannot_matter_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert with_annotations(EVERYTHING, {f"{PREFIX}hypervisor.msize_9p": "4096"}) == EVERYTHING
    assert "hypervisor.msize_9p has no effect: for 9p, which is not used" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("io.katacontainers.container.resource.swappiness", "60", "a guest has no swap"),
        ("io.katacontainers.container.resource.swap_in_bytes", "1", "a guest has no swap"),
        ("io.katacontainers.enable_vcpus_pinning", "true", "can't be 'true' here"),
        ("io.katacontainers.config_path", "/x", "a pod can't name a file of the host"),
    ],
)
def test_outside_the_tables(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"annotation {name}.*{said}"):
        with_annotations(EVERYTHING, {name: text})


def test_no_swap_is_what_there_is() -> None:
    asked = {
        "io.katacontainers.container.resource.swap_in_bytes": "0",
        "io.katacontainers.enable_vcpus_pinning": "false",
    }
    assert with_annotations(EVERYTHING, asked) == EVERYTHING


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (json.dumps({"annotations": {AGENT: "true", "a": "b"}}), {AGENT: "true"}),
        (json.dumps({"annotations": {"io.katacontainers.config_path": 1}}), {"io.katacontainers.config_path": "1"}),
        (json.dumps({"annotations": {"a": "b"}}), {}),
        (json.dumps({"annotations": [AGENT]}), {}),
        (json.dumps([AGENT]), {}),
        (f"{{ {PREFIX}", {}),
    ],
)
def test_annotations_of_a_bundle(tmp_path: Path, content: str, found: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text(content)
    assert read_annotations(tmp_path) == found
    assert read_annotations(tmp_path / "nowhere") == {}
