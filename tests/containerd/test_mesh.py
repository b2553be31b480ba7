"""A service mesh's pod: an init container that redirects the pod's connections to a proxy beside the workload."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.containerd import eventually, import_image
from support.cri import cri_pb2 as pb
from support.cri.client import Cri
from support.debian import tree

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

IMAGE = "localhost/mesh:test"
PROXY = 1337
# As istio-init writes them: all that comes and goes, but for what the proxy itself sends and what is localhost's.
RULES = """
{tool}-restore --noflush <<'END'
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 22 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
END
"""
LISTEN = """
busybox nc -ll -p 15001 -e busybox echo outbound &
exec busybox nc -ll -p 15006 -e busybox echo inbound
"""


def as_user(number: int, *capabilities: str) -> pb.LinuxContainerConfig:
    context = pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=number))
    context.capabilities.add_capabilities.extend(capabilities)
    return pb.LinuxContainerConfig(security_context=context)


@pytest.mark.parametrize("tool", ["iptables-legacy", "iptables-nft"])
def test_connections_of_a_pod_go_through_its_proxy(cri: Cri, tmp_path: Path, tool: str) -> None:
    import_image(cri.containerd, tree("busybox-static", "iptables"), IMAGE, tmp_path)
    pod = cri.pod("mesh")

    def run(name: str, script: str, user: pb.LinuxContainerConfig) -> str:
        return pod.container(name, "/bin/busybox", "sh", "-ec", script, image=IMAGE, linux=user)

    init = run("init", RULES.format(tool=f"/usr/sbin/{tool}"), as_user(0, "NET_ADMIN", "NET_RAW"))
    ended = cri.wait(init)
    assert ended.exit_code == 0, pod.log("init")
    proxy = run("proxy", LISTEN, as_user(PROXY))
    app = run("app", "exec busybox sleep 1000", as_user(1000))
    ask = ("/bin/busybox", "nc", "-w", "5", "192.0.2.80", "80")
    answers: Callable[[], tuple[int, bytes, bytes]] = lambda: cri.exec(app, *ask)  # noqa: E731
    eventually(lambda: answers()[1] == b"outbound\n", "the workload's connections go past the proxy")
    assert cri.network.ask(pod.ip, 8080, b"") == b"inbound\n"
    # The proxy's own leave the pod; nobody is there.
    assert b"bound" not in cri.exec(proxy, *ask)[1]
