"""containerd's CRI plugin as the kubelet uses it, by generated stubs."""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
from google.protobuf.message_factory import GetMessageClass

from support.containerd import IMAGE, Containerd, eventually
from support.cri import cri_pb2 as pb
from support.cri.websocket import ChannelSocket
from support.netns import Netns

__all__ = ["Cri", "Pod", "open_cri"]

_SERVICE = pb.DESCRIPTOR.services_by_name["RuntimeService"]
# Seconds for one call; an emulated guest boots in one of them.
TIMEOUT = 120


@dataclass
class Pod:
    """A sandbox that runs."""

    cri: "Cri"
    id: str
    config: pb.PodSandboxConfig
    attempts: dict[str, int] = field(default_factory=dict)

    def container(self, name: str, *command: str, memory: int = 0, image: str = IMAGE, **settings: Any) -> str:
        """Create and start a container; its id. `settings` are fields of ContainerConfig."""
        attempt = self.attempts[name] = self.attempts.get(name, -1) + 1
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name, attempt=attempt),
            image=pb.ImageSpec(image=image),
            command=command,
            log_path=f"{name}_{attempt}.log",
            **settings,
        )
        config.linux.resources.memory_limit_in_bytes = memory
        config.linux.security_context.namespace_options.CopyFrom(self.config.linux.security_context.namespace_options)
        request = pb.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        container = str(self.cri.call("CreateContainer", request).container_id)
        self.cri.call("StartContainer", pb.StartContainerRequest(container_id=container))
        return container

    def log(self, name: str) -> list[tuple[str, str]]:
        """The lines of the newest container of this name, with the stream that each came from."""
        path = Path(self.config.log_directory) / f"{name}_{self.attempts[name]}.log"
        # TIME STREAM P|F TEXT (Kubernetes' "CRI log format")
        lines = (line.split(" ", 3) for line in path.read_text().splitlines())
        return [(stream, text) for _, stream, _, text in lines]

    @property
    def status(self) -> pb.PodSandboxStatus:
        """What the plugin says of it."""
        found = self.cri.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=self.id)).status
        assert isinstance(found, pb.PodSandboxStatus)
        return found

    @property
    def ip(self) -> str:
        """Its first address."""
        return str(self.status.network.ip)

    def forward(self, port: int) -> ChannelSocket:
        """A connection to one of its ports, as `kubectl port-forward` makes it; data is on channel 0."""
        request = pb.PortForwardRequest(pod_sandbox_id=self.id, port=[port])
        url = self.cri.call("PortForward", request).url
        channels = self.cri.stream(f"{url}?port={port}")
        for channel in (0, 1):
            assert channels.until(channel, port.to_bytes(2, "little")) == port.to_bytes(2, "little")
        return channels

    def stop(self) -> None:
        """End it and all its containers."""
        self.cri.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=self.id))

    def remove(self) -> None:
        """Stop it and let nothing of it remain."""
        self.stop()
        self.cri.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=self.id))
        self.cri.pods.remove(self)


class Cri:
    """A connection to the plugin. `handler` is the runtime that pods get (a RuntimeClass's handler)."""

    def __init__(self, containerd: Containerd, network: Netns, logs: Path, handler: str = "kata") -> None:
        self.containerd = containerd
        self.network = network
        self.handler = handler
        self.pods: list[Pod] = []
        self._logs = logs
        self._connect()

    def _connect(self) -> None:
        self._channel = grpc.insecure_channel(f"unix:{self.containerd.address}")

    def reconnect(self) -> None:
        """After a restart of containerd."""
        self._channel.close()
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for pod in list(self.pods):
                pod.remove()
        finally:
            self._channel.close()

    def call(self, method: str, request: Any) -> Any:
        """One call of the RuntimeService; raises grpc.RpcError."""
        return self.begin(method, request, TIMEOUT).result()

    def begin(self, method: str, request: Any, timeout: float | None) -> Any:
        """A call as a future; cancelled, it is cancelled at the plugin."""
        described = _SERVICE.methods_by_name[method]
        answer = GetMessageClass(described.output_type)
        send = self._channel.unary_unary(
            f"/{_SERVICE.full_name}/{method}", type(request).SerializeToString, answer.FromString
        )
        return send.future(request, timeout=timeout)

    def ready(self) -> bool:
        """Whether the plugin has its runtime and its network."""
        try:
            status = self.call("Status", pb.StatusRequest()).status
        except grpc.RpcError:  # "server is not initialized yet"
            return False
        # containerd 2 has a condition for deprecated settings as well.
        return all(condition.status for condition in status.conditions if condition.type.endswith("Ready"))

    def pod(self, name: str, *, shared_pid: bool = False, annotations: dict[str, str] | None = None) -> Pod:
        """Run a pod."""
        logs = self._logs / name
        logs.mkdir()
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            hostname=name,
            log_directory=str(logs),
            dns_config=pb.DNSConfig(servers=["192.0.2.53"], searches=["test.example"]),
            annotations=annotations,
        )
        options = config.linux.security_context.namespace_options
        options.pid = pb.POD if shared_pid else pb.CONTAINER
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=self.handler)
        pod = Pod(self, str(self.call("RunPodSandbox", request).pod_sandbox_id), config)
        self.pods.append(pod)
        return pod

    def exec(self, container: str, *command: str) -> tuple[int, bytes, bytes]:
        """ExecSync; status, stdout, stderr."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=TIMEOUT)
        answer = self.call("ExecSync", request)
        return answer.exit_code, answer.stdout, answer.stderr

    def exec_stream(self, container: str, command: Sequence[str], **settings: bool) -> ChannelSocket:
        """Exec; `settings` are the fields of ExecRequest."""
        request = pb.ExecRequest(container_id=container, cmd=command, stdout=True, **settings)
        return self.stream(self.call("Exec", request).url)

    def attach(self, container: str, **settings: bool) -> ChannelSocket:
        """Attach; `settings` are the fields of AttachRequest."""
        request = pb.AttachRequest(container_id=container, stdout=True, **settings)
        return self.stream(self.call("Attach", request).url)

    def stream(self, url: str) -> ChannelSocket:
        """Open a stream of the plugin's streaming server, which listens in the namespace's loopback."""
        parts = urlsplit(url)
        assert parts.port
        server = (parts.hostname, parts.port)
        return ChannelSocket(self.network.inside(lambda: socket.create_connection(server, TIMEOUT)), url)

    def status(self, container: str) -> pb.ContainerStatus:
        """What the plugin says of a container."""
        found = self.call("ContainerStatus", pb.ContainerStatusRequest(container_id=container)).status
        assert isinstance(found, pb.ContainerStatus)
        return found

    def wait(self, container: str) -> pb.ContainerStatus:
        """Its status once it has ended."""
        eventually(lambda: self.status(container).state == pb.CONTAINER_EXITED, f"{container} goes on", seconds=60)
        return self.status(container)

    def kill(self, container: str, patience: int = 0) -> None:
        """StopContainer: SIGTERM, and after `patience` seconds SIGKILL."""
        self.call("StopContainer", pb.StopContainerRequest(container_id=container, timeout=patience))

    def delete(self, container: str) -> None:
        """RemoveContainer."""
        self.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))


@contextmanager
def open_cri(containerd: Containerd, network: Netns, logs: Path) -> Iterator[Cri]:
    """A connection whose pods end with the block."""
    with Cri(containerd, network, logs) as cri:
        eventually(cri.ready, "the CRI plugin does not become ready")
        yield cri


def bridge(directory: Path) -> None:
    """A CNI configuration in `directory`: a bridge with IPv4 and IPv6, whose host end is a gateway."""
    ranges = [[{"subnet": "10.133.7.0/24"}], [{"subnet": "fd00:133:7::/64"}]]
    plugin = {
        "type": "bridge",
        "bridge": "kata-cri0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(directory / "ipam"),
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    directory.mkdir(exist_ok=True)
    conflist = {"cniVersion": "0.4.0", "name": "kata-test", "plugins": [plugin]}
    (directory / "10-bridge.conflist").write_text(json.dumps(conflist))
