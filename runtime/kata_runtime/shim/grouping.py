"""Which sandbox a container belongs to, found by the annotations of whoever made its config.json."""

from kata_common.documents import parse_json
from kata_runtime.shim.arguments import UsageError

__all__ = ["CONTAINER", "SANDBOX", "SINGLE", "Group", "find_group", "read_group"]

# A pod's first container, which brings the sandbox; one that joins it; and one that is its own sandbox (ctr, nerdctl,
# Docker).
SANDBOX = "sandbox"
CONTAINER = "container"
SINGLE = "single"

# Who writes them (annotation of the type, its values for sandbox and container, annotation of the sandbox's id), in the
# order in which Kata's runtime asks (src/runtime/pkg/oci/utils.go).
_ENGINES = (
    ("io.kubernetes.cri.container-type", "sandbox", "container", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox", "container", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "podsandbox", "container", "io.kubernetes.sandbox.id"),
)


class Group:
    """What a container is (`SANDBOX`, `CONTAINER` or `SINGLE`), and in which sandbox."""

    __slots__ = ("kind", "sandbox_id")

    def __init__(self, kind: str, sandbox_id: str) -> None:
        self.kind = kind
        self.sandbox_id = sandbox_id

    def __repr__(self) -> str:
        return f"Group({self.kind!r}, {self.sandbox_id!r})"


def find_group(annotations: dict[str, str], container_id: str) -> Group:
    """The group of a container with these annotations.

    Raises:
        UsageError: the annotations contradict themselves.
    """
    for type_key, sandbox, container, id_key in _ENGINES:
        kind = annotations.get(type_key)
        if kind is None:
            continue
        sandbox_id = annotations.get(id_key, "")
        if kind == sandbox:
            return Group(SANDBOX, sandbox_id or container_id)
        if kind != container:
            raise UsageError(f"annotation {type_key} is {kind!r}; it must be {sandbox!r} or {container!r}")
        if not sandbox_id or "/" in sandbox_id or sandbox_id in (".", ".."):
            raise UsageError(f"container {container_id} has no usable sandbox: annotation {id_key} is {sandbox_id!r}")
        return Group(CONTAINER, sandbox_id)
    return Group(SINGLE, container_id)


def read_group(bundle: str, container_id: str) -> Group:
    """The group of the container in `bundle`. Without a config.json (containerd's sandbox API) it is its own sandbox.

    Raises:
        UsageError: config.json is there and can't be read, or its annotations contradict themselves.
    """
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            spec = parse_json(file.read())
    except FileNotFoundError:
        return Group(SINGLE, container_id)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    annotations = spec.get("annotations") if isinstance(spec, dict) else None
    if not isinstance(annotations, dict):
        annotations = {}
    return find_group({str(key): str(value) for key, value in annotations.items()}, container_id)
