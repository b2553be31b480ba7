"""What the guest's own resolv.conf says."""

import os
from pathlib import Path

from google.protobuf.any_pb2 import Any

from kata_protos.containerd.cri_pb2 import DNSConfig, PodSandboxConfig
from kata_protos.containerd.sandbox_pb2 import CreateSandboxRequest
from kata_runtime.oci.sandbox import SandboxSpec
from kata_runtime.shim.sandboxes import _options


def test_of_a_pod_by_the_sandbox_service() -> None:
    dns = DNSConfig(servers=["192.0.2.1", "2001:db8::1"], searches=["a.example", "b.example"], options=["ndots:5"])
    config = PodSandboxConfig(dns_config=dns)
    request = CreateSandboxRequest(
        options=Any(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())
    )
    assert _options(request).dns == (
        "nameserver 192.0.2.1",
        "nameserver 2001:db8::1",
        "search a.example b.example",
        "options ndots:5",
    )
    assert _options(CreateSandboxRequest()).dns == ()


def test_of_the_sandboxs_own_container(tmp_path: Path) -> None:
    source = tmp_path / "resolv.conf"
    source.write_text("# of an engine\nnameserver 192.0.2.1\n")
    mounts = [{"destination": "/etc/resolv.conf", "source": str(source)}]
    assert SandboxSpec.of({"mounts": mounts}).dns == ("# of an engine", "nameserver 192.0.2.1")
    source.unlink()
    os.mkfifo(source)
    assert SandboxSpec.of({"mounts": mounts}).dns == ()
    source.unlink()
    assert SandboxSpec.of({"mounts": mounts}).dns == ()
