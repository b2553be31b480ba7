"""Which sandbox a container belongs to."""

import json
from pathlib import Path

import pytest

from kata_runtime.shim.arguments import UsageError
from kata_runtime.shim.grouping import CONTAINER, SANDBOX, SINGLE, find_group, read_group
from kata_runtime.shim.launch import Launch, socket_address

CRI = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id")
CRIO = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID")
DOCKERSHIM = ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id")


@pytest.mark.parametrize(("keys", "sandbox"), [(CRI, "sandbox"), (CRIO, "sandbox"), (DOCKERSHIM, "podsandbox")])
def test_engines(keys: tuple[str, str], sandbox: str) -> None:
    kind, name = keys
    group = find_group({kind: sandbox, name: "pod"}, "pod")
    assert (group.kind, group.sandbox_id) == (SANDBOX, "pod")
    group = find_group({kind: "container", name: "pod"}, "one")
    assert (group.kind, group.sandbox_id) == (CONTAINER, "pod")
    group = find_group({kind: sandbox}, "pod")
    assert (group.kind, group.sandbox_id) == (SANDBOX, "pod")
    with pytest.raises(UsageError, match=f"annotation {kind} is 'else'"):
        find_group({kind: "else", name: "pod"}, "one")
    for bad in ("", "..", "a/b"):
        with pytest.raises(UsageError, match="container one has no usable sandbox"):
            find_group({kind: "container", name: bad}, "one")


@pytest.mark.parametrize("annotations", [{}, {"io.kubernetes.cri.sandbox-id": "pod"}, {"x": "sandbox"}])
def test_no_engine(annotations: dict[str, str]) -> None:
    group = find_group(annotations, "one")
    assert (group.kind, group.sandbox_id) == (SINGLE, "one")


def test_containerd_comes_first() -> None:
    assert find_group({CRIO[0]: "nonsense", CRI[0]: "container", CRI[1]: "pod"}, "one").sandbox_id == "pod"


@pytest.mark.parametrize("spec", [{}, [], {"annotations": None}, {"annotations": {"x": 1}}])
def test_specs_without_a_pod(tmp_path: Path, spec: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(spec))
    assert read_group(str(tmp_path), "one").kind == SINGLE


def test_a_bundle_without_a_spec(tmp_path: Path) -> None:
    assert read_group(str(tmp_path), "one").kind == SINGLE


def test_a_spec_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json can't be read"):
        read_group(str(tmp_path), "one")


def address(containerd: str, namespace: str, container: str, annotations: dict[str, str], directory: str = "") -> str:
    group = find_group(annotations, container)
    launch = Launch(namespace=namespace, container_id=container, bundle="/b", group=group)
    launch.containerd = containerd
    return socket_address(launch, directory)


def test_a_pod_has_one_address_and_others_have_others() -> None:
    pod = {CRI[0]: "container", CRI[1]: "pod"}
    mine = address("/run/c.sock", "k8s.io", "one", pod)
    assert mine.startswith("unix:///run/containerd/s/")
    assert mine == address("/run/c.sock", "k8s.io", "two", pod)
    assert mine == address("/run/c.sock", "k8s.io", "pod", {CRI[0]: "sandbox", CRI[1]: "pod"})
    others = {
        address("/run/other.sock", "k8s.io", "one", pod),
        address("/run/c.sock", "default", "one", pod),
        address("/run/c.sock", "k8s.io", "one", {}),
    }
    assert mine not in others
    assert len(others) == 3
    assert address("/run/c.sock", "k8s.io", "one", pod, "/run/short").startswith("unix:///run/short/")
    with pytest.raises(OSError, match="too long for a unix socket"):
        address("/run/c.sock", "k8s.io", "one", pod, "/" + "x" * 60)
