"""What a container that joins a sandbox shares with the others in it, by its own specification."""

from kata_runtime.oci.spec import SHM, Spec

__all__ = ["join_all", "share_memory", "shares_pid"]


def _namespace(spec: Spec, kind: str) -> str | None:
    """The path of its namespace, empty for one of its own; None where it names none, which means the host's."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    return next((str(entry.get("path") or "") for entry in namespaces if entry["type"] == kind), None)


def shares_pid(spec: Spec) -> bool:
    """Whether it names somebody's pid namespace: the sandbox's is the only one that there is."""
    return bool(_namespace(spec, "pid"))


def join_all(spec: Spec) -> None:
    """Have it join the sandbox's IPC and UTS namespaces, also where it names ones of its own: change the specification.

    For containers of a pod that CRI made: its own options are the pod's word.
    """
    for entry in (spec.get("linux") or {}).get("namespaces") or ():
        if entry["type"] in ("ipc", "uts"):
            entry["path"] = entry.get("path") or "sandbox"


def share_memory(spec: Spec) -> None:
    """Who shares the sandbox's IPC namespace shares its memory at /dev/shm as well: change the mount to say so.

    For containers of the sandbox service, which gets no shared memory of the host's to say it by.
    """
    if _namespace(spec, "ipc") != "":
        for mount in spec.get("mounts") or ():
            if mount["destination"] == SHM:
                mount.update(type="bind", options=["rbind"])
