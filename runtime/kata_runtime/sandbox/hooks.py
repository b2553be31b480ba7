"""OCI hooks that run on the host: engines set networks up by them (nerdctl, Docker before 26).

config.md of the OCI runtime specification, "POSIX-platform Hooks". Those of the sandbox's own container are run, with
the VM's process id for the container's. `createContainer` and `startContainer` are for the inside of a container: the
first has no place in a VM, the second is crun's.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kata_runtime.errors import HostError, SandboxError
from kata_runtime.oci.spec import OCI_VERSION
from kata_runtime.process import describe, run_foreign
from kata_telemetry.span import Site

__all__ = ["AFTER_END", "AFTER_START", "BEFORE_START", "HOST_HOOKS", "HookState", "run_hooks"]

_trace = Site(package="katautils", subsystem="hook")
_log = logging.getLogger("kata.hooks")

# Between a container's creation and its start; the first is the older name of the second.
BEFORE_START = ("prestart", "createRuntime")
AFTER_START, AFTER_END = ("poststart",), ("poststop",)
HOST_HOOKS = (*BEFORE_START, *AFTER_START, *AFTER_END)
# Seconds for a hook that names no limit: the specification has none, and a hook must not hold up a pod for ever.
_TIMEOUT = 60.0


@dataclass(frozen=True)
class HookState:
    """What a hook is told on its stdin; `status` is the specification's word."""

    id: str
    status: str
    pid: int
    bundle: str
    annotations: Mapping[str, str]

    def dump(self) -> bytes:
        """The state's JSON."""
        return json.dumps({"ociVersion": OCI_VERSION, **vars(self), "annotations": dict(self.annotations)}).encode()


async def run_hooks(hooks: Mapping[str, Any], kinds: Sequence[str], state: HookState, *, strict: bool) -> None:
    """Run the hooks of these kinds, which `read_bundle` has checked, one after another.

    Raises:
        SandboxError: with `strict`, one failed; those after it are not run then. Else failures are logged.
    """
    for kind in kinds:
        listed = hooks.get(kind) or ()
        if not listed:
            continue
        with _trace.span("runHooks", type=kind, hooks=len(listed)):
            for hook in listed:
                try:
                    await _run(kind, hook, state)
                except (HostError, SandboxError) as error:
                    if strict:
                        raise
                    _log.warning("%s", error)


async def _run(kind: str, hook: Mapping[str, Any], state: HookState) -> None:
    path, timeout = str(hook["path"]), float(hook.get("timeout") or _TIMEOUT)
    arguments = [str(word) for word in hook.get("args") or (path,)]
    environment = dict(str(entry).partition("=")[::2] for entry in hook.get("env") or ())
    with _trace.span("runHook", path=path):
        try:
            # Programs that are several look at their argv[0], as Docker's libnetwork-setkey.
            status, said = await run_foreign(
                path, arguments, data=state.dump(), environment=environment, timeout=timeout
            )
        except TimeoutError:
            raise SandboxError(f"{kind} hook {path} did not end within {timeout:g} s") from None
    if status != 0:
        raise SandboxError(f"{kind} hook {path} failed ({describe(status)})" + (f": {said}" if said else ""))
